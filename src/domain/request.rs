//! A request that is always valid: built once from a DTO (HTTP) or flags (command line), never checked again.

use serde::{Deserialize, Serialize};

use super::picture::{InputImage, InputMask, OutputFormat, Size};
use super::sampling::{Sampler, Schedule};

/// What to do with the prompt and, for two of the three, an input picture.
#[derive(Clone, Debug, PartialEq)]
pub enum Operation {
    /// Paint from noise.
    TextToImage,
    /// Paint over a noised picture.
    ImageToImage {
        /// The picture to start from, any size; resized to the request's size.
        image: InputImage,
        /// How far to go from it: 0 gives it back, 1 forgets it.
        strength: f32,
    },
    /// Paint the white part of a mask anew.
    Inpaint {
        /// The picture to mend, any size; resized to the request's size.
        image: InputImage,
        /// White is painted, black is kept; resized with the picture.
        mask: InputMask,
        /// As for `ImageToImage`.
        strength: f32,
        /// Width in pixels over which the painted part fades into the kept part; 0 keeps every unmasked pixel exact.
        feather: u32,
    },
}

/// The kind of an operation, without its pictures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OperationKind {
    /// `image_generation`: `/txt2img`.
    ImageGeneration,
    /// `image_transform`: `/img2img`.
    ImageTransform,
    /// `image_inpaint`: `/inpaint`.
    ImageInpaint,
}

impl OperationKind {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::ImageGeneration, Self::ImageTransform, Self::ImageInpaint];

    /// The name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::ImageGeneration => "image_generation",
            Self::ImageTransform => "image_transform",
            Self::ImageInpaint => "image_inpaint",
        }
    }
}

impl Operation {
    /// The kind of this operation.
    pub fn kind(&self) -> OperationKind {
        match self {
            Self::TextToImage => OperationKind::ImageGeneration,
            Self::ImageToImage { .. } => OperationKind::ImageTransform,
            Self::Inpaint { .. } => OperationKind::ImageInpaint,
        }
    }
}

/// How a prompt is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PromptSyntax {
    /// As A1111 users write it: `(a:1.2)`, `[a]`, escapes, `BREAK`, `<lora:name:0.8>`.
    #[default]
    A1111,
    /// Every character is text.
    Plain,
}

/// A LoRA to apply for one job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LoraRef {
    /// File name without its ending, or path, below the configured LoRA folder.
    pub name: String,
    /// Multiplier of its effect; negative values turn it round.
    pub strength: f32,
}

/// SDXL's size conditioning (`time_ids`), each in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SizeConditioning {
    /// Size of the picture before it was cropped.
    pub original: Size,
    /// Top and left of the crop.
    pub crop_top_left: (u32, u32),
    /// Size the picture is meant to have.
    pub target: Size,
}

/// Reuse of deep features between steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub enum StepCache {
    /// Every step is computed in full.
    #[default]
    Off,
    /// Reuse where the measured change is small; the threshold is the model's.
    Auto,
    /// Reuse where the relative change since the last full step is below this threshold.
    Threshold(f32),
}

/// One job, complete and valid for the loaded model.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerationRequest {
    /// What to do.
    pub operation: Operation,
    /// What the picture shows.
    pub prompt: String,
    /// What it must not show; empty for nothing.
    pub negative_prompt: String,
    /// How both prompts are read.
    pub prompt_syntax: PromptSyntax,
    /// Size of the result.
    pub size: Size,
    /// Denoising steps of a full run (img2img runs `strength` of them).
    pub steps: u32,
    /// Classifier-free guidance (SD), or the guidance embedding (FLUX dev).
    pub guidance_scale: f32,
    /// Part of the run, as fractions of the steps, in which guidance is applied: `(0.0, 1.0)` is all of it.
    pub guidance_interval: (f32, f32),
    /// FLUX: true classifier-free guidance with the negative prompt when above 1.
    pub true_cfg_scale: f32,
    /// Seed of the first picture; picture `i` uses `seed + i`, wrapping.
    pub seed: u64,
    /// Number of pictures.
    pub count: u32,
    /// The sampler.
    pub sampler: Sampler,
    /// The noise schedule.
    pub schedule: Schedule,
    /// LoRAs of the `loras` field; those in the prompt's text are added by the pipeline.
    pub loras: Vec<LoraRef>,
    /// CLIP layers counted from the end as A1111 does: 1 takes the model's usual layer.
    pub clip_skip: u32,
    /// DDIM's eta, 0 to 1.
    pub eta: f32,
    /// A preview event every so many steps; 0 for none.
    pub preview_every: u32,
    /// SDXL only.
    pub size_conditioning: Option<SizeConditioning>,
    /// Reuse of deep features.
    pub step_cache: StepCache,
    /// File format of the result.
    pub output_format: OutputFormat,
}
