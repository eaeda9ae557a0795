//! FLUX.1: prompt to packed latents to picture.

mod latents;
mod mask;
mod sentencepiece;
mod t5_tokenizer;

pub use t5_tokenizer::{T5Tokenizer, T5Tokens};
