"""Makes the CLIP-format tokenizer: byte alphabet, word ends `</w>`, merges learnt from the captions."""

import argparse
import json
import pathlib

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from data import Scenes

START, END = "<|startoftext|>", "<|endoftext|>"
WORDS = (
    "photo photograph picture image painting drawing illustration render digital art vector icon sticker logo emoji "
    "best quality masterpiece beautiful cute funny happy sad bright dark colorful colourful realistic detailed sharp blurry "
    "low bad ugly deformed cropped watermark text noise with and in of on at the an for from by under over two three many "
    "standing sitting flying night day light sky sea grass snow forest city street table room"
).split()
SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def parts(tok):
    """The normaliser and pre-tokeniser of CLIP."""
    tok.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tok.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(SPLIT), "removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return tok


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--dir", default="run")
    p.add_argument("--merges", type=int, default=700)
    a = p.parse_args()
    scenes = Scenes(7)
    captions = [scenes.draw()[1] for _ in range(12000)]
    captions += [" ".join(WORDS)] * 40

    tok = parts(Tokenizer(models.BPE(end_of_word_suffix="</w>")))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=512 + a.merges, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    tok.train_from_iterator(captions, trainer)
    merges = [tuple(m) for m in json.loads(tok.to_str())["model"]["merges"]]
    names = alphabet + [c + "</w>" for c in alphabet]
    names += [m for m in dict.fromkeys("".join(m) for m in merges) if m not in set(names)]
    vocab = {n: i for i, n in enumerate(names + [START, END])}

    tok = parts(Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token=END, end_of_word_suffix="</w>",
                                     continuing_subword_prefix="", fuse_unk=False)))
    tok.decoder = decoders.ByteLevel()
    tok.add_special_tokens([START, END])
    tok.post_processor = processors.RobertaProcessing(
        (END, vocab[END]), (START, vocab[START]), trim_offsets=False, add_prefix_space=False
    )
    out = pathlib.Path(a.dir) / "tokenizer"
    out.mkdir(parents=True, exist_ok=True)
    tok.save(str(out / "tokenizer.json"))
    (out / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False))
    (out / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(m) for m in merges) + "\n")
    token = lambda t: dict(__type="AddedToken", content=t, lstrip=False, normalized=True, rstrip=False, single_word=False)
    (out / "tokenizer_config.json").write_text(json.dumps(dict(
        add_prefix_space=False, bos_token=token(START), eos_token=token(END), unk_token=token(END), pad_token=END,
        do_lower_case=True, errors="replace", model_max_length=77, tokenizer_class="CLIPTokenizer"), indent=2) + "\n")
    (out / "special_tokens_map.json").write_text(json.dumps(dict(
        bos_token=START, eos_token=END, pad_token=END, unk_token=END), indent=2) + "\n")
    print("vocabulary", len(vocab), "last ids", vocab[START], vocab[END])
    for c in ("a panda on a sky blue background", "Zürich 42 xylophones!"):
        print(tok.encode(c).tokens)


if __name__ == "__main__":
    main()
