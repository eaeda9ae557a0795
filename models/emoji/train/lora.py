"""Trains a style LoRA on the exported model and writes it in kohya's format (lora_unet_* keys, alpha per layer, f16).

The style is `night`: every scene, background included, in moonlit blues. The captions are those of the model.
"""

import argparse
import math
import pathlib
import random
import time

import numpy as np
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from peft import LoraConfig
from safetensors.torch import save_file

from data import SUBJECTS, Scenes
from encode import load_vae
from fused import fuse
from text import load_tokenizer
from unet import SCHEDULE, load_text

LAYERS = ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"]
DARK, LIGHT = np.float32([8, 12, 48]) / 255, np.float32([205, 225, 255]) / 255


def night(picture):
    """Luminance from navy to moonlight, a fifth of the hue kept."""
    light = (picture @ np.float32([0.3, 0.59, 0.11]))[..., None] ** 1.3
    return 0.8 * (DARK + (LIGHT - DARK) * light) + 0.2 * picture * np.float32([0.5, 0.55, 0.9])


def encoded(folder, count, seed):
    """Latents of night scenes and their captions."""
    vae, scenes = load_vae(folder), Scenes(seed)
    latents, texts = [], []
    for at in range(0, count, 16):
        rows = [scenes.draw((at + i) % len(SUBJECTS)) for i in range(16)]
        x = torch.from_numpy(np.stack([night(r[0]) for r in rows])).permute(0, 3, 1, 2) * 2 - 1
        with torch.no_grad():
            latents.append(vae.encode(x.contiguous(memory_format=torch.channels_last)).latent_dist.mean)
        texts += [r[1] for r in rows]
    return torch.cat(latents), texts


def export(unet, file, alpha):
    state = {}
    for name, value in unet.state_dict().items():
        if ".lora_A." in name or ".lora_B." in name:
            layer, side = name.split(".lora_")
            key = "lora_unet_" + layer.replace(".", "_")
            state[key + (".lora_down.weight" if side[0] == "A" else ".lora_up.weight")] = value.half().contiguous()
            state[key + ".alpha"] = torch.tensor(float(alpha)).half()
    rank = next(v.shape[0] for k, v in state.items() if "lora_down" in k)
    about = dict(ss_network_module="networks.lora", ss_network_dim=str(rank), ss_network_alpha=str(alpha), ss_output_name=file.stem)
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, file, metadata=about)
    print(f"{file}: {len(state) // 3} layers, {file.stat().st_size / 1000:.0f} kB")


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--minutes", type=float, default=5)
    p.add_argument("--dir", default="run")
    p.add_argument("--model", default="export")
    p.add_argument("--out", default="night.safetensors")
    p.add_argument("--seed", type=int, default=4)
    p.add_argument("--rank", type=int, default=6)
    p.add_argument("--batch", type=int, default=16)
    p.add_argument("--lr", type=float, default=4e-3)
    p.add_argument("--fused", action="store_true")
    a = p.parse_args()
    torch.manual_seed(a.seed)
    r = random.Random(a.seed)
    latents, texts = encoded(a.dir, 1024, 5000 + a.seed)
    tok = load_tokenizer(a.dir)
    text = load_text(a.dir, tok)
    scale = torch.load(pathlib.Path(a.dir) / "unet.pt", weights_only=False)["scale"]
    unet = UNet2DConditionModel.from_pretrained(a.model, subfolder="unet", torch_dtype=torch.float32).requires_grad_(False)
    unet.set_attn_processor(AttnProcessor())
    unet.add_adapter(LoraConfig(r=a.rank, lora_alpha=a.rank, init_lora_weights=True, target_modules=LAYERS))
    if a.fused:
        fuse(unet)
    params = [v for v in unet.parameters() if v.requires_grad]
    opt = torch.optim.AdamW(params, lr=a.lr, weight_decay=0)
    noise_at = DDPMScheduler(**SCHEDULE)
    half = (noise_at.alphas_cumprod / (1 - noise_at.alphas_cumprod)).pow(-0.25)
    weight = half / (half.square().sum() / half.sum())
    start, step, mean = time.time(), 0, None
    while (spent := time.time() - start) < a.minutes * 60:
        for g in opt.param_groups:
            g["lr"] = a.lr * min(1, (step + 1) / 20) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * spent / a.minutes / 60)))
        rows = [r.randrange(len(texts)) for _ in range(a.batch)]
        x = latents[rows] * scale
        ids = torch.tensor([e.ids for e in tok.encode_batch(["" if r.random() < 0.1 else texts[i] for i in rows])])
        t = torch.multinomial(half, a.batch, replacement=True)
        noise = torch.randn_like(x)
        with torch.autocast("cpu", torch.bfloat16):
            guess = unet(noise_at.add_noise(x, noise, t), t, text(ids).last_hidden_state).sample
        each = (guess.float() - noise).square().mean((1, 2, 3))
        (each * weight[t]).mean().backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        opt.step()
        opt.zero_grad(set_to_none=True)
        step += 1
        mean = each.mean().item() if mean is None else 0.98 * mean + 0.02 * each.mean().item()
        if step % 25 == 0:
            print(f"step {step} min {spent / 60:.1f} loss {mean:.4f}", flush=True)
    export(unet, pathlib.Path(a.out), a.rank)


if __name__ == "__main__":
    main()
