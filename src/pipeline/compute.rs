//! Where and how a model computes, and why it could not be built.

use std::path::PathBuf;

use candle_core::{DType, Device};

use super::preview::{LatentColours, Previewer};
use super::text::TextError;
use crate::domain::load::Residency;
use crate::models::ModelError;
use crate::schedulers::SchedulerError;

/// Where and how a model computes.
#[derive(Clone, Debug)]
pub struct Compute {
    /// The device.
    pub device: Device,
    /// Numbers of the denoiser and the text encoders.
    pub dtype: DType,
    /// What becomes of the text encoders after use.
    pub residency: Residency,
    /// TAESD for previews.
    pub taesd: Option<PathBuf>,
}

impl Compute {
    /// What makes previews of latents of `channels`: TAESD, else `colours` where they are known.
    ///
    /// # Errors
    /// TAESD cannot be read.
    pub fn previewer(&self, channels: usize, colours: Option<LatentColours>) -> Result<Option<Previewer>, ModelError> {
        match &self.taesd {
            Some(path) => Previewer::open(path, channels, &self.device, self.dtype).map(Some),
            None => Ok(colours.map(Previewer::Colours)),
        }
    }
}

impl Compute {
    /// Whether the text encoders leave before the denoising. On the CPU there is nowhere to move them to, so that
    /// `offload` keeps them; elsewhere they are read again from the files, which the system keeps in memory if it can.
    pub fn drops_encoders(&self) -> bool {
        match self.residency {
            Residency::Keep => false,
            Residency::Offload => !self.device.is_cpu(),
            Residency::Sequential => true,
        }
    }
}

/// Why a model could not be built from its files.
#[derive(Debug, thiserror::Error)]
pub enum PartsError {
    /// A part could not be built.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A tokenizer could not be built.
    #[error(transparent)]
    Text(#[from] TextError),
    /// The scheduler configuration cannot be followed.
    #[error(transparent)]
    Scheduler(#[from] SchedulerError),
    /// The model is one of its family that this worker cannot run.
    #[error("{0}")]
    Unsupported(&'static str),
}

impl From<crate::weights::WeightsError> for PartsError {
    fn from(error: crate::weights::WeightsError) -> Self {
        Self::Model(error.into())
    }
}
