//! What is known of the loaded model: enough to validate a request and to describe the worker to a hive.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::picture::Size;
use super::request::OperationKind;
use super::sampling::{Sampler, Schedule};

/// The families of models that the worker paints with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Family {
    /// Stable Diffusion 1.x (CLIP ViT-L).
    Sd1,
    /// Stable Diffusion 2.x (OpenCLIP ViT-H).
    Sd2,
    /// Stable Diffusion XL and its derivatives.
    Sdxl,
    /// FLUX.1 dev and its like, with a guidance embedding.
    FluxDev,
    /// FLUX.1 schnell.
    FluxSchnell,
}

impl Family {
    /// The name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sd1 => "sd1",
            Self::Sd2 => "sd2",
            Self::Sdxl => "sdxl",
            Self::FluxDev => "flux-dev",
            Self::FluxSchnell => "flux-schnell",
        }
    }

    /// Whether it is one of the FLUX family.
    pub fn is_flux(self) -> bool {
        matches!(self, Self::FluxDev | Self::FluxSchnell)
    }

    /// Width and height of a picture are multiples of this many pixels.
    pub fn size_multiple(self) -> u32 {
        if self.is_flux() { 16 } else { 8 }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a request gets where it is silent.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Defaults {
    /// Size of the picture.
    pub size: Size,
    /// Denoising steps.
    pub steps: u32,
    /// Guidance scale.
    pub guidance_scale: f32,
    /// Sampler.
    pub sampler: Sampler,
    /// Schedule.
    pub schedule: Schedule,
    /// CLIP layers from the end, 1 for the model's usual one.
    pub clip_skip: u32,
}

/// A LoRA file that a request may name.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LoraInfo {
    /// Name as a request gives it.
    pub name: String,
    /// Words that trigger it, from the file's metadata.
    pub trigger_words: Vec<String>,
    /// Other metadata worth showing (base model, network type), as the file has it.
    pub base_model: Option<String>,
}

/// The loaded model.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModelInfo {
    /// Name that a request's `model` may give (preset name, hub id or file stem).
    pub name: String,
    /// Other names that mean the same model.
    pub aliases: Vec<String>,
    /// Its family.
    pub family: Family,
    /// Where it was loaded from.
    pub source: String,
    /// Compute dtype: `f32`, `bf16` or `f16`.
    pub dtype: String,
    /// GGUF type of the weights, if quantised, such as `q4_0`.
    pub quantization: Option<String>,
    /// Device: `cpu`, `cuda:0`, `metal`.
    pub device: String,
    /// What it can do.
    pub operations: Vec<OperationKind>,
    /// Samplers that a request may name.
    pub samplers: Vec<Sampler>,
    /// Schedules that a request may name.
    pub schedules: Vec<Schedule>,
    /// What a request gets where it is silent.
    pub defaults: Defaults,
}

impl ModelInfo {
    /// Whether a caller who names a model so means this one.
    pub fn is_called(&self, name: &str) -> bool {
        let same = |own: &String| own.eq_ignore_ascii_case(name);
        same(&self.name) || self.aliases.iter().any(same)
    }
}
