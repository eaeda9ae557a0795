//! Stable Diffusion 1.x, 2.x and XL: text to picture, picture to picture, inpainting.
//!
//! A job goes [`prompts`] (what the UNet reads at each step) -> [`source`] (the picture it starts from) -> [`denoise`] ->
//! the VAE. Latents stay on the host between model calls, as planes of `f32` in torch's order: they are small, the
//! samplers are exact there, and every device gets the same numbers.

mod denoise;
mod encoder;
mod guidance;
mod job;
mod latents;
mod model;
mod pictures;
mod pipeline;
mod prompts;
mod source;

pub use model::{Compute, Parts, PartsError};
pub use pipeline::StableDiffusion;
