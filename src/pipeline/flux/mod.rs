//! FLUX.1 dev, schnell and Fill: text to picture, picture to picture, inpainting.

mod latents;
mod mask;
mod model;
mod painter;
mod sentencepiece;
mod t5_tokenizer;
mod text;
mod velocity;

pub use model::FluxParts;
pub use t5_tokenizer::{T5Tokenizer, T5Tokens};
