#!/usr/bin/env python3
"""Steps of SD 1.5 by sd-worker and by OpenVINO in turn, one of each, on the same weights.

    pip install torch diffusers transformers accelerate openvino
    python3 benches/beside_openvino.py --model /tmp/sd15 --make --size 512 --dtype bf16 --rounds 5

A machine that others use too may change its speed by two within a minute, so what two programs took one after the other says
little. Here both are loaded, and the worker is halted (SIGSTOP) at the end of each of its steps, while OpenVINO makes one. Prints
every pair, the medians, and the median of the pairs' ratios. `--make` writes a model of the real shapes with random weights first.
"""

import argparse
import gc
import json
import signal
import socket
import statistics
import subprocess
import time
import urllib.request
from pathlib import Path

import openvino
import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

# Steps before the first pair: pages are touched, prompts read.
WARM_UP = 2


def random_weights(make):
    """A module in f16 with small random weights, never held in f32."""
    with torch.device("meta"):
        module = make()
    module = module.half().to_empty(device="cpu")
    for name, numbers in [*module.named_parameters(), *module.named_buffers()]:
        if "position_ids" in name:
            numbers.data.copy_(torch.arange(numbers.numel()).view(numbers.shape))
        elif "norm" in name and name.endswith("weight"):
            numbers.data.fill_(1)
        else:
            numbers.data.uniform_(-0.02, 0.02)
    return module


def make_model(folder):
    """SD 1.5's shapes as a diffusers folder, without a tokenizer: the worker has CLIP's."""
    unet = random_weights(lambda: UNet2DConditionModel(
        sample_size=64, cross_attention_dim=768, attention_head_dim=8))
    vae = random_weights(lambda: AutoencoderKL(
        sample_size=512, block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=2))
    text = random_weights(lambda: CLIPTextModel(CLIPTextConfig(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, projection_dim=768)))
    scheduler = EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    for name, part in {"unet": unet, "vae": vae, "text_encoder": text, "scheduler": scheduler}.items():
        part.save_pretrained(folder / name)
    index = {"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"],
             "vae": ["diffusers", "AutoencoderKL"], "text_encoder": ["transformers", "CLIPTextModel"],
             "tokenizer": ["transformers", "CLIPTokenizer"], "scheduler": ["diffusers", "EulerDiscreteScheduler"]}
    (folder / "model_index.json").write_text(json.dumps(index))


class Unet(torch.nn.Module):
    def __init__(self, folder):
        super().__init__()
        self.unet = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32).eval()

    def forward(self, latents, timestep, prompt):
        return self.unet(latents, timestep, prompt, return_dict=False)[0]


def openvino_step(folder, side, dtype):
    """A function that makes one guided step: a batch of two."""
    # Traced at a small size: at the real one, torch alone would need gigabytes for its scores.
    inputs = [torch.randn(2, 4, 16, 16), torch.tensor([500]), torch.randn(2, 77, 768)]
    with torch.no_grad():
        model = openvino.convert_model(Unet(folder), example_input=tuple(inputs))
    inputs[0] = torch.randn(2, 4, side, side)
    model.reshape({port: openvino.PartialShape(list(tensor.shape)) for port, tensor in zip(model.inputs, inputs)})
    hints = {"INFERENCE_PRECISION_HINT": dtype, "PERFORMANCE_HINT": "LATENCY"}
    compiled = openvino.Core().compile_model(model, "CPU", hints)
    del model
    gc.collect()
    arrays = [tensor.numpy() for tensor in inputs]
    return lambda: compiled(arrays)


class Worker:
    """A worker that paints one picture, step by step when told."""

    def __init__(self, program, folder, size, dtype, steps):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{free.getsockname()[1]}"
        command = [program, "serve", "--model", folder, "--dtype", dtype, "--port", self.url.rsplit(":")[-1]]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not self.ready():
            time.sleep(0.1)
        body = {"prompt": "a robot", "negative_prompt": "blurry", "width": size, "height": size, "steps": steps,
                "guidance_scale": 7.5, "sampler": "euler", "seed": 1}
        request = urllib.request.Request(f"{self.url}/txt2img", json.dumps(body).encode(),
                                         {"Content-Type": "application/json", "Accept": "text/event-stream"})
        self.events = urllib.request.urlopen(request)

    def ready(self):
        if self.process.poll() is not None:
            raise SystemExit("the worker ended before it was ready")
        try:
            return urllib.request.urlopen(f"{self.url}/ready", timeout=1).status == 200
        except OSError:
            return False

    def step(self):
        self.process.send_signal(signal.SIGCONT)
        for line in self.events:
            if line.startswith(b"data: {") and json.loads(line[6:])["type"] == "progress":
                break
        self.process.send_signal(signal.SIGSTOP)


def seconds(run):
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--worker", default="target/release/sd-worker", help="the program")
    args.add_argument("--model", type=Path, required=True, help="a diffusers folder of SD 1.5's shapes")
    args.add_argument("--make", action="store_true", help="write that folder first")
    args.add_argument("--size", type=int, default=512, help="side of the picture in pixels, a multiple of 64")
    args.add_argument("--dtype", choices=["f32", "bf16"], default="bf16")
    args.add_argument("--rounds", type=int, default=5)
    args = args.parse_args()
    if args.make:
        make_model(args.model)
    theirs = openvino_step(args.model, args.size // 8, args.dtype)
    for _ in range(WARM_UP):
        theirs()
    # One step more than is timed, so that the last one is not followed by the picture.
    worker = Worker(args.worker, args.model, args.size, args.dtype, WARM_UP + args.rounds + 1)
    try:
        for _ in range(WARM_UP):
            worker.step()
        pairs = []
        for _ in range(args.rounds):
            pairs.append((seconds(worker.step), seconds(theirs)))
            print(f"sd-worker {pairs[-1][0]:.3f} s, OpenVINO {pairs[-1][1]:.3f} s", flush=True)
    finally:
        worker.process.kill()
        worker.process.send_signal(signal.SIGCONT)
        worker.process.wait()
    ours, theirs = (statistics.median(column) for column in zip(*pairs))
    ratio = statistics.median(a / b for a, b in pairs)
    print(f"{args.size} {args.dtype}: medians {ours:.3f} and {theirs:.3f} s, {ours / theirs:.2f}; of the pairs' ratios {ratio:.2f}")


if __name__ == "__main__":
    main()
