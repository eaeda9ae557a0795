//! The picture's autoencoder: diffusers' `AutoencoderKL`, for SD, SDXL and FLUX.

mod config;
mod decoder;
mod encoder;
mod middle;
mod model;
mod tiles;

pub use config::VaeConfig;
pub use model::{Posterior, Vae};
pub use tiles::Tiling;
