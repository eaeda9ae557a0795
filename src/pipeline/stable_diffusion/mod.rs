//! Stable Diffusion 1.x, 2.x and XL: text to picture, picture to picture, inpainting.
//!
//! The prompts' embeddings and the UNet's predictions; the rest of a job is every family's ([`super::job`]).

mod encoder;
mod model;
mod painter;
mod prompts;

pub use model::Parts;
