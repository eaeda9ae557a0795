//! From what a caller wrote to a [`GenerationRequest`]: the one place where a request is checked.
//!
//! A [`Draft`] holds values as they were written, in ranges that a request cannot have. [`Draft::build`] checks each
//! against the loaded model and the limits, fills in what is missing, and refuses what does not apply: nothing that was
//! given is dropped.

mod amount;
mod choice;
mod error;

use super::limits::Limits;
use super::model::ModelInfo;
use super::picture::{InputImage, InputMask};
use super::request::{GenerationRequest, OperationKind, StepCache};

use amount::{cache, conditioning, eta_value, guidance, interval, seed_value, size, skip, true_cfg, within};
use choice::{check_kind, check_model, format, lora_list, negative, operation, sampling, syntax, text};
use error::missing;
pub use error::{FieldError, shortened};

/// A request as it was written; `None` where the caller said nothing.
#[derive(Clone, Debug, Default)]
pub struct Draft {
    /// What to paint; must be given.
    pub prompt: Option<String>,
    /// What not to paint.
    pub negative_prompt: Option<String>,
    /// `a1111` or `plain`.
    pub prompt_syntax: Option<String>,
    /// Columns, pixels.
    pub width: Option<i64>,
    /// Rows, pixels.
    pub height: Option<i64>,
    /// Denoising steps.
    pub steps: Option<i64>,
    /// Classifier-free guidance, or FLUX dev's guidance embedding.
    pub guidance_scale: Option<f64>,
    /// Fraction of the steps at which guidance starts.
    pub guidance_start: Option<f64>,
    /// Fraction of the steps at which guidance ends.
    pub guidance_end: Option<f64>,
    /// FLUX: guidance with the negative prompt.
    pub true_cfg_scale: Option<f64>,
    /// Seed, or -1 for a random one.
    pub seed: Option<i128>,
    /// Pictures.
    pub n: Option<i64>,
    /// Sampler name.
    pub sampler: Option<String>,
    /// Schedule name.
    pub schedule: Option<String>,
    /// LoRAs as `(name, strength)`.
    pub loras: Vec<(String, f64)>,
    /// Decoded input picture.
    pub image: Option<InputImage>,
    /// Decoded mask.
    pub mask: Option<InputMask>,
    /// How far from the input picture.
    pub strength: Option<f64>,
    /// Fade of an inpaint mask, pixels.
    pub feather: Option<i64>,
    /// CLIP layers from the end.
    pub clip_skip: Option<i64>,
    /// DDIM's eta.
    pub eta: Option<f64>,
    /// SDXL: size before the crop, `(width, height)`.
    pub original_size: Option<(i64, i64)>,
    /// SDXL: top and left of the crop.
    pub crop_top_left: Option<(i64, i64)>,
    /// SDXL: size the picture is meant to have, `(width, height)`.
    pub target_size: Option<(i64, i64)>,
    /// `off`, `auto` or a threshold.
    pub step_cache: Option<String>,
    /// A preview every so many steps.
    pub preview_every: Option<i64>,
    /// File format of the result.
    pub output_format: Option<String>,
    /// Model that the caller expects.
    pub model: Option<String>,
}

/// Why a draft is no request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DraftError {
    /// A value is missing, out of range, or does not apply.
    #[error(transparent)]
    Field(#[from] FieldError),
    /// The caller expects another model.
    #[error("model: `{wanted}` is not loaded here; loaded: {loaded}")]
    OtherModel {
        /// What the caller wants.
        wanted: String,
        /// What is loaded.
        loaded: String,
    },
}

/// What a request is checked against.
#[derive(Clone, Copy, Debug)]
pub struct Rules<'a> {
    /// The loaded model.
    pub model: &'a ModelInfo,
    /// Bounds from the settings.
    pub limits: &'a Limits,
    /// Reuse between steps where the request is silent.
    pub step_cache: StepCache,
    /// Names of the LoRAs that may be used.
    pub loras: &'a [String],
}

impl Draft {
    /// Checks everything and fills in the model's defaults.
    ///
    /// # Errors
    /// The first field that is missing, out of range or does not apply.
    pub fn build(self, kind: OperationKind, rules: &Rules<'_>) -> Result<GenerationRequest, DraftError> {
        let Self {
            prompt,
            negative_prompt,
            prompt_syntax,
            width,
            height,
            steps,
            guidance_scale,
            guidance_start,
            guidance_end,
            true_cfg_scale,
            seed,
            n,
            sampler,
            schedule,
            loras,
            image,
            mask,
            strength,
            feather,
            clip_skip,
            eta,
            original_size,
            crop_top_left,
            target_size,
            step_cache,
            preview_every,
            output_format,
            model,
        } = self;
        let Rules {
            model: info, limits, ..
        } = *rules;
        check_model(model, info)?;
        check_kind(kind, info)?;
        let family = info.family;
        let size = size(width, height, info, limits)?;
        let steps = within("steps", steps, 1, Limits::MAX_STEPS)?.unwrap_or(info.defaults.steps);
        let (sampler, schedule) = sampling(sampler.as_deref(), schedule.as_deref(), info)?;
        let true_cfg = true_cfg(true_cfg_scale, family)?;
        let negative_prompt = negative(negative_prompt, family, true_cfg)?;
        let guidance_scale = guidance(guidance_scale, info)?;
        let guided = !family.is_flux() || true_cfg > 1.0;
        Ok(GenerationRequest {
            operation: operation(kind, image, mask, strength, feather)?,
            prompt: text("prompt", prompt.ok_or_else(|| missing("prompt"))?)?,
            negative_prompt,
            prompt_syntax: syntax(prompt_syntax.as_deref())?,
            size,
            steps,
            guidance_scale,
            guidance_interval: interval(guidance_start, guidance_end, guided)?,
            true_cfg_scale: true_cfg,
            seed: seed_value(seed)?,
            count: within("n", n, 1, limits.max_images)?.unwrap_or(1),
            sampler,
            schedule,
            loras: lora_list(loras, rules.loras)?,
            clip_skip: skip(clip_skip, info)?,
            eta: eta_value(eta, sampler)?,
            preview_every: within("preview_every", preview_every, 0, Limits::MAX_STEPS)?.unwrap_or(0),
            size_conditioning: conditioning(original_size, crop_top_left, target_size, size, family)?,
            step_cache: cache(step_cache, rules.step_cache)?,
            output_format: format(output_format.as_deref())?,
        })
    }
}
