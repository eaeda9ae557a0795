//! CLIP's token ids as transformers makes them, and chunks as A1111 cuts them. Exact.
//! Recipe: `tests/fixtures/text/make_text.py`.

use std::path::PathBuf;

use sd_worker::pipeline::text::{ClipTokenizer, Padding, TextError, chunks, plain, weighted};
use serde_json::Value;

fn fixture(name: &str) -> Value {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/text")
        .join(name);
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

#[test]
fn ids_equal_those_of_transformers() {
    let tokenizer = ClipTokenizer::built_in(Padding::End).unwrap();
    for row in fixture("tokens.json").as_array().unwrap() {
        let text = row["text"].as_str().unwrap();
        assert_eq!(tokenizer.encode(text).unwrap(), ids(&row["ids"]), "{text:?}");
    }
    assert_eq!((tokenizer.bos, tokenizer.eos, tokenizer.pad), (49406, 49407, 49407));
    assert_eq!(ClipTokenizer::built_in(Padding::Bang).unwrap().pad, 0);
}

#[test]
fn a_text_encoder_that_knows_fewer_tokens_is_refused() {
    let tokenizer = ClipTokenizer::built_in(Padding::End).unwrap();
    assert!(tokenizer.fits(49408).is_ok());
    let error = tokenizer.fits(100).unwrap_err();
    assert!(
        matches!(
            error,
            TextError::Vocabulary {
                largest: 49407,
                tokens: 100
            }
        ),
        "{error}"
    );
}

#[test]
fn long_prompts_are_cut_where_a1111_cuts_them() {
    let tokenizer = ClipTokenizer::built_in(Padding::Bang).unwrap();
    for row in fixture("chunks.json").as_array().unwrap() {
        let text = row["text"].as_str().unwrap();
        let found = chunks(&tokenizer, &plain(text)).unwrap();
        let expected = row["chunks"].as_array().unwrap();
        assert_eq!(found.len(), expected.len(), "{text}");
        for (chunk, tokens) in found.iter().zip(expected) {
            let mut padded = vec![49406];
            padded.extend(ids(tokens));
            padded.push(49407);
            padded.resize(77, 0);
            assert_eq!(chunk.tokens, padded, "{text}");
            assert!(!chunk.is_weighted());
        }
    }
}

#[test]
fn weights_follow_their_tokens_and_break_fills_the_chunk() {
    let tokenizer = ClipTokenizer::built_in(Padding::End).unwrap();
    let found = chunks(&tokenizer, &weighted("a (red cat:1.5) BREAK [dog]")).unwrap();
    assert_eq!(found.len(), 2);
    assert_eq!(found[0].tokens[..6], [49406, 320, 736, 2368, 49407, 49407]);
    assert_eq!(found[0].weights[..6], [1.0, 1.0, 1.5, 1.5, 1.0, 1.0]);
    assert_eq!(found[1].tokens[..3], [49406, 1929, 49407]);
    assert!((found[1].weights[1] - 1.0 / 1.1).abs() < 1e-6);
}

#[test]
fn a_folder_may_have_vocab_and_merges_or_one_json() {
    let vocab = br#"{"!":0,"a":1,"b":2,"b</w>":3,"a</w>":4,"ab</w>":5,"<|startoftext|>":6,"<|endoftext|>":7}"#;
    let merges = b"#version: 0.2\na b</w>\n";
    let map = br#"{"pad_token":"!"}"#;
    let config = br#"{"pad_token":"<|endoftext|>"}"#;
    let read = |name: &str| match name {
        "vocab.json" => Some(vocab.to_vec()),
        "merges.txt" => Some(merges.to_vec()),
        "special_tokens_map.json" => Some(map.to_vec()),
        "tokenizer_config.json" => Some(config.to_vec()),
        _ => None,
    };
    let tokenizer = ClipTokenizer::from_files(&read).unwrap();
    assert_eq!(tokenizer.encode("Ab a").unwrap(), [5, 4]);
    assert_eq!((tokenizer.bos, tokenizer.eos, tokenizer.pad), (6, 7, 0));

    let json =
        br#"{"version":"1.0","truncation":{"direction":"Right","max_length":1,"strategy":"LongestFirst","stride":0},
        "padding":null,"added_tokens":[],"normalizer":{"type":"Lowercase"},"pre_tokenizer":null,"post_processor":null,
        "decoder":null,"model":{"type":"BPE","dropout":null,"unk_token":"<|endoftext|>","continuing_subword_prefix":"",
        "end_of_word_suffix":"</w>","fuse_unk":false,"vocab":{"a":0,"b</w>":1,"ab</w>":2,"<|startoftext|>":3,
        "<|endoftext|>":4},"merges":[]}}"#;
    let read = |name: &str| (name == "tokenizer.json").then(|| json.to_vec());
    let tokenizer = ClipTokenizer::from_files(&read).unwrap();
    assert_eq!(
        tokenizer.encode("AB").unwrap(),
        [0, 1],
        "the file's truncation is not ours"
    );
    assert_eq!(tokenizer.pad, 4);
}

#[test]
fn a_folder_without_its_files_says_which() {
    let error = ClipTokenizer::from_files(&|_| None).err().unwrap();
    assert!(matches!(error, TextError::NoTokenizer));
    let error = ClipTokenizer::from_files(&|name| (name == "tokenizer.json").then(|| b"{".to_vec()))
        .err()
        .unwrap();
    assert!(
        error.to_string().starts_with("tokenizer.json cannot be used"),
        "{error}"
    );
}
