//! What happens to a job while it runs and how it ends.

use serde::Serialize;

use super::picture::EncodedImage;

/// Wall-clock seconds spent in each part of a job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Timings {
    /// Waiting in the queue.
    pub queued_s: f64,
    /// Applying and removing LoRAs.
    pub lora_s: f64,
    /// Text encoders.
    pub text_encode_s: f64,
    /// VAE encode of an input picture.
    pub vae_encode_s: f64,
    /// All denoising steps.
    pub denoise_s: f64,
    /// VAE decode.
    pub vae_decode_s: f64,
    /// Start of the run to its end.
    pub total_s: f64,
}

/// A finished job's result.
#[derive(Clone, Debug, PartialEq)]
pub struct Generation {
    /// The pictures, in the order of their seeds.
    pub images: Vec<EncodedImage>,
    /// Where the time went.
    pub timings: Timings,
    /// What the caller should know, such as LoRA keys that matched nothing.
    pub warnings: Vec<String>,
}

/// Where a running job stands: `step` of `total` denoising steps are done, over all pictures of the job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Step {
    /// Steps done, from 1.
    pub step: u32,
    /// Steps of the whole job.
    pub total: u32,
}
