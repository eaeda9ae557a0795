//! Why a job could not be painted.

use super::text::TextError;
use crate::schedulers::SchedulerError;
use crate::weights::without_backtrace;

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
    #[error("the model failed: {}", without_backtrace(.0))]
    Model(#[from] candle_core::Error),
    /// The picture could not be encoded.
    #[error("the picture could not be encoded: {0}")]
    Encode(#[from] image::ImageError),
}

impl PipelineError {
    /// The request's field that is to blame, where it is the request and not the model.
    pub fn field(&self) -> Option<&'static str> {
        match self {
            Self::Unsupported { field, .. } => Some(field),
            Self::Scheduler(SchedulerError::Schedule(_) | SchedulerError::FlowSchedule { .. }) => Some("schedule"),
            Self::Scheduler(SchedulerError::FlowSampler { .. }) => Some("sampler"),
            Self::Scheduler(SchedulerError::Steps { .. }) => Some("steps"),
            Self::Scheduler(SchedulerError::Strength(_)) => Some("strength"),
            Self::Scheduler(SchedulerError::Config { .. } | SchedulerError::Json(_))
            | Self::Cancelled
            | Self::NotFinite { .. }
            | Self::Text(_)
            | Self::Model(_)
            | Self::Encode(_) => None,
        }
    }
}
