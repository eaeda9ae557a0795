//! From a prompt to what the denoiser is conditioned on: A1111's syntax, CLIP's tokens, chunks of 75.

mod chunks;
mod editing;
mod error;
mod lora_tags;
mod prompt;
mod tokenizer;

pub use chunks::{Chunk, chunks};
pub use editing::{Stage, stages};
pub use error::TextError;
pub use lora_tags::{TagError, Untagged, extract};
pub use prompt::{Piece, plain, weighted};
pub use tokenizer::{ClipTokenizer, Padding};
