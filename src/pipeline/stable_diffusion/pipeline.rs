//! Stable Diffusion behind the pipeline's boundary.

use std::time::Instant;

use candle_core::{DType, Tensor};
use image::RgbImage;

use super::job::{Job, read_prompts};
use super::latents::to_planes;
use super::model::Parts;
use super::pictures::encode;
use super::source::pixels;
use crate::domain::event::{Generation, Timings};
use crate::domain::load::Residency;
use crate::domain::model::ModelInfo;
use crate::domain::request::{GenerationRequest, PromptSyntax};
use crate::models::vae::{Tiling, Vae};
use crate::pipeline::preview::LatentColours;
use crate::pipeline::text::{TagError, extract};
use crate::pipeline::{Pipeline, PipelineError, Watch};

/// A loaded Stable Diffusion 1.x, 2.x or XL model.
pub struct StableDiffusion {
    info: ModelInfo,
    parts: Parts,
}

impl StableDiffusion {
    /// A pipeline of loaded parts.
    #[must_use]
    pub fn new(info: ModelInfo, parts: Parts) -> Self {
        Self { info, parts }
    }

    fn run(
        &mut self,
        request: &GenerationRequest,
        watch: &mut dyn Watch,
        timings: &mut Timings,
    ) -> Result<(Vec<RgbImage>, Vec<String>), PipelineError> {
        let mut warnings = Vec::new();
        let prompt = self.read_tags(request, &mut warnings)?;
        if watch.cancelled() {
            return Err(PipelineError::Cancelled);
        }
        let started = Instant::now();
        let prompts = read_prompts(&mut self.parts, request, &prompt)?;
        if self.drops_encoders() {
            self.parts.encoders.unload();
        }
        timings.text_encode_s += started.elapsed().as_secs_f64();
        if request.preview_every > 0 && self.parts.colours.is_none() {
            self.parts.colours = Some(find_colours(&self.parts.vae, &self.parts.compute.device)?);
        }
        let mut job = Job {
            parts: &self.parts,
            request,
            prompts: &prompts,
            colours: self.parts.colours.as_ref(),
            timings,
        };
        Ok((job.paint(watch)?, warnings))
    }

    /// Whether the text encoders leave before the denoising. On the CPU there is nowhere to move them to, so that
    /// `offload` keeps them; elsewhere they are read again from the files, which the system keeps in memory if it can.
    fn drops_encoders(&self) -> bool {
        match self.parts.compute.residency {
            Residency::Keep => false,
            Residency::Offload => !self.parts.compute.device.is_cpu(),
            Residency::Sequential => true,
        }
    }

    /// The prompt without its LoRA tags.
    fn read_tags(&self, request: &GenerationRequest, warnings: &mut Vec<String>) -> Result<String, PipelineError> {
        if request.prompt_syntax == PromptSyntax::Plain {
            return Ok(request.prompt.clone());
        }
        let found = extract(&request.prompt).map_err(|error: TagError| PipelineError::Unsupported {
            field: "prompt",
            message: error.to_string(),
        })?;
        if found.text.split_whitespace().any(|word| word == "AND") {
            warnings.push("`AND` in the prompt is read as a word: prompts are not composed".to_owned());
        }
        Ok(found.text)
    }
}

impl Pipeline for StableDiffusion {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn generate(&mut self, request: &GenerationRequest, watch: &mut dyn Watch) -> Result<Generation, PipelineError> {
        let started = Instant::now();
        let mut timings = Timings::default();
        let (pictures, warnings) = self.run(request, watch, &mut timings)?;
        let images = pictures
            .iter()
            .zip(0..)
            .map(|(picture, index)| encode(picture, request, &self.info, index))
            .collect::<Result<_, _>>()?;
        timings.total_s = started.elapsed().as_secs_f64();
        Ok(Generation {
            images,
            timings,
            warnings,
        })
    }
}

/// Side of the picture that unknown latents are measured with.
const CARD: u32 = 128;

/// Finds the colours of a VAE's latents: encodes a card of many colours and fits a linear map to what comes out.
fn find_colours(vae: &Vae, device: &candle_core::Device) -> Result<LatentColours, PipelineError> {
    let cell = |x: u32, y: u32| (x / 16).wrapping_mul(0x9E37_79B1) ^ (y / 16).wrapping_mul(0x85EB_CA77);
    let card = RgbImage::from_fn(CARD, CARD, |x, y| {
        let hash = cell(x + 1, y + 1).wrapping_mul(0xC2B2_AE35);
        image::Rgb([(hash >> 8) as u8, (hash >> 16) as u8, (hash >> 24) as u8])
    });
    let found = vae.encode(&pixels(&card, device)?, &Tiling::NEVER, &|| true)?;
    let Some(posterior) = found else {
        return Err(PipelineError::Cancelled);
    };
    let latents = vae.scale(&posterior.mean)?;
    let factor = vae.config().pixels_per_latent() as u32;
    let side = CARD / factor;
    let colours: Vec<[f32; 3]> = (0..side * side)
        .map(|i| {
            let centre = card.get_pixel(i % side * factor + factor / 2, i / side * factor + factor / 2);
            centre.0.map(|v| f32::from(v) / 127.5 - 1.0)
        })
        .collect();
    let planes = to_planes(&Tensor::to_dtype(&latents, DType::F32)?)?;
    let grey = LatentColours::new(vec![[0.3; 3]; vae.config().latent_channels], [0.0; 3]);
    Ok(LatentColours::fitted(&planes, &colours).unwrap_or(grey))
}
