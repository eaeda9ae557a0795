//! Why a prompt could not be read.

use crate::models::ModelError;

/// Errors of tokenizers and text encoders.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// A tokenizer folder without its files.
    #[error("no tokenizer: the folder needs tokenizer.json, or vocab.json and merges.txt")]
    NoTokenizer,
    /// A tokenizer file that cannot be used.
    #[error("{0} cannot be used: {1}")]
    Damaged(&'static str, String),
    /// The tokenizer gave up on a text.
    #[error("the prompt could not be tokenised: {0}")]
    Tokenize(String),
    /// The text encoder's weights could not be read again.
    #[error(transparent)]
    Load(#[from] ModelError),
    /// The text encoder failed.
    #[error("the text encoder failed: {0}")]
    Encoder(#[from] candle_core::Error),
}
