"""Writes the trained parts as a diffusers folder in f16."""

import argparse
import json
import pathlib
import shutil

import diffusers
import torch
from diffusers import DPMSolverMultistepScheduler, UNet2DConditionModel
from safetensors.torch import save_file

from encode import load_vae
from text import load_tokenizer
from unet import CONFIG, SCHEDULE, load_text


def component(model, out, file, prefix="", drop="position_ids"):
    """Weights in f16 and the configuration; `drop` ends the name of what other weights repeat."""
    out.mkdir(parents=True, exist_ok=True)
    state = {prefix + k: v.half().contiguous() for k, v in model.state_dict().items() if not k.endswith(drop)}
    save_file(state, out / file, metadata={"format": "pt"})
    model.save_config(out) if hasattr(model, "save_config") else model.config.save_pretrained(out)
    config = out / "config.json"
    rows = {k: v for k, v in json.loads(config.read_text()).items() if k not in ("_name_or_path", "transformers_version")}
    config.write_text(json.dumps(rows, indent=2) + "\n")


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--dir", default="run")
    p.add_argument("--out", default="export")
    a = p.parse_args()
    out = pathlib.Path(a.out)
    saved = torch.load(pathlib.Path(a.dir) / "unet.pt", weights_only=False)
    unet = UNet2DConditionModel(**CONFIG)
    unet.load_state_dict(saved["ema"])
    component(unet, out / "unet", "diffusion_pytorch_model.safetensors")
    vae = load_vae(a.dir)
    vae.register_to_config(scaling_factor=round(saved["scale"], 5), force_upcast=False)
    component(vae, out / "vae", "diffusion_pytorch_model.safetensors")
    text = load_text(a.dir, load_tokenizer(a.dir))
    text.config.architectures = ["CLIPTextModel"]
    text.config.dtype = torch.float16
    component(text, out / "text_encoder", "model.safetensors", "text_model.")
    shutil.copytree(pathlib.Path(a.dir) / "tokenizer", out / "tokenizer", dirs_exist_ok=True)
    DPMSolverMultistepScheduler(
        **SCHEDULE, algorithm_type="dpmsolver++", solver_order=2, timestep_spacing="trailing"
    ).save_pretrained(out / "scheduler")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": diffusers.__version__,
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (out / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    total = sum(f.stat().st_size for f in out.rglob("*") if f.is_file())
    print(f"step {saved['step']}, {total / 1e6:.2f} MB in {out}")


if __name__ == "__main__":
    main()
