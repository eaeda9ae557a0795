//! Run time: from a valid request to encoded pictures. Knows nothing of actix, tokio or HTTP.
//!
//! A job goes text encoders -> [`source`] (the picture it starts from) -> [`denoise`] -> the VAE; [`job`] leads it for every
//! family of models. Latents stay on the host between model calls, as planes of `f32` in torch's order: they are small,
//! the samplers are exact there, and every device gets the same numbers.

use image::RgbImage;

use crate::domain::event::{Generation, Step};
use crate::domain::model::ModelInfo;
use crate::domain::request::GenerationRequest;

mod colours;
mod compute;
mod denoise;
pub mod device;
mod error;
pub mod flux;
mod guidance;
pub mod image_io;
mod job;
mod latents;
mod load;
mod loaded;
mod loras;
pub mod noise;
mod output;
pub mod parameters;
pub mod preview;
mod source;
pub mod stable_diffusion;
mod start;
mod step_cache;
mod tags;
pub mod text;

pub use compute::{Compute, PartsError};
pub use error::PipelineError;
pub use load::{LoadError, load, load_files};

/// A loaded model that paints. Built in the model thread, used there alone: it need not be `Send`, and is not.
pub trait Pipeline {
    /// What was loaded.
    fn info(&self) -> &ModelInfo;

    /// Paints one job. Asks `watch` between steps (and between VAE tiles) whether to go on.
    ///
    /// # Errors
    /// [`PipelineError::Cancelled`] when `watch` says so; others when the job cannot be painted.
    fn generate(&mut self, request: &GenerationRequest, watch: &mut dyn Watch) -> Result<Generation, PipelineError>;
}

/// Who looks on while a job is painted.
pub trait Watch {
    /// Whether to stop; asked before each step and before the VAE.
    fn cancelled(&self) -> bool;
    /// The job will have this many steps, pictures of a batch and skipped parts counted; said once, before the first.
    fn begins(&mut self, _total: u32) {}
    /// One denoising step is done.
    fn step(&mut self, step: Step);
    /// A small picture of how the latents look now.
    fn preview(&mut self, step: Step, image: RgbImage);
}

/// Reads how far a load has come: `fraction` from 0 to 1 of `stage`.
pub trait LoadWatch {
    /// Called as the load goes on, cheaply and often.
    fn progress(&mut self, stage: &str, fraction: f32);
}
