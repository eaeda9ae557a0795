"""Paints 200 prompts (every subject, backgrounds at random) and scores them against the rendered subjects.

    evaluate.py paint --model ../ --out pictures          # with diffusers
    evaluate.py paint --url http://127.0.0.1:8080 --out pictures  # with a running worker
    evaluate.py score --out pictures                      # 000.png ... and prompts.json in that folder

Subject: the nearest of all rendered subjects on the named background, compared at 32x32 over shifts and scales.
Background: the border's median colour is nearest to the named one of the twelve.
Distance: mean absolute difference (64x64, 0..1) to the nearest render, best over shift and scale.
"""

import argparse
import json
import pathlib
import random
import urllib.request

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from data import BACKGROUNDS, COLOURS, SIDE, SUBJECTS, Scenes, article, clashes


def prompts(count, seed):
    """Subjects in shuffled rounds, each with a random background that it can be seen on."""
    r = random.Random(seed)
    rows, order = [], []
    for _ in range(count):
        if not order:
            order = list(range(len(SUBJECTS)))
            r.shuffle(order)
        subject = order.pop()
        colour = r.choice([c for c in COLOURS if not clashes(subject, c)])
        text = f"{article(SUBJECTS[subject][1][0])} on {article(colour)} background"
        rows.append(dict(prompt=text, subject=SUBJECTS[subject][0], background=colour))
    return rows


def paint(a):
    out = pathlib.Path(a.out)
    out.mkdir(parents=True, exist_ok=True)
    rows = prompts(a.count, a.seed)
    (out / "prompts.json").write_text(json.dumps(rows, indent=1))
    if a.url:
        for i, row in enumerate(rows):
            body = dict(prompt=row["prompt"], seed=i)
            body |= {k: v for k, v in (("steps", a.steps), ("guidance_scale", a.guidance), ("sampler", a.sampler)) if v is not None}
            request = urllib.request.Request(
                a.url.rstrip("/") + "/txt2img", json.dumps(body).encode(), {"Content-Type": "application/json", "Accept": "image/png"}
            )
            (out / f"{i:03}.png").write_bytes(urllib.request.urlopen(request).read())
        return
    import diffusers

    kind = getattr(diffusers, json.load(open(pathlib.Path(a.model) / "model_index.json"))["_class_name"])
    pipe = kind.from_pretrained(a.model, torch_dtype=torch.float32)
    if a.sampler:
        pipe.scheduler = getattr(diffusers, a.sampler).from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    if hasattr(pipe, "unet"):
        pipe.unet.to(memory_format=torch.channels_last)
    for at in range(0, len(rows), a.batch):
        part = rows[at : at + a.batch]
        seeds = [torch.Generator().manual_seed(at + i) for i in range(len(part))]
        options = dict(num_inference_steps=a.steps or 20, guidance_scale=a.guidance or 3.0, generator=seeds, height=SIDE, width=SIDE)
        for i, picture in enumerate(pipe([r["prompt"] for r in part], **options).images):
            picture.save(out / f"{at + i:03}.png")


def shrink(x, side):
    return F.interpolate(x, (side, side), mode="area")


def layers(scenes, subject, places):
    """Colour and cover of a subject at (size, x, y) places: (n, 4, SIDE, SIDE)."""
    out = torch.zeros(len(places), 4, SIDE, SIDE)
    for i, (size, x, y) in enumerate(places):
        s = torch.from_numpy(scenes.sprite(subject, size)).permute(2, 0, 1)
        x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + size, SIDE), min(y + size, SIDE)
        out[i, :, y0:y1, x0:x1] = s[:, y0 - y : y1 - y, x0 - x : x1 - x]
    return out


def around(sizes, reach, step):
    return [
        (s, (SIDE - s) // 2 + dx, (SIDE - s) // 2 + dy)
        for s in sizes for dx in range(-reach, reach + 1, step) for dy in range(-reach, reach + 1, step)
    ]


def score(a):
    out = pathlib.Path(a.out)
    rows = json.loads((out / "prompts.json").read_text())
    scenes = Scenes(0)
    places = around((84, 90, 96), 4, 4)
    table = torch.cat([shrink(layers(scenes, s, places), 32) for s in range(len(SUBJECTS))])
    names = torch.tensor([BACKGROUNDS[c] for c in COLOURS]).float() / 255
    icons = [s[0] for s in SUBJECTS]
    subject_ok, back_ok, distances, wrong = 0, 0, [], []
    for i, row in enumerate(rows):
        x = torch.from_numpy(np.asarray(Image.open(out / f"{i:03}.png").convert("RGB"), np.float32) / 255).permute(2, 0, 1)[None]
        x = shrink(x, SIDE)
        edge = torch.cat([x[0, :, :3].flatten(1), x[0, :, -3:].flatten(1), x[0, :, :, :3].flatten(1), x[0, :, :, -3:].flatten(1)], 1)
        found = COLOURS[(edge.median(1).values - names).abs().sum(1).argmin()]
        back = (torch.tensor(BACKGROUNDS[row["background"]]).float() / 255).view(1, 3, 1, 1)
        far = (table[:, :3] + (1 - table[:, 3:]) * back - shrink(x, 32)).abs().mean((1, 2, 3))
        best = int(far.argmin())
        subject = best // len(places)
        size, px, py = places[best % len(places)]
        near = [(s, px + (size - s) // 2 + dx, py + (size - s) // 2 + dy) for s in range(size - 4, size + 5, 2) for dx in range(-3, 4) for dy in range(-3, 4)]
        l = shrink(layers(scenes, subject, near), 64)
        distance = (l[:, :3] + (1 - l[:, 3:]) * back - shrink(x, 64)).abs().mean((1, 2, 3)).min().item()
        right = icons[subject] == row["subject"], found == row["background"]
        subject_ok, back_ok = subject_ok + right[0], back_ok + right[1]
        distances.append(distance)
        if not all(right):
            wrong.append(f"{i:03} {row['prompt']}: looks like {icons[subject]} on {found} ({distance:.3f})")
    print("\n".join(wrong))
    n = len(rows)
    worst = sorted(zip(distances, (r["prompt"] for r in rows)))[-8:]
    print("farthest:", "; ".join(f"{p} {d:.3f}" for d, p in worst))
    print(f"subject {subject_ok / n:.1%}, background {back_ok / n:.1%}, median distance {np.median(distances):.4f}, mean {np.mean(distances):.4f}")
    if a.sheet:
        sheet(out, n, a.sheet)


def sheet(out, count, file):
    wide = 20
    image = Image.new("RGB", (wide * 66, (count + wide - 1) // wide * 66))
    for i in range(count):
        picture = Image.open(out / f"{i:03}.png").convert("RGB").resize((64, 64), Image.LANCZOS)
        image.paste(picture, (i % wide * 66, i // wide * 66))
    image.save(file)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("what", choices=["paint", "score"])
    p.add_argument("--model", default=str(pathlib.Path(__file__).parent.parent))
    p.add_argument("--url")
    p.add_argument("--out", default="pictures")
    p.add_argument("--count", type=int, default=200)
    p.add_argument("--seed", type=int, default=5)
    p.add_argument("--steps", type=int)
    p.add_argument("--guidance", type=float)
    p.add_argument("--sampler", help="a diffusers class with --model, the worker's name with --url")
    p.add_argument("--batch", type=int, default=20)
    p.add_argument("--sheet", help="score: also write all pictures on one sheet")
    a = p.parse_args()
    paint(a) if a.what == "paint" else score(a)


if __name__ == "__main__":
    main()
