//! What happens to a job while it runs and how it ends.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::job::JobError;
use super::picture::EncodedImage;

/// What a reader of a job is told. Exactly one of the last three ends it.
#[derive(Clone, Debug, PartialEq)]
pub enum JobEvent {
    /// It waits, with this many jobs before it (the running one included).
    Queued {
        /// Jobs before it.
        position: usize,
    },
    /// The model begins.
    Started,
    /// A denoising step is done.
    Progress {
        /// Where it stands.
        step: Step,
        /// Since the start.
        elapsed: Duration,
        /// Until the last step, as far as one can tell.
        left: Duration,
    },
    /// A small picture of how it looks now.
    Preview {
        /// Where it stands.
        step: Step,
        /// The picture.
        image: Arc<EncodedImage>,
    },
    /// It is done.
    Completed(Arc<Generation>),
    /// It failed.
    Failed(JobError),
    /// It was cancelled.
    Cancelled,
}

impl JobEvent {
    /// Whether it is the last one.
    pub fn is_final(&self) -> bool {
        match self {
            Self::Queued { .. } | Self::Started | Self::Progress { .. } | Self::Preview { .. } => false,
            Self::Completed(_) | Self::Failed(_) | Self::Cancelled => true,
        }
    }
}

/// An event with its place in the job's stream, counted from 1.
#[derive(Clone, Debug, PartialEq)]
pub struct Numbered {
    /// Its place.
    pub number: u64,
    /// What happened.
    pub event: JobEvent,
}

/// Wall-clock seconds spent in each part of a job, and the steps that the step cache spared.
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
    /// Calls of the denoiser that used deep features of earlier ones again, over all pictures: one a step, two with
    /// samplers that call it twice.
    pub steps_reused: u32,
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
