//! Why a job could not be painted.

use super::text::TextError;
use crate::schedulers::SchedulerError;

/// Errors of [`super::Pipeline::generate`].
#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    /// The watcher asked to stop.
    #[error("cancelled")]
    Cancelled,
    /// The request asks for something this model cannot do; the message names the field.
    #[error("{field}: {message}")]
    Unsupported {
        /// The request's field.
        field: &'static str,
        /// What is wrong and what is allowed.
        message: String,
    },
    /// A model's output holds numbers that are not finite: the picture would be black.
    #[error("the {part} produced numbers that are not finite; use --dtype f32 or bf16")]
    NotFinite {
        /// Which part of the model.
        part: &'static str,
    },
    /// A prompt could not be read.
    #[error(transparent)]
    Text(#[from] TextError),
    /// The sampler cannot do what the request asks.
    #[error(transparent)]
    Scheduler(#[from] SchedulerError),
    /// An operation failed.
    #[error("the model failed: {0}")]
    Model(#[from] candle_core::Error),
    /// The picture could not be encoded.
    #[error("the picture could not be encoded: {0}")]
    Encode(#[from] image::ImageError),
}
