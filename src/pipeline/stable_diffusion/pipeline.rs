//! Stable Diffusion behind the pipeline's boundary.

use std::path::PathBuf;
use std::time::Instant;

use image::RgbImage;

use super::model::Parts;
use super::painter::{Prompted, read_prompts};
use crate::domain::event::{Generation, Timings};
use crate::domain::model::ModelInfo;
use crate::domain::request::{GenerationRequest, LoraRef};
use crate::pipeline::colours::find_colours;
use crate::pipeline::job::Job;
use crate::pipeline::loras::JobLoras;
use crate::pipeline::output::encode;
use crate::pipeline::preview::Previewer;
use crate::pipeline::tags::read_tags;
use crate::pipeline::{Pipeline, PipelineError, Watch};

/// A loaded Stable Diffusion 1.x, 2.x or XL model.
pub struct StableDiffusion {
    info: ModelInfo,
    parts: Parts,
    loras: JobLoras,
}

impl StableDiffusion {
    /// A pipeline of loaded parts.
    #[must_use]
    pub fn new(info: ModelInfo, parts: Parts, lora_dir: Option<PathBuf>) -> Self {
        Self {
            info,
            parts,
            loras: JobLoras::new(lora_dir),
        }
    }

    fn apply_loras(&mut self, wanted: &[LoraRef], warnings: &mut Vec<String>) -> Result<(), PipelineError> {
        let parts = &mut self.parts;
        let applied = self.loras.apply(wanted, || parts.layers());
        if applied
            .as_ref()
            .map_or(true, |applied| applied.changed && applied.touches_text)
        {
            parts.encoders.forget();
        }
        let applied = applied?;
        warnings.extend(applied.warnings);
        Ok(())
    }

    fn run(
        &mut self,
        request: &GenerationRequest,
        watch: &mut dyn Watch,
        timings: &mut Timings,
    ) -> Result<(Vec<RgbImage>, Vec<String>), PipelineError> {
        let mut warnings = Vec::new();
        let tags = read_tags(request, &mut warnings)?;
        if watch.cancelled() {
            return Err(PipelineError::Cancelled);
        }
        let started = Instant::now();
        let wanted = [request.loras.as_slice(), &tags.loras].concat();
        self.apply_loras(&wanted, &mut warnings)?;
        timings.lora_s = started.elapsed().as_secs_f64();
        let started = Instant::now();
        let prompts = read_prompts(&mut self.parts, request, &tags.text)?;
        if self.parts.compute.drops_encoders() {
            self.parts.encoders.unload();
        }
        timings.text_encode_s += started.elapsed().as_secs_f64();
        if request.preview_every > 0 && self.parts.previewer.is_none() {
            let colours = find_colours(&self.parts.vae, &self.parts.compute.device)?;
            self.parts.previewer = Some(Previewer::Colours(colours));
        }
        let mut job = Job {
            painter: &Prompted {
                parts: &self.parts,
                prompts: &prompts,
            },
            request,
            previewer: self.parts.previewer.as_ref(),
            timings,
        };
        Ok((job.paint(watch)?, warnings))
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
