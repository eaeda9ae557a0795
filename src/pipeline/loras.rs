//! The LoRAs of a job, from its `loras` field and the tags in its prompt, on the model's weights.

use std::path::PathBuf;

use super::PipelineError;
use crate::domain::request::LoraRef;
use crate::weights::lora::{Applied, Layers, LoraDir, LoraError, Loras};

/// The LoRAs of one loaded model. They stay on until a job asks for others, so that a series of jobs with the same ones
/// pays once.
#[derive(Debug)]
pub struct JobLoras {
    loras: Loras,
    any_on: bool,
}

impl JobLoras {
    /// LoRAs of a folder; `None` if there is none.
    pub fn new(dir: Option<PathBuf>) -> Self {
        Self {
            loras: Loras::new(dir.map(LoraDir::new)),
            any_on: false,
        }
    }

    /// Makes the model's weights those of `wanted` and nothing else. `layers` is asked only if there is something to do.
    ///
    /// # Errors
    /// A LoRA is not there, is damaged or does not fit: the request's fault; or the device refused. Others may have been taken
    /// off before: remembered prompts no longer hold.
    pub fn apply(
        &mut self,
        wanted: &[LoraRef],
        layers: impl FnOnce() -> Result<Layers, PipelineError>,
    ) -> Result<Applied, PipelineError> {
        if wanted.is_empty() && !self.any_on {
            return Ok(Applied::default());
        }
        let layers = layers()?;
        self.any_on = true;
        let applied = self.loras.apply(wanted, &layers).map_err(|error| match error {
            LoraError::Tensor(error) => PipelineError::Model(error),
            callers => PipelineError::Unsupported {
                field: "loras",
                message: callers.to_string(),
            },
        })?;
        self.any_on = !wanted.is_empty();
        Ok(applied)
    }
}
