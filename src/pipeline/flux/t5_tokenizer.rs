//! T5's tokenizer: SentencePiece unigram, an end token, padding to a fixed length.

use serde_json::Value;
use tokenizers::Tokenizer;

use super::sentencepiece::tokenizer_json;
use crate::pipeline::text::TextError;
use crate::weights::TokenizerFiles;

/// A unigram tokenizer whose every word is unknown.
const NO_WORDS: &str = r#"{"version": "1.0", "pre_tokenizer": {"type": "WhitespaceSplit"}, "model": {"type": "Unigram",
    "unk_id": 2, "byte_fallback": false, "vocab": [["<pad>", 0.0], ["</s>", 0.0], ["<unk>", 0.0]]}}"#;

/// Turns a prompt into the tokens that FLUX's T5 reads.
pub struct T5Tokenizer {
    inner: Tokenizer,
    pad: u32,
    end: u32,
    longest: Option<usize>,
}

/// A tokenised prompt of fixed length.
#[derive(Clone, Debug, PartialEq)]
pub struct T5Tokens {
    /// Ids, end token and padding included.
    pub ids: Vec<u32>,
    /// Factor of each embedding, 1 for end token and padding.
    pub weights: Vec<f32>,
    /// Tokens of the prompt that did not fit.
    pub dropped: usize,
}

impl T5Tokenizer {
    /// Reads a tokenizer folder: `tokenizer.json`, or else `spiece.model`. Made-up models bring none and get one that knows
    /// no words.
    ///
    /// # Errors
    /// Neither is there, or they are damaged.
    pub fn from_files(files: &TokenizerFiles) -> Result<Self, TextError> {
        if *files == TokenizerFiles::BuiltInClip {
            return Self::from_json(NO_WORDS.as_bytes());
        }
        let mut tokenizer = match (files.read("tokenizer.json"), files.read("spiece.model")) {
            (Some(json), _) => Self::from_json(&json)?,
            (None, Some(model)) => Self::from_sentencepiece(&model)?,
            (None, None) => return Err(TextError::Damaged("tokenizer_2", "it has no tokenizer.json".to_owned())),
        };
        let config: Value = files
            .read("tokenizer_config.json")
            .and_then(|text| serde_json::from_slice(&text).ok())
            .unwrap_or_default();
        let limits = [
            tokenizer.longest,
            config["model_max_length"].as_u64().map(|length| length as usize),
        ];
        tokenizer.longest = limits.into_iter().flatten().filter(|length| *length > 1).min();
        Ok(tokenizer)
    }

    /// Reads `tokenizer.json`.
    ///
    /// # Errors
    /// It is damaged or has no end token.
    pub fn from_json(bytes: &[u8]) -> Result<Self, TextError> {
        let damaged = |e: tokenizers::Error| TextError::Damaged("tokenizer_2/tokenizer.json", e.to_string());
        let mut inner = Tokenizer::from_bytes(bytes).map_err(damaged)?;
        let longest = inner.get_truncation().map(|cut| cut.max_length);
        inner.with_padding(None);
        inner.with_truncation(None).map_err(damaged)?;
        let end = inner
            .token_to_id("</s>")
            .ok_or_else(|| TextError::Damaged("tokenizer_2/tokenizer.json", "it has no end token `</s>`".to_owned()))?;
        let pad = inner.token_to_id("<pad>").unwrap_or(0);
        Ok(Self {
            inner,
            pad,
            end,
            longest,
        })
    }

    /// Reads a SentencePiece unigram model (`spiece.model`).
    ///
    /// # Errors
    /// It is damaged or of another type.
    pub fn from_sentencepiece(bytes: &[u8]) -> Result<Self, TextError> {
        let damaged = |why| TextError::Damaged("tokenizer_2/spiece.model", why);
        let json = tokenizer_json(bytes).map_err(damaged)?;
        Self::from_json(json.to_string().as_bytes())
    }

    /// The length to which the tokenizer's own files would cut a prompt.
    pub fn longest(&self) -> Option<usize> {
        self.longest
    }

    /// The tokens of stretches of text and their weights, cut to `length` with the end token and padded to it.
    ///
    /// # Errors
    /// The tokenizer refuses the text.
    pub fn encode<'a>(
        &self,
        pieces: impl IntoIterator<Item = (&'a str, f32)>,
        length: usize,
    ) -> Result<T5Tokens, TextError> {
        let (mut ids, mut weights) = (Vec::with_capacity(length), Vec::with_capacity(length));
        for (text, weight) in pieces {
            let encoding = self
                .inner
                .encode_fast(text, false)
                .map_err(|e| TextError::Tokenize(e.to_string()))?;
            ids.extend_from_slice(encoding.get_ids());
            weights.resize(ids.len(), weight);
        }
        let room = length.saturating_sub(1);
        let dropped = ids.len().saturating_sub(room);
        ids.truncate(room);
        weights.truncate(room);
        ids.push(self.end);
        ids.resize(length, self.pad);
        weights.resize(length, 1.0);
        Ok(T5Tokens { ids, weights, dropped })
    }
}
