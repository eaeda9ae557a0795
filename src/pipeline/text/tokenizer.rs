//! CLIP's tokenizer: byte-level BPE with `</w>` at the end of words, equal to transformers' `CLIPTokenizer`.
//!
//! Read from `tokenizer.json`, from `vocab.json` with `merges.txt` (as most repositories ship it), or built from the
//! vocabulary inside the crate (OpenAI's, as packaged by open_clip, MIT), which every CLIP of Stable Diffusion shares.

use std::collections::HashMap;

use serde_json::Value;
use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::normalizers::{Lowercase, NFC, Replace, Sequence as Normalizers, replace::ReplacePattern};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior, Tokenizer};

use super::TextError;

const BOS: &str = "<|startoftext|>";
const EOS: &str = "<|endoftext|>";
const WORDS: &str = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";
const MERGES: &str = include_str!("../../../assets/clip/merges.txt");

/// What follows the end token when a prompt is shorter than its chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Padding {
    /// The end token again: CLIP ViT-L.
    End,
    /// `!`, token 0: the OpenCLIP encoders.
    Bang,
}

/// Turns text into CLIP's token ids, without start, end and padding.
pub struct ClipTokenizer {
    inner: Tokenizer,
    /// Id of `<|startoftext|>`.
    pub bos: u32,
    /// Id of `<|endoftext|>`.
    pub eos: u32,
    /// Id that fills a chunk after the end token.
    pub pad: u32,
    /// Id of a comma that ends a word, where long prompts are cut by preference.
    pub comma: Option<u32>,
}

impl ClipTokenizer {
    /// The tokenizer of the vocabulary inside the crate.
    ///
    /// # Errors
    /// The vocabulary is damaged, which a test rules out.
    pub fn built_in(padding: Padding) -> Result<Self, TextError> {
        let merges = read_merges(MERGES)?;
        let pad = match padding {
            Padding::End => EOS,
            Padding::Bang => "!",
        };
        Self::from_vocabulary(vocabulary_of(&merges), merges, pad)
    }

    /// Reads a tokenizer folder through `read`, which gives a file's bytes by its name, or `None` if there is no such
    /// file. The padding token comes from the folder's configuration.
    ///
    /// # Errors
    /// Neither `tokenizer.json` nor `vocab.json` and `merges.txt` are there, or they are damaged.
    pub fn from_files(read: &dyn Fn(&str) -> Option<Vec<u8>>) -> Result<Self, TextError> {
        let pad = padding_token(read).unwrap_or_else(|| EOS.to_owned());
        if let Some(bytes) = read("tokenizer.json") {
            let inner =
                Tokenizer::from_bytes(bytes).map_err(|e| TextError::Damaged("tokenizer.json", e.to_string()))?;
            return Self::finish(inner, &pad);
        }
        let (Some(vocab), Some(merges)) = (read("vocab.json"), read("merges.txt")) else {
            return Err(TextError::NoTokenizer);
        };
        let vocab: HashMap<String, u32> =
            serde_json::from_slice(&vocab).map_err(|e| TextError::Damaged("vocab.json", e.to_string()))?;
        let merges = String::from_utf8(merges).map_err(|e| TextError::Damaged("merges.txt", e.to_string()))?;
        Self::from_vocabulary(vocab.into_iter().collect(), read_merges(&merges)?, &pad)
    }

    fn from_vocabulary(vocab: Vocab, merges: Merges, pad: &str) -> Result<Self, TextError> {
        let wrong = |e: tokenizers::Error| TextError::Damaged("CLIP vocabulary", e.to_string());
        let model = BPE::builder()
            .vocab_and_merges(vocab, merges)
            .continuing_subword_prefix(String::new())
            .end_of_word_suffix("</w>".to_owned())
            .unk_token(EOS.to_owned())
            .build()
            .map_err(wrong)?;
        let spaces = Replace::new(ReplacePattern::Regex(r"\s+".to_owned()), " ").map_err(wrong)?;
        let words = Split::new(
            SplitPattern::Regex(WORDS.to_owned()),
            SplitDelimiterBehavior::Removed,
            true,
        );
        let mut inner = Tokenizer::new(model);
        inner
            .with_normalizer(Some(Normalizers::new(vec![
                NFC.into(),
                spaces.into(),
                Lowercase.into(),
            ])))
            .map_err(wrong)?
            .with_pre_tokenizer(Some(PreTokenizers::new(vec![
                words.map_err(wrong)?.into(),
                ByteLevel::new(false, true, true).into(),
            ])));
        let special = |text| AddedToken::from(text, true);
        inner.add_special_tokens([special(BOS), special(EOS)]).map_err(wrong)?;
        Self::finish(inner, pad)
    }

