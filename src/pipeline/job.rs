//! One job, from its prompts to its pictures.

use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use image::{GrayImage, RgbImage};

use super::denoise::{Denoise, Keep, Predict, StepWatch};
use super::image_io::{from_model, paste_back};
use super::latents::LatentShape;
use super::noise::TorchGenerator;
use super::preview::Previewer;
use super::start::{Blank, Source, Start};
use super::{PipelineError, Watch};
use crate::domain::event::{Step, Timings};
use crate::domain::request::GenerationRequest;
use crate::models::vae::Vae;
use crate::schedulers::Scheduler;

/// What painting takes from a family of models, with the prompts of one job.
pub trait Painter {
    /// Between pixels and latents.
    fn vae(&self) -> &Vae;

    /// Where it computes.
    fn device(&self) -> &Device;

    /// Whether the denoiser reads the mask and what the mask leaves of the picture; another one inpaints by putting the
    /// kept part back after each step.
    fn is_inpainting_model(&self) -> bool;

    /// Whether diffusers draws the picture's latents even where an inpainting model makes nothing of them: with all of
    /// the noise.
    fn draws_unused_latents(&self) -> bool;

    /// The scheduler of one picture.
    ///
    /// # Errors
    /// The model cannot be sampled as the request asks.
    fn scheduler(&self, request: &GenerationRequest) -> Result<Box<dyn Scheduler>, PipelineError>;

    /// The denoiser of one picture, with latents of `shape`. `beside` is there for inpainting models.
    ///
    /// # Errors
    /// The device refused.
    fn denoiser<'a>(
        &'a self,
        request: &'a GenerationRequest,
        shape: LatentShape,
        beside: Option<Beside<'_>>,
    ) -> Result<Box<dyn Predict + 'a>, PipelineError>;
}

/// What inpainting models read beside the latents.
#[derive(Clone, Copy)]
pub struct Beside<'a> {
    /// The mask in the size of the picture.
    pub mask: &'a GrayImage,
    /// The mask on the latents' grid, 1 where it is painted; one plane.
    pub on_latents: &'a [f32],
    /// Latents `(C, H, W)` of the picture without what the mask covers.
    pub masked: &'a [f32],
}

/// A job that is being painted.
pub struct Job<'a> {
    /// The model, with the prompts read.
    pub painter: &'a dyn Painter,
    /// The request.
    pub request: &'a GenerationRequest,
    /// Makes previews.
    pub previewer: Option<&'a Previewer>,
    /// Where the time goes.
    pub timings: &'a mut Timings,
}

