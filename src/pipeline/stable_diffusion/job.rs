//! One job, from its prompts to its pictures.

use std::time::Instant;

use candle_core::{DType, Tensor};
use image::{GrayImage, RgbImage};

use super::denoise::{Denoise, Keep, StepWatch};
use super::guidance::Guidance;
use super::latents::LatentShape;
use super::model::Parts;
use super::pictures::{Paste, resize_mask, resize_picture, to_picture};
use super::prompts::{Prepared, Prompts, Reading, guidance_embedding};
use super::source::{EncodedPicture, latent_mask, masked_pixels, pixels};
use crate::domain::event::{Step, Timings};
use crate::domain::request::{GenerationRequest, Operation, SizeConditioning};
use crate::models::vae::Tiling;
use crate::pipeline::noise::TorchGenerator;
use crate::pipeline::preview::LatentColours;
use crate::pipeline::{PipelineError, Watch};
use crate::schedulers::{self, Scheduler, decimal};

/// What a job works on besides the noise, the same for each of its pictures.
struct Source {
    picture: RgbImage,
    strength: f32,
    /// Of img2img, and of inpainting where it needs the whole picture's latents.
    encoded: Option<EncodedPicture>,
    mask: Option<Mask>,
}

struct Mask {
    paste: Paste,
    on_latents: Vec<f32>,
    /// Of the picture without what the mask covers, for inpainting models.
    masked: Option<EncodedPicture>,
}

