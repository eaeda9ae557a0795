//! The denoiser of Stable Diffusion 1.x, 2.x and XL: diffusers' `UNet2DConditionModel`.

mod attention;
mod blocks;
mod config;
mod deep_cache;
mod fields;
mod model;
mod transformer;

pub use config::UNetConfig;
pub use deep_cache::DeepCache;
pub use model::{Added, Prompt, UNet};
