"""Finds the recipe of `emoji` beside this one: same data, captions, CLIP tokenizer, VAE and latents."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "emoji" / "train"))

T5_LENGTH = 64
