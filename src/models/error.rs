//! Why a model could not be built.

use crate::weights::WeightsError;

/// Errors of reading a model's configuration and building it.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The configuration is no JSON, or a field has a wrong type.
    #[error("the {model}'s config.json cannot be read: {source}")]
    Json {
        /// Which model.
        model: &'static str,
        /// What the parser says.
        source: serde_json::Error,
    },
    /// The configuration asks for something that is not built here.
    #[error("the {model}'s config.json has {field} = {value}; {allowed}")]
    Unsupported {
        /// Which model.
        model: &'static str,
        /// The field.
        field: &'static str,
        /// Its value.
        value: String,
        /// What is supported.
        allowed: &'static str,
    },
    /// Its weights.
    #[error(transparent)]
    Weights(#[from] WeightsError),
}

impl From<candle_core::Error> for ModelError {
    fn from(error: candle_core::Error) -> Self {
        Self::Weights(error.into())
    }
}