/// A job that is being painted.
pub struct Job<'a> {
    /// The model.
    pub parts: &'a Parts,
    /// The request.
    pub request: &'a GenerationRequest,
    /// The prompts, read.
    pub prompts: &'a Prompts,
    /// Map to preview colours.
    pub colours: Option<&'a LatentColours>,
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
            self.parts.vae.config().pixels_per_latent(),
            self.parts.vae.config().latent_channels,
        );
        let started = Instant::now();
        let source = self.source(shape, watch)?;
        self.timings.vae_encode_s += started.elapsed().as_secs_f64();
        (0..self.request.count)
            .map(|index| self.paint_one(index, shape, source.as_ref(), watch))
            .collect()
    }

    fn paint_one(
        &mut self,
        index: u32,
        shape: LatentShape,
        source: Option<&Source>,
        watch: &mut dyn Watch,
    ) -> Result<RgbImage, PipelineError> {
        let started = Instant::now();
        let mut scheduler = scheduler_of(self.parts, self.request)?;
        if let Some(Source {
            picture, mask: None, ..
        }) = source
            && scheduler.timesteps().is_empty()
        {
            return Ok(picture.clone());
        }
        let mut noise = TorchGenerator::new(self.request.seed.wrapping_add(u64::from(index)));
        let start = Start::draw(source, scheduler.as_ref(), shape, &mut noise);
        let mut latents = start.latents;
        let mut prompts = self.prepared()?;
        let is_inpainting_model = self.parts.is_inpainting_model();
        let keep = source.and_then(|s| s.mask.as_ref()).filter(|_| !is_inpainting_model);
        let mut denoise = Denoise {
            unet: &self.parts.unet,
            device: &self.parts.compute.device,
            prompts: &mut prompts,
            guidance: guidance_of(self.parts, self.request),
            shape,
            beside: &start.beside,
            keep: keep.map(|mask| Keep {
                original: &start.original,
                noise: &start.noise,
                mask: &mask.on_latents,
            }),
        };
        let mut reporter = Reporter {
            watch: &mut *watch,
            done_before: index as usize * scheduler.steps(),
            total: self.request.count as usize * scheduler.steps(),
            preview_every: self.request.preview_every as usize,
            colours: self.colours,
            shape,
        };
        denoise.run(scheduler.as_mut(), &mut latents, &mut noise, &mut reporter)?;
        self.timings.denoise_s += started.elapsed().as_secs_f64();
        let painted = self.decode(&latents, shape, watch)?;
        Ok(match source {
            Some(Source {
                picture,
                mask: Some(mask),
                ..
            }) => mask.paste.onto(picture, &painted),
            _ => painted,
        })
    }

    fn prepared(&self) -> Result<Prepared<'_>, PipelineError> {
        let unet = &self.parts.unet;
        let sizes = unet.config().takes_text_time.then(|| size_numbers(self.request));
        let width = unet.config().guidance_embedding;
        let embedding =
            width.map(|width| guidance_embedding(self.request.guidance_scale, width, &self.parts.compute.device));
        Ok(Prepared::new(unet, self.prompts, sizes, embedding.transpose()?))
    }

    fn decode(&mut self, latents: &[f32], shape: LatentShape, watch: &dyn Watch) -> Result<RgbImage, PipelineError> {
        if watch.cancelled() {
            return Err(PipelineError::Cancelled);
        }
        let started = Instant::now();
        let latents = shape.to_device(latents, &self.parts.compute.device, DType::F32)?;
        let decoded = self
            .parts
            .vae
            .decode(&latents, &Tiling::default(), &|| !watch.cancelled())?;
        let picture = picture_of(&decoded.ok_or(PipelineError::Cancelled)?)?;
        self.timings.vae_decode_s += started.elapsed().as_secs_f64();
        Ok(picture)
    }

    /// Resizes and encodes what the job starts from.
    fn source(&self, shape: LatentShape, watch: &dyn Watch) -> Result<Option<Source>, PipelineError> {
        let size = self.request.size;
        let (picture, mask, strength, feather) = match &self.request.operation {
            Operation::TextToImage => return Ok(None),
            Operation::ImageToImage { image, strength } => (image, None, *strength, 0),
            Operation::Inpaint {
                image,
                mask,
                strength,
                feather,
            } => (image, Some(mask), *strength, *feather),
        };
        let picture = resize_picture(&picture.0, size);
        let mask = mask.map(|mask| resize_mask(&mask.0, size));
        let inpainting_model = self.parts.is_inpainting_model();
        let needs_whole = mask.is_none() || !inpainting_model || strength < 1.0;
        let encoded = if needs_whole {
            Some(self.encode(&pixels(&picture, &self.parts.compute.device)?, watch)?)
        } else {
            None
        };
        let mask = mask.map(|mask| self.mask(&picture, &mask, shape, feather, watch));
        Ok(Some(Source {
            picture,
            strength,
            encoded,
            mask: mask.transpose()?,
        }))
    }

    fn mask(
        &self,
        picture: &RgbImage,
        mask: &GrayImage,
        shape: LatentShape,
        feather: u32,
        watch: &dyn Watch,
    ) -> Result<Mask, PipelineError> {
        let masked = if self.parts.is_inpainting_model() {
            let pixels = masked_pixels(picture, mask, &self.parts.compute.device)?;
            Some(self.encode(&pixels, watch)?)
        } else {
            None
        };
        Ok(Mask {
            paste: Paste::new(mask, feather),
            on_latents: latent_mask(mask, shape),
            masked,
        })
    }

    fn encode(&self, pixels: &Tensor, watch: &dyn Watch) -> Result<EncodedPicture, PipelineError> {
        EncodedPicture::of(&self.parts.vae, pixels, &|| !watch.cancelled())
    }
}

/// What one picture starts from.
struct Start {
    latents: Vec<f32>,
    noise: Vec<f32>,
    original: Vec<f32>,
    beside: Vec<f32>,
}

impl Start {
    /// Draws in diffusers' order: the picture's latents, the start noise, the masked picture's latents.
    fn draw(
        source: Option<&Source>,
        scheduler: &dyn Scheduler,
        shape: LatentShape,
        generator: &mut TorchGenerator,
    ) -> Self {
        let encoded = source.and_then(|source| source.encoded.as_ref());
        let original = encoded.map_or_else(Vec::new, |encoded| encoded.sample(&generator.randn(shape.len())));
        let noise = generator.randn(shape.len());
        let mask = source.and_then(|source| source.mask.as_ref());
        let mut beside = Vec::new();
        if let Some(mask) = mask {
            // A plain model makes nothing of the masked picture, but diffusers draws for it all the same.
            let drawn = generator.randn(shape.len());
            if let Some(masked) = &mask.masked {
                beside.extend_from_slice(&mask.on_latents);
                beside.extend(masked.sample(&drawn));
            }
        }
        let pure = match source {
            None => true,
            Some(source) => source.mask.is_some() && source.strength >= 1.0,
        };
        let latents = if pure {
            noise.iter().map(|value| value * scheduler.init_noise_sigma()).collect()
        } else {
            scheduler.add_noise(&original, &noise, 0)
        };
        Self {
            latents,
            noise,
            original,
            beside,
        }
    }
}

