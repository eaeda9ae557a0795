//! Why a LoRA could not be applied.

use crate::weights::{WeightsError, without_backtrace};

/// Errors of finding, reading and applying LoRAs. All but those of reading are the request's fault.
#[derive(Debug, thiserror::Error)]
pub enum LoraError {
    /// The worker has no LoRA folder.
    #[error("lora `{name}`: this worker has no LoRA folder; start it with --lora-dir")]
    NoFolder {
        /// As the request gives it.
        name: String,
    },
    /// There is no such file below the folder.
    #[error("lora `{name}` is not in the LoRA folder; there are: {available}")]
    NotFound {
        /// As the request gives it.
        name: String,
        /// Some of the names that are there.
        available: String,
    },
    /// The name leads out of the folder.
    #[error("lora `{name}`: only names and paths below the LoRA folder are allowed")]
    Outside {
        /// As the request gives it.
        name: String,
    },
    /// Several files have the name.
    #[error("lora `{name}` could be any of: {candidates}; give its path below the LoRA folder")]
    Ambiguous {
        /// As the request gives it.
        name: String,
        /// The paths.
        candidates: String,
    },
    /// The strength is no number that can be used.
    #[error("lora `{name}`: the strength {strength} is not allowed; allowed: -10 to 10")]
    Strength {
        /// As the request gives it.
        name: String,
        /// What was asked for.
        strength: f32,
    },
    /// Nothing in the file fits the model.
    #[error("lora `{name}` fits nothing in this model: none of its {count} layers is in it, such as `{example}`")]
    NothingMatches {
        /// As the request gives it.
        name: String,
        /// Layers in the file.
        count: usize,
        /// One of them.
        example: String,
    },
    /// The file is for a model of other sizes.
    #[error("lora `{name}` is for another model: `{layer}` changes {found} numbers where this model has {expected}")]
    OtherModel {
        /// As the request gives it.
        name: String,
        /// The layer.
        layer: String,
        /// Numbers that the file changes.
        found: usize,
        /// Numbers that the model has.
        expected: usize,
    },
    /// A layer of the file is incomplete or contradicts itself.
    #[error("lora `{name}`: {reason}")]
    Damaged {
        /// As the request gives it.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// The file could not be read.
    #[error("lora `{name}`: {}", source.without_path())]
    File {
        /// As the request gives it.
        name: String,
        /// Why.
        source: WeightsError,
    },
    /// An operation on a weight failed.
    #[error("lora: {}", without_backtrace(.0))]
    Tensor(#[from] candle_core::Error),
}

impl LoraError {
    /// Whether the request can be mended by whoever sent it.
    #[must_use]
    pub fn is_callers(&self) -> bool {
        !matches!(self, Self::Tensor(_))
    }
}
