"""Writes the transformer as a GGUF file under its original (Black Forest Labs) names, matrices in Q8_0, Q4_0 or F16.

    gguf_flux.py --model models/emoji-flux --kind Q4_0 --out emoji-flux-Q4_0.gguf
"""

import argparse
import pathlib

import gguf
import numpy as np
from safetensors.numpy import load_file

BLOCK = 32


def original(t):
    """Original names and fused tensors from diffusers' names."""
    out = {}
    cat = lambda names, kind: np.concatenate([t[f"{n}.{kind}"] for n in names])
    plain = {"x_embedder": "img_in", "context_embedder": "txt_in", "proj_out": "final_layer.linear"}
    for part, own in (("timestep_embedder", "time_in"), ("text_embedder", "vector_in"), ("guidance_embedder", "guidance_in")):
        plain |= {f"time_text_embed.{part}.linear_1": f"{own}.in_layer", f"time_text_embed.{part}.linear_2": f"{own}.out_layer"}
    for kind in ("weight", "bias"):
        for theirs, own in plain.items():
            out[f"{own}.{kind}"] = t[f"{theirs}.{kind}"]
        scale, shift = np.split(t[f"norm_out.linear.{kind}"], 2)
        out[f"final_layer.adaLN_modulation.1.{kind}"] = np.concatenate([shift, scale])
    block = 0
    while f"transformer_blocks.{block}.attn.to_q.weight" in t:
        at, to = f"transformer_blocks.{block}", f"double_blocks.{block}"
        for kind in ("weight", "bias"):
            for side, norm, qkv, proj, mlp in (
                ("img", "norm1", ("to_q", "to_k", "to_v"), "to_out.0", "ff"),
                ("txt", "norm1_context", ("add_q_proj", "add_k_proj", "add_v_proj"), "to_add_out", "ff_context"),
            ):
                out[f"{to}.{side}_mod.lin.{kind}"] = t[f"{at}.{norm}.linear.{kind}"]
                out[f"{to}.{side}_attn.qkv.{kind}"] = cat([f"{at}.attn.{n}" for n in qkv], kind)
                out[f"{to}.{side}_attn.proj.{kind}"] = t[f"{at}.attn.{proj}.{kind}"]
                out[f"{to}.{side}_mlp.0.{kind}"] = t[f"{at}.{mlp}.net.0.proj.{kind}"]
                out[f"{to}.{side}_mlp.2.{kind}"] = t[f"{at}.{mlp}.net.2.{kind}"]
        for side, added in (("img", ""), ("txt", "added_")):
            for name, letter in (("query", "q"), ("key", "k")):
                out[f"{to}.{side}_attn.norm.{name}_norm.scale"] = t[f"{at}.attn.norm_{added}{letter}.weight"]
        block += 1
    block = 0
    while f"single_transformer_blocks.{block}.attn.to_q.weight" in t:
        at, to = f"single_transformer_blocks.{block}", f"single_blocks.{block}"
        for kind in ("weight", "bias"):
            out[f"{to}.modulation.lin.{kind}"] = t[f"{at}.norm.linear.{kind}"]
            out[f"{to}.linear1.{kind}"] = cat([f"{at}.attn.to_q", f"{at}.attn.to_k", f"{at}.attn.to_v", f"{at}.proj_mlp"], kind)
            out[f"{to}.linear2.{kind}"] = t[f"{at}.proj_out.{kind}"]
        for name, letter in (("query", "q"), ("key", "k")):
            out[f"{to}.norm.{name}_norm.scale"] = t[f"{at}.attn.norm_{letter}.weight"]
        block += 1
    return out


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--model", default=str(pathlib.Path(__file__).resolve().parents[1]))
    p.add_argument("--kind", choices=["Q8_0", "Q4_0", "F16"], default="Q8_0")
    p.add_argument("--out", required=True)
    a = p.parse_args()
    tensors = original(load_file(pathlib.Path(a.model) / "transformer" / "diffusion_pytorch_model.safetensors"))
    kind = gguf.GGMLQuantizationType[a.kind]
    writer = gguf.GGUFWriter(a.out, "flux")
    writer.add_file_type(gguf.LlamaFileType["MOSTLY_F16" if a.kind == "F16" else f"MOSTLY_{a.kind}"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for name, value in tensors.items():
        value = value.astype(np.float32)
        if value.ndim == 2 and value.shape[1] % BLOCK == 0:
            writer.add_tensor(name, gguf.quantize(value, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    print(f"{a.out}: {len(tensors)} tensors, {pathlib.Path(a.out).stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
