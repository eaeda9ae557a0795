//! Why a job could not be painted.

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
    /// The model produced numbers that are not finite, or an operation failed.
    #[error("the model failed: {0}")]
    Model(#[from] candle_core::Error),
    /// The picture could not be encoded.
    #[error("the picture could not be encoded: {0}")]
    Encode(#[from] image::ImageError),
}
