"""Trains the UNet on encoded scenes, the text encoder frozen: epsilon loss weighted by snr^-0.5, averaged weights. Resumable."""

import argparse
import math
import pathlib
import random
import time

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor

from data import COLOURS, PLACES, SIZES, caption
from fused import fuse
from text import load_tokenizer, make_model

CONFIG = dict(
    sample_size=16,
    in_channels=4,
    out_channels=4,
    block_out_channels=(96, 128, 128),
    down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    layers_per_block=1,
    cross_attention_dim=192,
    attention_head_dim=(3, 4, 4),
    norm_num_groups=16,
)
SCHEDULE = dict(num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")


def load_text(folder, tok):
    """The trained text encoder, frozen."""
    model = make_model(tok)
    model.load_state_dict(torch.load(pathlib.Path(folder) / "text.pt", weights_only=False)["model"])
    return model.eval().requires_grad_(False)


class Latents:
    """Encoded scenes with fresh captions; looks for new shards when asked."""

    def __init__(self, folder, seed):
        self.folder, self.rng, self.count = pathlib.Path(folder) / "latents", random.Random(seed), 0
        self.generator = torch.Generator().manual_seed(seed)
        self.refresh()

    def refresh(self):
        files = sorted(self.folder.glob("*.pt"))
        if len(files) != self.count:
            shards = [torch.load(f) for f in files]
            self.latents = torch.cat([s["latents"] for s in shards])
            self.labels = torch.cat([s["labels"] for s in shards]).tolist()
            self.scale = 1 / shards[0]["latents"].float().std().item()
            self.count = len(files)
            print("latents", len(self.labels), "scaling factor", self.scale, flush=True)

    def batch(self, count):
        rows = torch.randint(len(self.labels), (count,), generator=self.generator)
        texts = []
        for i in rows.tolist():
            subject, colour, size, place, named = self.labels[i]
            text = caption(self.rng, subject, COLOURS[colour] if named else None, SIZES[size], PLACES[place])
            texts.append("" if self.rng.random() < 0.1 else text)
        return self.latents[rows].float() * self.scale, texts


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--minutes", type=float, default=65)
    p.add_argument("--dir", default="run")
    p.add_argument("--seed", type=int, default=3)
    p.add_argument("--lr", type=float, default=1.2e-3)
    p.add_argument("--batch", type=int, default=32)
    p.add_argument("--fused", action="store_true")
    a = p.parse_args()
    torch.manual_seed(a.seed)
    tok = load_tokenizer(a.dir)
    text = load_text(a.dir, tok)
    model = UNet2DConditionModel(**CONFIG).to(memory_format=torch.channels_last)
    # Plain matmuls: PyTorch's flash attention is slow backwards on CPUs.
    model.set_attn_processor(AttnProcessor())
    opt = torch.optim.AdamW(model.parameters(), lr=a.lr, betas=(0.9, 0.98), weight_decay=1e-3)
    ema = {k: v.clone() for k, v in model.state_dict().items()}
    file = pathlib.Path(a.dir) / "unet.pt"
    step, spent = 0, 0.0
    if file.exists():
        s = torch.load(file, weights_only=False)
        model.load_state_dict(s["model"])
        opt.load_state_dict(s["opt"])
        ema, step, spent = s["ema"], s["step"], s["spent"]
    if a.fused:
        fuse(model)
    data = Latents(a.dir, a.seed + step)
    noise_at = DDPMScheduler(**SCHEDULE)
    snr = noise_at.alphas_cumprod / (1 - noise_at.alphas_cumprod)
    # Half of the weight by drawing steps more often, half in the loss.
    half = snr.pow(-0.25)
    weight = half / (half.square().sum() / half.sum())
    print("parameters", sum(p.numel() for p in model.parameters()), flush=True)
    last = saved = time.time()
    mean = None
    while spent < a.minutes * 60:
        lr = a.lr * min(1, (step + 1) / 150) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * spent / a.minutes / 60)))
        for g in opt.param_groups:
            g["lr"] = lr
        x, texts = data.batch(a.batch)
        ids = torch.tensor([e.ids for e in tok.encode_batch(texts)])
        t = torch.multinomial(half, a.batch, replacement=True)
        noise = torch.randn_like(x)
        noisy = noise_at.add_noise(x, noise, t).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                hidden = text(ids).last_hidden_state
            guess = model(noisy, t, hidden).sample
        each = (guess.float() - noise).square().mean((1, 2, 3))
        (each * weight[t]).mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        opt.zero_grad(set_to_none=True)
        step += 1
        decay = min(0.998, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(ema.values()), list(model.state_dict().values()), 1 - decay)
        now = time.time()
        spent, last = spent + now - last, now
        row = torch.stack([each.mean(), (each * weight[t]).mean()]).detach()
        mean = row if mean is None else mean.lerp(row, 0.01)
        if step % 50 == 0:
            print(f"step {step} min {spent / 60:.1f} lr {lr:.5f} loss {mean[0]:.4f} weighted {mean[1]:.4f}", flush=True)
        if now - saved > 150 or spent >= a.minutes * 60:
            torch.save(dict(model=model.state_dict(), opt=opt.state_dict(), ema=ema, step=step, spent=spent, scale=data.scale), str(file) + ".new")
            pathlib.Path(str(file) + ".new").rename(file)
            data.refresh()
            saved = now


if __name__ == "__main__":
    main()
