//! Why a prompt could not be read.

use crate::models::ModelError;
use crate::weights::without_backtrace;

/// Errors of tokenizers and text encoders.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// A tokenizer folder without its files.
    #[error("no tokenizer: the folder needs tokenizer.json, or vocab.json and merges.txt")]
    NoTokenizer,
    /// A tokenizer file that cannot be used.
    #[error("{0} cannot be used: {1}")]
    Damaged(&'static str, String),
    /// A tokenizer that belongs to another text encoder.
    #[error(
        "the tokenizer has a token {largest}, but the text encoder knows {tokens} tokens only; put the tokenizer that belongs \
         to it beside the model, in a folder `tokenizer`"
    )]
    Vocabulary {
        /// Its largest id.
        largest: u32,
        /// Rows of the text encoder's table.
        tokens: usize,
    },
    /// The tokenizer gave up on a text.
    #[error("the prompt could not be tokenised: {0}")]
    Tokenize(String),
    /// The text encoder's weights could not be read again.
    #[error(transparent)]
    Load(#[from] ModelError),
    /// The text encoder failed.
    #[error("the text encoder failed: {}", without_backtrace(.0))]
    Encoder(#[from] candle_core::Error),
}
