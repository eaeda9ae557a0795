"""Encodes scenes once into shards of latents and labels, so that the UNet's training never runs the VAE."""

import argparse
import pathlib
import time

import torch
from diffusers import AutoencoderKL

from data import SUBJECTS, Scenes
from fused import fuse
from vae import CONFIG


def load_vae(folder):
    """The trained VAE (averaged weights), with the decoder that went on if there is one."""
    model = AutoencoderKL(**CONFIG)
    last = pathlib.Path(folder) / "decoder.pt"
    file = last if last.exists() else last.with_name("vae.pt")
    model.load_state_dict(torch.load(file, weights_only=False)["ema"])
    return model.eval().to(memory_format=torch.channels_last)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--dir", default="run")
    p.add_argument("--shards", type=int, default=12)
    p.add_argument("--size", type=int, default=1024)
    p.add_argument("--fused", action="store_true")
    a = p.parse_args()
    vae = load_vae(a.dir)
    if a.fused:
        fuse(vae)
    out = pathlib.Path(a.dir) / "latents"
    out.mkdir(exist_ok=True)
    for shard in range(a.shards):
        file = out / f"{shard:03}.pt"
        if file.exists():
            continue
        start = time.time()
        scenes = Scenes(1000 + shard)
        latents, labels = [], []
        for _ in range(0, a.size, 16):
            # Balanced subjects: each shard walks through them in turn.
            rows = [scenes.draw((len(labels) + i) % len(SUBJECTS)) for i in range(16)]
            x = torch.stack([torch.from_numpy(r[0]) for r in rows]).permute(0, 3, 1, 2) * 2 - 1
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                latents.append(vae.encode(x.contiguous(memory_format=torch.channels_last)).latent_dist.mean.half().contiguous())
            labels += [r[2] + (int(r[3]),) for r in rows]
        torch.save(dict(latents=torch.cat(latents), labels=torch.tensor(labels)), str(file) + ".new")
        pathlib.Path(str(file) + ".new").rename(file)
        print(f"shard {shard} {time.time() - start:.0f} s, deviation {torch.cat(latents).float().std():.4f}", flush=True)


if __name__ == "__main__":
    main()
