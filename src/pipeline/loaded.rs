//! A loaded model of any family, behind the pipeline's boundary.

use std::path::PathBuf;
use std::time::Instant;

use image::RgbImage;

use super::colours::find_colours;
use super::job::{Job, Painter};
use super::loras::JobLoras;
use super::output::encode;
use super::preview::Previewer;
use super::tags::read_tags;
use super::{Pipeline, PipelineError, Watch};
use crate::domain::event::{Generation, Timings};
use crate::domain::model::ModelInfo;
use crate::domain::request::{GenerationRequest, LoraRef};
use crate::weights::lora::Layers;

/// What a family of models brings to a job.
pub trait ModelParts {
    /// The prompts of one job, read.
    type Prompts;

    /// Refuses what the family has no such thing for.
    ///
    /// # Errors
    /// The request's field, and why.
    fn refuse(&self, request: &GenerationRequest) -> Result<(), PipelineError>;

    /// The layers that LoRAs change; text encoders that were dropped are read again.
    ///
    /// # Errors
    /// A text encoder could not be read.
    fn layers(&mut self) -> Result<Layers, PipelineError>;

    /// Remembered prompts no longer hold: the text encoders' weights are others.
    fn forget_prompts(&mut self);

    /// Runs the text encoders over both prompts, of which `prompt` comes without tags, and drops them where they are not to stay.
    ///
    /// # Errors
    /// A text encoder failed, or the prompt cannot be read.
    fn read_prompts(
        &mut self,
        request: &GenerationRequest,
        prompt: &str,
        warnings: &mut Vec<String>,
    ) -> Result<Self::Prompts, PipelineError>;

    /// The model with the prompts of one job.
    fn painter<'a>(&'a self, prompts: &'a Self::Prompts) -> Box<dyn Painter + 'a>;
}

/// A loaded model of a family.
pub struct Loaded<P> {
    info: ModelInfo,
    parts: P,
    loras: JobLoras,
    /// Makes previews; `None` until the colours of the latents have been found.
    previewer: Option<Previewer>,
}

impl<P: ModelParts> Loaded<P> {
    /// A pipeline of loaded parts.
    #[must_use]
    pub fn new(info: ModelInfo, parts: P, previewer: Option<Previewer>, lora_dir: Option<PathBuf>) -> Self {
        Self {
            info,
            parts,
            loras: JobLoras::new(lora_dir),
            previewer,
        }
    }

    fn apply_loras(&mut self, wanted: &[LoraRef], warnings: &mut Vec<String>) -> Result<(), PipelineError> {
        let applied = self.loras.apply(wanted, || self.parts.layers());
        // One that failed may have followed one that was taken off the text encoders.
        if applied.as_ref().map_or(true, |it| it.changed && it.touches_text) {
            self.parts.forget_prompts();
        }
        warnings.extend(applied?.warnings);
        Ok(())
    }

    fn run(
        &mut self,
        request: &GenerationRequest,
        watch: &mut dyn Watch,
        timings: &mut Timings,
    ) -> Result<(Vec<RgbImage>, Vec<String>), PipelineError> {
        self.parts.refuse(request)?;
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
        let prompts = self.parts.read_prompts(request, &tags.text, &mut warnings)?;
        timings.text_encode_s += started.elapsed().as_secs_f64();
        let painter = self.parts.painter(&prompts);
        if request.preview_every > 0 && self.previewer.is_none() {
            self.previewer = Some(Previewer::Colours(find_colours(painter.vae(), painter.device())?));
        }
        let mut job = Job {
            painter: painter.as_ref(),
            request,
            previewer: self.previewer.as_ref(),
            timings,
        };
        Ok((job.paint(watch)?, warnings))
    }
}

impl<P: ModelParts> Pipeline for Loaded<P> {
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