/// Reads both prompts of a request.
///
/// # Errors
/// A text encoder failed.
pub fn read_prompts(parts: &mut Parts, request: &GenerationRequest, prompt: &str) -> Result<Prompts, PipelineError> {
    let steps = scheduler_of(parts, request)?.steps();
    let guided = guidance_of(parts, request).is_used();
    let reading = Reading {
        prompt,
        negative: guided.then_some(request.negative_prompt.as_str()),
        syntax: request.prompt_syntax,
        skip: request.clip_skip.saturating_sub(1) as usize,
        zeros_for_empty: parts.zeros_for_empty,
        steps,
    };
    Ok(Prompts::read(&mut parts.encoders, &reading)?)
}

fn scheduler_of(parts: &Parts, request: &GenerationRequest) -> Result<Box<dyn Scheduler>, PipelineError> {
    let strength = match &request.operation {
        Operation::TextToImage => 1.0,
        Operation::ImageToImage { strength, .. } | Operation::Inpaint { strength, .. } => decimal(*strength),
    };
    let options = schedulers::Options {
        schedule: request.schedule,
        strength,
        eta: request.eta,
        ..schedulers::Options::new(request.sampler, request.steps as usize)
    };
    Ok(schedulers::build(&options, &parts.scheduler)?)
}

/// Models that are told the guidance scale are not guided besides.
fn guidance_of(parts: &Parts, request: &GenerationRequest) -> Guidance {
    let told = parts.unet.config().guidance_embedding.is_some();
    Guidance {
        scale: if told { 1.0 } else { request.guidance_scale },
        interval: request.guidance_interval,
    }
}

/// SDXL's sizes: height and width before the crop, top and left of the crop, height and width aimed at.
fn size_numbers(request: &GenerationRequest) -> [f32; 6] {
    let sizes = request.size_conditioning.unwrap_or(SizeConditioning {
        original: request.size,
        crop_top_left: (0, 0),
        target: request.size,
    });
    [
        sizes.original.height,
        sizes.original.width,
        sizes.crop_top_left.0,
        sizes.crop_top_left.1,
        sizes.target.height,
        sizes.target.width,
    ]
    .map(|v| v as f32)
}

/// The VAE's `(1, H, W, 3)` from -1 to 1 as a picture; an error where it holds NaN, which would come out black.
fn picture_of(decoded: &Tensor) -> Result<RgbImage, PipelineError> {
    let (_, height, width, _) = decoded.dims4()?;
    let values: Vec<f32> = decoded
        .to_device(&candle_core::Device::Cpu)?
        .to_dtype(DType::F32)?
        .flatten_all()?
        .to_vec1()?;
    if !values.iter().all(|value| value.is_finite()) {
        return Err(PipelineError::NotFinite { part: "vae" });
    }
    Ok(to_picture(&values, width as u32, height as u32))
}

/// Tells the watcher of steps and previews.
struct Reporter<'a> {
    watch: &'a mut dyn Watch,
    done_before: usize,
    total: usize,
    preview_every: usize,
    colours: Option<&'a LatentColours>,
    shape: LatentShape,
}

impl StepWatch for Reporter<'_> {
    fn before_call(&mut self) -> Result<(), PipelineError> {
        if self.watch.cancelled() {
            return Err(PipelineError::Cancelled);
        }
        Ok(())
    }

    fn after_step(&mut self, done: usize, denoised: &[f32]) {
        let step = Step {
            step: (self.done_before + done) as u32,
            total: self.total as u32,
        };
        let watch = &mut *self.watch;
        watch.step(step);
        if self.preview_every > 0
            && done.is_multiple_of(self.preview_every)
            && let Some(colours) = self.colours
            && denoised.len() == self.shape.len()
        {
            watch.preview(step, colours.picture(denoised, self.shape.width, self.shape.height));
        }
    }
}
