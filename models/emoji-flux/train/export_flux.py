"""Writes the tiny FLUX as a diffusers folder (FluxPipeline) in f16."""

import argparse
import json
import pathlib
import shutil

import shared
import diffusers
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel

from encode import load_vae
from encoders import load_encoders
from export import component
from flux import CONFIG


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--dir", default="run")
    p.add_argument("--out", default="export-flux")
    a = p.parse_args()
    out = pathlib.Path(a.out)
    saved = torch.load(pathlib.Path(a.dir) / "flux.pt", weights_only=False)
    model = FluxTransformer2DModel(**CONFIG)
    model.load_state_dict(saved["ema"])
    component(model, out / "transformer", "diffusion_pytorch_model.safetensors")
    vae = load_vae(a.dir)
    vae.register_to_config(scaling_factor=round(saved["scale"], 5), shift_factor=round(saved["shift"], 5), force_upcast=False)
    component(vae, out / "vae", "diffusion_pytorch_model.safetensors")
    _, _, clip, t5 = load_encoders(a.dir)
    for encoder, kind in ((clip, "CLIPTextModel"), (t5, "T5EncoderModel")):
        encoder.config.architectures = [kind]
        encoder.config.dtype = torch.float16
    component(clip, out / "text_encoder", "model.safetensors", "text_model.")
    component(t5, out / "text_encoder_2", "model.safetensors", drop="encoder.embed_tokens.weight")
    for name in ("tokenizer", "tokenizer_2"):
        shutil.copytree(pathlib.Path(a.dir) / name, out / name, dirs_exist_ok=True)
    FlowMatchEulerDiscreteScheduler(
        base_image_seq_len=256, base_shift=0.5, max_image_seq_len=4096, max_shift=1.15, shift=3.0, use_dynamic_shifting=True
    ).save_pretrained(out / "scheduler")
    index = {
        "_class_name": "FluxPipeline",
        "_diffusers_version": diffusers.__version__,
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "T5TokenizerFast"],
        "transformer": ["diffusers", "FluxTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (out / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    total = sum(f.stat().st_size for f in out.rglob("*") if f.is_file())
    print(f"step {saved['step']}, {total / 1e6:.2f} MB in {out}")


if __name__ == "__main__":
    main()
