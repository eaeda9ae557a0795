//! Why weights could not be had.

use std::path::{Path, PathBuf};

/// What loading a layer or a model's part gives.
pub type LoadResult<T> = Result<T, WeightsError>;

/// Errors of finding, reading and preparing weights. Each message says what was found and what to do.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// A file could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A file is damaged or not what its name says.
    #[error("{}: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A tensor that the model needs is not there.
    #[error("the weights have no tensor `{name}`")]
    Missing {
        /// Full name.
        name: String,
    },
    /// A tensor has another shape than the model needs.
    #[error("tensor `{name}` has shape {found:?}, but {expected:?} is needed")]
    Shape {
        /// Full name.
        name: String,
        /// Shape in the file.
        found: Vec<usize>,
        /// Shape that the model's configuration asks for.
        expected: Vec<usize>,
    },
    /// A tensor is stored as a type that cannot be used here.
    #[error("tensor `{name}` is stored as {found}, which cannot be used here")]
    Type {
        /// Full name.
        name: String,
        /// How it is stored.
        found: String,
    },
    /// A tensor holds numbers that are not finite.
    #[error("{}: tensor `{name}` holds NaN or infinite numbers; the file is damaged, get another one", path.display())]
    NotFinite {
        /// The file.
        path: PathBuf,
        /// Full name.
        name: String,
    },
    /// Only a pickle is there, which could run any code when read.
    #[error("{}: pickle files (.ckpt, .bin, .pt, .pth) are not read because they can run code; \
             use a .safetensors version of it", path.display())]
    Pickle {
        /// The file.
        path: PathBuf,
    },
    /// A part of a model is not there.
    #[error("{}: {what} is missing", place.display())]
    NoPart {
        /// The folder or file that should have it.
        place: PathBuf,
        /// What is missing and, where it helps, what to do.
        what: String,
    },
    /// A file or folder whose family of models is not recognised.
    #[error("{}: no known model: {found}", path.display())]
    Unrecognised {
        /// The file or folder.
        path: PathBuf,
        /// What was found in it.
        found: String,
    },
    /// A text that names no model.
    #[error("`{text}` is no preset, no path that is there, and no hub id (owner/name[@revision]); presets: {presets}")]
    UnknownModel {
        /// What was written.
        text: String,
        /// The presets.
        presets: String,
    },
    /// T5's tokenizer is nowhere.
    #[error(
        "the tokenizer of T5 is missing; give --tokenizer-2, or put it beside the model as \
         `tokenizer_2/tokenizer.json` ({reason})"
    )]
    NoTokenizer {
        /// Why the hub could not give it.
        reason: String,
    },
    /// A part that a file of the hub lacks could not be had from where it usually is.
    #[error("`{file}` brings no {component}, and it could not be fetched from its family's repository: {source}")]
    NotFetched {
        /// The file.
        file: String,
        /// What it lacks.
        component: super::Component,
        /// Why it could not be fetched.
        source: Box<super::hub::HubError>,
    },
    /// The program has no model inside.
    #[error("no model is built in (feature `embedded-model` is off); name one with --model")]
    NoBuiltIn,
    /// The hub.
    #[error(transparent)]
    Hub(#[from] super::hub::HubError),
    /// candle refused an operation on a weight.
    #[error("weights: {}", without_backtrace(.0))]
    Tensor(#[from] candle_core::Error),
}

impl From<sd_kernels::KernelError> for WeightsError {
    fn from(error: sd_kernels::KernelError) -> Self {
        Self::Tensor(candle_core::Error::wrap(error))
    }
}

impl WeightsError {
    /// A damaged file.
    pub(crate) fn damaged(path: &Path, reason: impl Into<String>) -> Self {
        Self::Damaged {
            path: path.to_owned(),
            reason: reason.into(),
        }
    }

    /// The message without the file's place, for those who name a file but need not know where this machine keeps it.
    #[must_use]
    pub fn without_path(&self) -> String {
        match self {
            Self::Io { source, .. } => format!("cannot be read: {source}"),
            Self::Damaged { reason, .. } => reason.clone(),
            Self::NotFinite { name, .. } => {
                format!("tensor `{name}` holds NaN or infinite numbers; the file is damaged, get another one")
            }
            others => others.to_string(),
        }
    }
}

/// What candle says, without the backtrace that it adds on lines of its own where `RUST_BACKTRACE` is set: such texts go to
/// clients.
pub fn without_backtrace(error: &candle_core::Error) -> String {
    match error {
        candle_core::Error::WithBacktrace { inner, .. } => without_backtrace(inner),
        candle_core::Error::Context { inner, context } => format!("{context}: {}", without_backtrace(inner)),
        error => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backtrace_is_left_out() {
        let error = candle_core::Error::WithBacktrace {
            inner: Box::new(candle_core::Error::Msg("too long".to_owned())),
            backtrace: Box::new(std::backtrace::Backtrace::force_capture()),
        };
        assert!(error.to_string().lines().count() > 1);
        assert_eq!(WeightsError::from(error).to_string(), "weights: too long");
    }
}