    fn finish(mut inner: Tokenizer, pad: &str) -> Result<Self, TextError> {
        inner.with_padding(None);
        inner
            .with_truncation(None)
            .map_err(|e| TextError::Damaged("tokenizer", e.to_string()))?;
        let id = |token: &str| {
            inner
                .token_to_id(token)
                .ok_or_else(|| TextError::Damaged("tokenizer", format!("it has no token `{token}`")))
        };
        let (bos, eos, pad, comma) = (id(BOS)?, id(EOS)?, id(pad)?, inner.token_to_id(",</w>"));
        Ok(Self {
            inner,
            bos,
            eos,
            pad,
            comma,
        })
    }

    /// Checks that a text encoder knows as many tokens as there are here.
    ///
    /// # Errors
    /// It knows fewer: every prompt would fail.
    pub fn fits(&self, tokens: usize) -> Result<(), TextError> {
        let largest = self.bos.max(self.eos).max(self.pad);
        if (largest as usize) < tokens {
            Ok(())
        } else {
            Err(TextError::Vocabulary { largest, tokens })
        }
    }

    /// The ids of a text, without start and end token, however many.
    ///
    /// # Errors
    /// The tokenizer file asks for something that this text cannot be given.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TextError> {
        let encoding = self
            .inner
            .encode_fast(text, false)
            .map_err(|e| TextError::Tokenize(e.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }
}

fn read_merges(text: &str) -> Result<Merges, TextError> {
    let lines = text
        .lines()
        .filter(|line| !line.starts_with("#version") && !line.is_empty());
    lines
        .map(|line| match line.split_once(' ') {
            Some((left, right)) if !right.contains(' ') => Ok((left.to_owned(), right.to_owned())),
            _ => Err(TextError::Damaged("merges.txt", format!("`{line}` is no pair"))),
        })
        .collect()
}

/// CLIP's ids follow from its merges: the bytes, the bytes that end a word, the merges in order, start and end.
fn vocabulary_of(merges: &Merges) -> Vocab {
    let bytes = byte_letters();
    let ends = bytes.iter().map(|letter| format!("{letter}</w>"));
    let words = bytes.iter().cloned().chain(ends);
    let words = words.chain(merges.iter().map(|(left, right)| format!("{left}{right}")));
    let words = words.chain([BOS.to_owned(), EOS.to_owned()]);
    words.zip(0u32..).collect()
}

/// GPT-2's letters for the 256 bytes, in CLIP's order: printable bytes stand for themselves and come first.
fn byte_letters() -> Vec<String> {
    let printable = (b'!'..=b'~').chain(0xA1..=0xAC).chain(0xAE..=0xFF);
    let others = (0..68u32).filter_map(|n| char::from_u32(256 + n));
    printable.map(char::from).chain(others).map(String::from).collect()
}

/// The `pad_token` that transformers would use: `special_tokens_map.json` wins over an old `tokenizer_config.json`,
/// one with an `added_tokens_decoder` stands alone.
fn padding_token(read: &dyn Fn(&str) -> Option<Vec<u8>>) -> Option<String> {
    let json = |name: &str| read(name).and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
    let token = |value: &Value| {
        let pad = value.get("pad_token")?;
        pad.as_str()
            .or_else(|| pad.get("content")?.as_str())
            .map(ToOwned::to_owned)
    };
    let config = json("tokenizer_config.json");
    let alone = config
        .as_ref()
        .is_some_and(|config| config.get("added_tokens_decoder").is_some());
    let map = json("special_tokens_map.json").filter(|_| !alone);
    map.as_ref().and_then(token).or_else(|| config.as_ref().and_then(token))
}