impl Job<'_> {
    /// Paints every picture of the job.
    ///
    /// # Errors
    /// Cancelled, or a part of the model failed.
    pub fn paint(&mut self, watch: &mut dyn Watch) -> Result<Vec<RgbImage>, PipelineError> {
        let shape = LatentShape::of(
            self.request.size,
            self.painter.vae().config().pixels_per_latent(),
            self.painter.vae().config().latent_channels,
        );
        let steps = self.painter.scheduler(self.request)?.steps();
        watch.begins(self.request.count * steps as u32);
        let started = Instant::now();
        let source = Source::of(self.painter, self.request, watch)?;
        let blank = match &source {
            Some(Source { mask: Some(_), .. }) => None,
            _ => Blank::of(self.painter, self.request, watch)?,
        };
        self.timings.vae_encode_s += started.elapsed().as_secs_f64();
        (0..self.request.count)
            .map(|index| self.paint_one(index, shape, source.as_ref(), blank.as_ref(), watch))
            .collect()
    }

    fn paint_one(
        &mut self,
        index: u32,
        shape: LatentShape,
        source: Option<&Source>,
        blank: Option<&Blank>,
        watch: &mut dyn Watch,
    ) -> Result<RgbImage, PipelineError> {
        let started = Instant::now();
        let mut scheduler = self.painter.scheduler(self.request)?;
        if let Some(source) = source
            && scheduler.timesteps().is_empty()
        {
            return Ok(source.picture.clone());
        }
        let mut noise = TorchGenerator::new(self.request.seed.wrapping_add(u64::from(index)));
        let start = Start::draw(self.painter, source, scheduler.as_ref(), shape, &mut noise);
        let mut latents = start.latents;
        let mask = source.and_then(|source| source.mask.as_ref());
        let beside = mask.zip(start.masked.as_deref()).map(|(mask, masked)| Beside {
            mask: &mask.picture,
            on_latents: &mask.on_latents,
            masked,
        });
        let beside = beside.or(blank.map(Blank::beside));
        let keep = mask.filter(|_| beside.is_none()).map(|mask| Keep {
            original: &start.original,
            noise: &start.noise,
            mask: &mask.on_latents,
        });
        let mut denoiser = self.painter.denoiser(self.request, shape, beside)?;
        let mut denoise = Denoise {
            denoiser: denoiser.as_mut(),
            keep,
        };
        let mut reporter = Reporter {
            watch: &mut *watch,
            done_before: index as usize * scheduler.steps(),
            total: self.request.count as usize * scheduler.steps(),
            preview_every: self.request.preview_every as usize,
            previewer: self.previewer,
            device: self.painter.device(),
            shape,
        };
        denoise.run(scheduler.as_mut(), &mut latents, &mut noise, &mut reporter)?;
        self.timings.denoise_s += started.elapsed().as_secs_f64();
        self.timings.steps_reused += denoiser.reused();
        let painted = self.decode(&latents, shape, watch)?;
        Ok(match source {
            Some(Source {
                picture,
                mask: Some(mask),
                ..
            }) => paste_back(&painted, picture, &mask.pixels, mask.feather),
            _ => painted,
        })
    }

    fn decode(&mut self, latents: &[f32], shape: LatentShape, watch: &dyn Watch) -> Result<RgbImage, PipelineError> {
        if watch.cancelled() {
            return Err(PipelineError::Cancelled);
        }
        let started = Instant::now();
        let latents = shape.to_device(latents, self.painter.device(), DType::F32)?;
        let vae = self.painter.vae();
        let decoded = vae.decode(&latents, vae.tiling(), &|| !watch.cancelled())?;
        let picture = picture_of(&decoded.ok_or(PipelineError::Cancelled)?)?;
        self.timings.vae_decode_s += started.elapsed().as_secs_f64();
        Ok(picture)
    }
}

/// The VAE's `(1, H, W, 3)` from -1 to 1 as a picture; an error where it holds NaN, which would come out black.
fn picture_of(decoded: &Tensor) -> Result<RgbImage, PipelineError> {
    let (_, height, width, _) = decoded.dims4()?;
    let values: Vec<f32> = decoded
        .to_device(&Device::Cpu)?
        .to_dtype(DType::F32)?
        .flatten_all()?
        .to_vec1()?;
    if !values.iter().all(|value| value.is_finite()) {
        return Err(PipelineError::NotFinite { part: "vae" });
    }
    Ok(from_model(&values, width as u32, height as u32))
}

/// Tells the watcher of steps and previews.
struct Reporter<'a> {
    watch: &'a mut dyn Watch,
    done_before: usize,
    total: usize,
    preview_every: usize,
    previewer: Option<&'a Previewer>,
    device: &'a Device,
    shape: LatentShape,
}

impl StepWatch for Reporter<'_> {
    fn before_call(&mut self) -> Result<(), PipelineError> {
        if self.watch.cancelled() {
            return Err(PipelineError::Cancelled);
        }
        Ok(())
    }

    fn after_step(&mut self, done: usize, denoised: &[f32]) -> Result<(), PipelineError> {
        let step = Step {
            step: (self.done_before + done) as u32,
            total: self.total as u32,
        };
        let watch = &mut *self.watch;
        watch.step(step);
        if self.preview_every > 0
            && done.is_multiple_of(self.preview_every)
            && let Some(previewer) = self.previewer
            && denoised.len() == self.shape.len()
        {
            let latents = self.shape.to_device(denoised, self.device, DType::F32)?;
            watch.preview(step, previewer.picture(&latents)?);
        }
        Ok(())
    }
}
