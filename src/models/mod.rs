//! Plain forward passes over [`crate::ops`], one file or folder a model, under the names that diffusers gives their parts.
//! Each is built from its `config.json` and a [`crate::weights::Weights`], and is tested against diffusers and transformers.

pub mod clip;
mod config;
mod error;
pub mod flux;
mod resnet;
mod reuse;
pub mod t5;
pub mod taesd;
pub mod unet;
pub mod vae;

pub use error::ModelError;
pub use reuse::{Drift, Plan};
