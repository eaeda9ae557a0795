"""Trains FLUX's two small encoders on captions alone: CLIP (pooled) and T5 (all tokens) must tell what the caption says."""

import argparse
import io
import math
import pathlib
import random
import time

import shared
import sentencepiece
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel, T5TokenizerFast

from data import COLOURS, PLACES, SIZES, SUBJECTS
from text import LENGTH, load_tokenizer, sample
from tokenizer import END, START, WORDS

PARTS = [len(SUBJECTS), len(COLOURS), len(SIZES), len(PLACES)]


def make_pieces(folder, seed):
    """A unigram vocabulary for T5 (pad 0, end 1, unknown 2) in tokenizer.json."""
    out = pathlib.Path(folder) / "tokenizer_2"
    out.mkdir(parents=True, exist_ok=True)
    r = random.Random(seed)
    lines = [sample(r)[0] for _ in range(6000)] + [" ".join(WORDS)] * 20
    lines += [" ".join(c) for c in ("abcdefghijklm", "nopqrstuvwxyz", "ABCDEFGHIJKLM", "NOPQRSTUVWXYZ", "0123456789", ".,:;!?-'\"()")] * 20
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, vocab_size=640, model_type="unigram", pad_id=0, eos_id=1, unk_id=2,
        bos_id=-1, pad_piece="<pad>", eos_piece="</s>", unk_piece="<unk>", character_coverage=1.0, hard_vocab_limit=False,
        num_threads=1, minloglevel=2)
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    vocab = [(pieces.id_to_piece(i), pieces.get_score(i)) for i in range(pieces.get_piece_size())]
    T5TokenizerFast(vocab=vocab, extra_ids=0, model_max_length=shared.T5_LENGTH).save_pretrained(out)
    return len(vocab)


def load_pieces(folder):
    return T5TokenizerFast.from_pretrained(pathlib.Path(folder) / "tokenizer_2")


def piece_ids(tok, texts):
    """As the pipeline encodes: padded to T5_LENGTH, no mask afterwards."""
    return tok(texts, padding="max_length", max_length=shared.T5_LENGTH, truncation=True, return_tensors="pt").input_ids


def make_clip(tok):
    ids = {t: tok.token_to_id(t) for t in (START, END)}
    return CLIPTextModel(CLIPTextConfig(
        vocab_size=tok.get_vocab_size(), hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=LENGTH, hidden_act="quick_gelu", projection_dim=128, bos_token_id=ids[START],
        eos_token_id=ids[END], pad_token_id=ids[END]))


def make_t5(size):
    return T5EncoderModel(T5Config(
        vocab_size=size, d_model=128, d_kv=32, d_ff=256, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu",
        dropout_rate=0.0, pad_token_id=0, eos_token_id=1, tie_word_embeddings=False))


def load_encoders(folder):
    """Both tokenizers and both encoders, frozen."""
    state = torch.load(pathlib.Path(folder) / "encoders.pt", weights_only=False)
    tok, pieces = load_tokenizer(folder), load_pieces(folder)
    clip, t5 = make_clip(tok), make_t5(state["size"])
    clip.load_state_dict(state["clip"])
    t5.load_state_dict(state["t5"])
    return tok, pieces, clip.eval().requires_grad_(False), t5.eval().requires_grad_(False)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--minutes", type=float, default=8)
    p.add_argument("--dir", default="run")
    p.add_argument("--seed", type=int, default=6)
    p.add_argument("--batch", type=int, default=48)
    a = p.parse_args()
    torch.manual_seed(a.seed)
    size = make_pieces(a.dir, a.seed)
    tok, pieces = load_tokenizer(a.dir), load_pieces(a.dir)
    clip, t5 = make_clip(tok), make_t5(size)
    # Small embeddings learn quickly; padding starts as nothing: what it says is then what it hears from the words.
    t5.shared.weight.data.mul_(0.1)[0] = 0
    heads = nn.ModuleList([nn.Linear(128, sum(PARTS)) for _ in range(2)])
    params = [*clip.parameters(), *t5.parameters(), *heads.parameters()]
    print("parameters", *(sum(v.numel() for v in m.parameters()) for m in (clip, t5)), "pieces", size, flush=True)
    opt = torch.optim.AdamW(params, lr=2e-3, betas=(0.9, 0.98), weight_decay=0.01)
    r, start, step, right = random.Random(a.seed), time.time(), 0, torch.zeros(3, 4)
    while (spent := time.time() - start) < a.minutes * 60:
        for g in opt.param_groups:
            g["lr"] = 2e-3 * min(1, (step + 1) / 50) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * spent / a.minutes / 60)))
        texts, labels = zip(*(sample(r) for _ in range(a.batch)))
        labels = torch.tensor(labels)
        ids = torch.tensor([c.ids for c in tok.encode_batch(list(texts))])
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            pooled = clip(ids).pooler_output
            tokens = t5(input_ids=piece_ids(pieces, list(texts))).last_hidden_state
        # Any single T5 token may be asked: attention then finds the caption's meaning wherever it looks. Their mean is quicker to learn.
        some = tokens[torch.arange(len(texts)), torch.randint(tokens.shape[1], (len(texts),))]
        loss, hits = 0, []
        for head, vector in zip((heads[0], heads[1], heads[1]), (pooled, tokens.mean(1), some)):
            guess = head(vector.float()).split(PARTS, 1)
            loss = loss + sum(F.cross_entropy(g, labels[:, i]) for i, g in enumerate(guess))
            hits.append(torch.stack([(g.argmax(1) == labels[:, i]).float().mean() for i, g in enumerate(guess)]))
        opt.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        opt.step()
        step += 1
        right = right.lerp(torch.stack(hits), 0.05)
        if step % 50 == 0:
            print(f"step {step} min {spent / 60:.1f} loss {loss.item():.4f} right", [[round(v, 3) for v in row] for row in right.tolist()], flush=True)
        if step % 200 == 0:
            torch.save(dict(clip=clip.state_dict(), t5=t5.state_dict(), size=size), pathlib.Path(a.dir) / "encoders.pt")
    torch.save(dict(clip=clip.state_dict(), t5=t5.state_dict(), size=size), pathlib.Path(a.dir) / "encoders.pt")


if __name__ == "__main__":
    main()
