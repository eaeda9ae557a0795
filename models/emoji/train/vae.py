"""Trains the AutoencoderKL on random crops, then on whole pictures: L1 + edges + a little KL. Resumable.

With --decoder only the decoder goes on (whole pictures, latents a little off as a UNet's are), the encoder being final:
the UNet may train on its latents meanwhile.
"""

import argparse
import math
import pathlib
import time

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from data import SIDE, Scenes
from fused import fuse

CONFIG = dict(
    in_channels=3,
    out_channels=3,
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
    block_out_channels=(32, 64, 96, 96),
    layers_per_block=1,
    latent_channels=4,
    norm_num_groups=8,
    sample_size=SIDE,
    scaling_factor=1.0,
)


def batch(scenes, count, side):
    """Pictures (count, 3, side, side) in -1..1: crops of scenes, most of them touching the subject."""
    out = np.empty((count, side, side, 3), np.float32)
    for i in range(count):
        picture = scenes.draw()[0]
        x, y = (scenes.rng.randint(0, SIDE - side) for _ in "xy")
        out[i] = picture[y : y + side, x : x + side]
    return torch.from_numpy(out).permute(0, 3, 1, 2) * 2 - 1


def losses(model, x, decoder=False):
    with torch.autocast("cpu", torch.bfloat16):
        with torch.set_grad_enabled(not decoder):
            posterior = model.encode(x).latent_dist
        z = posterior.mean + 0.1 * torch.randn_like(posterior.mean) if decoder else posterior.sample()
        y = model.decode(z).sample
    y = y.float()
    l1 = (y - x).abs().mean()
    edge = (y.diff(dim=2) - x.diff(dim=2)).abs().mean() + (y.diff(dim=3) - x.diff(dim=3)).abs().mean()
    kl = 0.5 * (posterior.mean.float() ** 2 + posterior.var.float() - 1 - posterior.logvar.float()).mean()
    return l1, edge, kl, (y - x).square().mean()


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--minutes", type=float, default=35)
    p.add_argument("--dir", default="run")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--lr", type=float, default=1.5e-3)
    p.add_argument("--batch", type=int, default=16)
    p.add_argument("--decoder", action="store_true", help="only the decoder goes on, into decoder.pt")
    p.add_argument("--fused", action="store_true", help="the compiled group norm; needs gcc and a CPU with AVX-512")
    a = p.parse_args()
    file = pathlib.Path(a.dir) / ("decoder.pt" if a.decoder else "vae.pt")
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(a.seed)
    model = AutoencoderKL(**CONFIG).to(memory_format=torch.channels_last)
    if a.decoder:
        model.load_state_dict(torch.load(file.with_name("vae.pt"), weights_only=False)["ema"])
        model.encoder.requires_grad_(False)
        model.quant_conv.requires_grad_(False)
    trained = [p for p in model.parameters() if p.requires_grad]
    opt = torch.optim.AdamW(trained, lr=a.lr, betas=(0.9, 0.98), weight_decay=1e-3)
    ema = {k: v.clone() for k, v in model.state_dict().items()}
    step, spent = 0, 0.0
    if file.exists():
        s = torch.load(file, weights_only=False)
        model.load_state_dict(s["model"])
        opt.load_state_dict(s["opt"])
        ema, step, spent = s["ema"], s["step"], s["spent"]
    if a.fused:
        fuse(model)
    scenes = Scenes(a.seed + step)
    print("parameters", sum(p.numel() for p in model.parameters()), flush=True)
    last = saved = time.time()
    mean = None
    while spent < a.minutes * 60:
        done = spent / (a.minutes * 60)
        lr = a.lr * min(1, (step + 1) / 100) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))
        for g in opt.param_groups:
            g["lr"] = lr
        x = batch(scenes, a.batch, 64) if done < 0.85 and not a.decoder else batch(scenes, max(1, a.batch // 4), SIDE)
        l1, edge, kl, l2 = losses(model, x.contiguous(memory_format=torch.channels_last), a.decoder)
        (l1 + 0.5 * edge + l2 + 3e-4 * kl).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        opt.step()
        opt.zero_grad(set_to_none=True)
        step += 1
        decay = min(0.998, (1 + step) / (10 + step))
        with torch.no_grad():
            for k, v in model.state_dict().items():
                ema[k].lerp_(v, 1 - decay)
        now = time.time()
        spent, last = spent + now - last, now
        row = torch.tensor([l1.item(), edge.item(), kl.item(), l2.item()])
        mean = row if mean is None else mean.lerp(row, 0.02)
        if step % 50 == 0:
            l = " ".join(f"{v:.4f}" for v in mean)
            print(f"step {step} min {spent / 60:.1f} lr {lr:.5f} l1 edge kl l2: {l}", flush=True)
        if now - saved > 120 or spent >= a.minutes * 60:
            torch.save(dict(model=model.state_dict(), opt=opt.state_dict(), ema=ema, step=step, spent=spent), str(file) + ".new")
            pathlib.Path(str(file) + ".new").rename(file)
            saved = now


if __name__ == "__main__":
    main()
