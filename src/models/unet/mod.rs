//! The denoiser of Stable Diffusion 1.x, 2.x and XL: diffusers' `UNet2DConditionModel`.

mod attention;
mod blocks;
mod config;
mod fields;
mod model;
mod reuse;
mod transformer;

pub use config::UNetConfig;
pub use model::{Added, Prompt, UNet};
pub use reuse::FeatureCache;
