//! Run time: from a valid request to encoded pictures. Knows nothing of actix, tokio or HTTP.

use image::RgbImage;

use crate::domain::event::{Generation, Step};
use crate::domain::model::ModelInfo;
use crate::domain::request::GenerationRequest;

pub mod device;
mod error;
pub mod flux;
mod load;
pub mod noise;
pub mod preview;
pub mod stable_diffusion;
pub mod text;

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
