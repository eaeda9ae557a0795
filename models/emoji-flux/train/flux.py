"""Trains the tiny FluxTransformer2DModel by flow matching on the latents of `emoji`, both encoders frozen. Resumable."""

import argparse
import math
import pathlib
import time

import shared
import torch
from diffusers import FluxTransformer2DModel
from torch.nn.attention import SDPBackend, sdpa_kernel

from encoders import load_encoders, piece_ids
from unet import Latents

CONFIG = dict(
    patch_size=1,
    in_channels=16,
    num_layers=2,
    num_single_layers=4,
    attention_head_dim=32,
    num_attention_heads=5,
    joint_attention_dim=128,
    pooled_projection_dim=128,
    guidance_embeds=True,
    axes_dims_rope=(8, 12, 12),
)


def pack(x):
    """(b, 4, h, w) latents to (b, h/2 * w/2, 16) tokens."""
    b, c, h, w = x.shape
    return x.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // 4, c * 4)


def positions(h, w):
    ids = torch.zeros(h, w, 3)
    ids[..., 1] += torch.arange(h)[:, None]
    ids[..., 2] += torch.arange(w)[None]
    return ids.view(-1, 3)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--minutes", type=float, default=90)
    p.add_argument("--dir", default="run")
    p.add_argument("--seed", type=int, default=7)
    p.add_argument("--lr", type=float, default=1.5e-3)
    p.add_argument("--batch", type=int, default=64)
    p.add_argument("--compile", action="store_true", help="let torch.compile fuse the model: a third faster on CPUs, wants a C++ compiler")
    a = p.parse_args()
    torch.manual_seed(a.seed)
    tok, pieces, clip, t5 = load_encoders(a.dir)
    model = FluxTransformer2DModel(**CONFIG)
    opt = torch.optim.AdamW(model.parameters(), lr=a.lr, betas=(0.9, 0.98), weight_decay=1e-3)
    ema = {k: v.clone() for k, v in model.state_dict().items()}
    file = pathlib.Path(a.dir) / "flux.pt"
    step, spent = 0, 0.0
    if file.exists():
        s = torch.load(file, weights_only=False)
        model.load_state_dict(s["model"])
        opt.load_state_dict(s["opt"])
        ema, step, spent = s["ema"], s["step"], s["spent"]
    forward = torch.compile(model) if a.compile else model
    data = Latents(a.dir, a.seed + step)
    shift = data.latents.float().mean().item()
    image_ids, text_ids = positions(8, 8), torch.zeros(shared.T5_LENGTH, 3)
    print("parameters", sum(v.numel() for v in model.parameters()), "shift", shift, flush=True)
    # Processor time, so that a busy machine does not cut the training short.
    clock = lambda: time.process_time() / torch.get_num_threads()
    last = clock()
    saved = time.time()
    mean = None
    while spent < a.minutes * 60:
        for g in opt.param_groups:
            g["lr"] = a.lr * min(1, (step + 1) / 150) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * spent / a.minutes / 60)))
        x, texts = data.batch(a.batch)
        x = pack(x - shift * data.scale)
        # Noisy steps decide the layout: draw more of them.
        s = torch.sigmoid(torch.randn(a.batch) * 1.2 + 0.4)
        noise = torch.randn_like(x)
        noisy = (1 - s[:, None, None]) * x + s[:, None, None] * noise
        guidance = 1 + 5 * torch.rand(a.batch)
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            with torch.no_grad():
                pooled = clip(torch.tensor([e.ids for e in tok.encode_batch(texts)])).pooler_output
                tokens = t5(input_ids=piece_ids(pieces, texts)).last_hidden_state
            guess = forward(
                hidden_states=noisy, timestep=s, guidance=guidance, pooled_projections=pooled, encoder_hidden_states=tokens,
                txt_ids=text_ids, img_ids=image_ids, return_dict=False)[0]
        loss = (guess.float() - (noise - x)).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        opt.zero_grad(set_to_none=True)
        step += 1
        decay = min(0.998, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(ema.values()), list(model.state_dict().values()), 1 - decay)
        now = clock()
        spent, last = spent + now - last, now
        mean = loss.item() if mean is None else 0.99 * mean + 0.01 * loss.item()
        if step % 50 == 0:
            print(f"step {step} min {spent / 60:.1f} loss {mean:.4f}", flush=True)
        if time.time() - saved > 150 or spent >= a.minutes * 60:
            torch.save(dict(model=model.state_dict(), opt=opt.state_dict(), ema=ema, step=step, spent=spent, scale=data.scale, shift=shift), str(file) + ".new")
            pathlib.Path(str(file) + ".new").rename(file)
            data.refresh()
            saved = time.time()


if __name__ == "__main__":
    main()
