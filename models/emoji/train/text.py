"""Trains the CLIP text encoder before the UNet: every token from the end mark on must tell subject, background, size and place.

A frozen encoder that already separates them spares the UNet most of its work. Resumable.
"""

import argparse
import math
import pathlib
import random
import time

import torch
import torch.nn as nn
import torch.nn.functional as F
from tokenizers import Tokenizer
from transformers import CLIPTextConfig, CLIPTextModel

from data import COLOURS, PLACES, SIZES, SUBJECTS, Scenes, caption, clashes
from tokenizer import END, START, WORDS

LENGTH = 77


def load_tokenizer(folder):
    """Encodes texts as the worker does: start, tokens, end, padded with end to 77."""
    tok = Tokenizer.from_file(str(pathlib.Path(folder) / "tokenizer" / "tokenizer.json"))
    tok.enable_truncation(LENGTH)
    tok.enable_padding(length=LENGTH, pad_id=tok.token_to_id(END), pad_token=END)
    return tok


def make_model(tok):
    ids = {t: tok.token_to_id(t) for t in (START, END)}
    return CLIPTextModel(CLIPTextConfig(
        vocab_size=tok.get_vocab_size(), hidden_size=192, intermediate_size=512, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=LENGTH, hidden_act="quick_gelu", projection_dim=192,
        bos_token_id=ids[START], eos_token_id=ids[END], pad_token_id=ids[END], attention_dropout=0.0))


def sample(r):
    """A caption and its labels, without a picture; some captions carry words that mean nothing."""
    while True:
        subject = r.randrange(len(SUBJECTS))
        named = r.random() > 0.1
        colour = r.randrange(len(COLOURS)) if named else 0
        if not clashes(subject, COLOURS[colour]):
            break
    size = r.choices(range(3), (0.6, 0.2, 0.2))[0]
    place = r.choices(range(5), (0.6, 0.1, 0.1, 0.1, 0.1))[0]
    text = caption(r, subject, COLOURS[colour] if named else None, SIZES[size], PLACES[place])
    if r.random() < 0.15:
        extra = " ".join(r.choice(WORDS[:40]) for _ in range(r.randint(1, 6)))
        text = r.choice([f"{text}, {extra}", f"{extra}, {text}"])
    return text, (subject, colour, size, place)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--minutes", type=float, default=8)
    p.add_argument("--dir", default="run")
    p.add_argument("--seed", type=int, default=2)
    p.add_argument("--batch", type=int, default=48)
    a = p.parse_args()
    torch.manual_seed(a.seed)
    tok = load_tokenizer(a.dir)
    model = make_model(tok)
    heads = nn.Linear(192, len(SUBJECTS) + len(COLOURS) + len(SIZES) + len(PLACES))
    params = list(model.parameters()) + list(heads.parameters())
    opt = torch.optim.AdamW(params, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.01)
    file = pathlib.Path(a.dir) / "text.pt"
    step, spent = 0, 0.0
    if file.exists():
        s = torch.load(file, weights_only=False)
        model.load_state_dict(s["model"]); heads.load_state_dict(s["heads"]); opt.load_state_dict(s["opt"])
        step, spent = s["step"], s["spent"]
    r = random.Random(a.seed + step)
    print("parameters", sum(p.numel() for p in model.parameters()), flush=True)
    last = saved = time.time()
    right = torch.zeros(4)
    while spent < a.minutes * 60:
        for g in opt.param_groups:
            g["lr"] = 1.5e-3 * min(1, (step + 1) / 50) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * spent / a.minutes / 60)))
        texts, labels = zip(*(sample(r) for _ in range(a.batch)))
        codes = tok.encode_batch(list(texts))
        ids = torch.tensor([c.ids for c in codes])
        labels = torch.tensor(labels)
        with torch.autocast("cpu", torch.bfloat16):
            hidden = model(ids).last_hidden_state
        # The end mark and two of the padding after it.
        ends = torch.tensor([min(sum(c.attention_mask), LENGTH) - 1 for c in codes])
        loss = 0
        for k in range(3):
            at = ends if k == 0 else torch.tensor([r.randint(int(e), LENGTH - 1) for e in ends])
            token = hidden[torch.arange(len(at)), at].float()
            guess = heads(token).split([len(SUBJECTS), len(COLOURS), len(SIZES), len(PLACES)], 1)
            loss = loss + sum(F.cross_entropy(g, labels[:, i]) for i, g in enumerate(guess))
        opt.zero_grad(set_to_none=True)
        (loss / 3).backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        opt.step()
        step += 1
        now = time.time()
        spent, last = spent + now - last, now
        hit = torch.stack([(g.argmax(1) == labels[:, i]).float().mean() for i, g in enumerate(guess)])
        right = right.lerp(hit, 0.05)
        if step % 50 == 0:
            print(f"step {step} min {spent / 60:.1f} loss {loss.item() / 3:.4f} right", [round(v, 3) for v in right.tolist()], flush=True)
        if now - saved > 60 or spent >= a.minutes * 60:
            torch.save(dict(model=model.state_dict(), heads=heads.state_dict(), opt=opt.state_dict(), step=step, spent=spent), file)
            saved = now


if __name__ == "__main__":
    main()
