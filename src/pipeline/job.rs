//! One job, from its prompts to its pictures.

use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use image::{GrayImage, RgbImage};

use super::denoise::{Denoise, Keep, Predict, StepWatch};
use super::image_io::{BinaryMask, from_model, paste_back, resize_luma, resize_rgb};
use super::latents::LatentShape;
use super::noise::TorchGenerator;
use super::preview::Previewer;
use super::source::{EncodedPicture, masked_pixels, pixels};
use super::{PipelineError, Watch};
use crate::domain::event::{Step, Timings};
use crate::domain::request::{GenerationRequest, Operation};
use crate::models::vae::{Tiling, Vae};
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

/// What a job works on besides the noise, the same for each of its pictures.
struct Source {
    picture: RgbImage,
    strength: f32,
    /// Of img2img, and of inpainting where it needs the whole picture's latents.
    encoded: Option<EncodedPicture>,
    mask: Option<Mask>,
}

struct Mask {
    picture: GrayImage,
    pixels: BinaryMask,
    feather: u32,
    on_latents: Vec<f32>,
    /// Of the picture without what the mask covers, for inpainting models.
    masked: Option<EncodedPicture>,
}

/// What stands for mask and masked picture when an inpainting model paints without a mask: everything is to be painted,
/// over grey.
struct Blank {
    mask: GrayImage,
    on_latents: Vec<f32>,
    masked: Vec<f32>,
}

impl Blank {
    fn beside(&self) -> Beside<'_> {
        Beside {
            mask: &self.mask,
            on_latents: &self.on_latents,
            masked: &self.masked,
        }
    }
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
        let started = Instant::now();
        let source = self.source(watch)?;
        let blank = self.blank(source.as_ref(), watch)?;
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
        if let Some(Source {
            picture, mask: None, ..
        }) = source
            && scheduler.timesteps().is_empty()
        {
            return Ok(picture.clone());
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
        let decoded = self
            .painter
            .vae()
            .decode(&latents, &Tiling::default(), &|| !watch.cancelled())?;
        let picture = picture_of(&decoded.ok_or(PipelineError::Cancelled)?)?;
        self.timings.vae_decode_s += started.elapsed().as_secs_f64();
        Ok(picture)
    }

    /// Resizes and encodes what the job starts from.
    fn source(&self, watch: &dyn Watch) -> Result<Option<Source>, PipelineError> {
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
        let picture = resize_rgb(&picture.0, size.width, size.height);
        let mask = mask.map(|mask| resize_luma(&mask.0, size.width, size.height));
        let inpainting_model = self.painter.is_inpainting_model();
        let needs_whole = mask.is_none() || !inpainting_model || strength < 1.0;
        let encoded = if needs_whole {
            Some(self.encode(&pixels(&picture, self.painter.device())?, watch)?)
        } else {
            None
        };
        let mask = mask.map(|mask| self.mask(&picture, mask, feather, watch));
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
        mask: GrayImage,
        feather: u32,
        watch: &dyn Watch,
    ) -> Result<Mask, PipelineError> {
        let pixels = BinaryMask::new(&mask, mask.width(), mask.height());
        let masked = if self.painter.is_inpainting_model() {
            let pixels = masked_pixels(picture, &pixels, self.painter.device())?;
            Some(self.encode(&pixels, watch)?)
        } else {
            None
        };
        Ok(Mask {
            on_latents: pixels.latent_values(self.painter.vae().config().pixels_per_latent() as u32),
            picture: mask,
            pixels,
            feather,
            masked,
        })
    }

    /// What an inpainting model is shown when there is no mask. `None` for other models.
    fn blank(&self, source: Option<&Source>, watch: &dyn Watch) -> Result<Option<Blank>, PipelineError> {
        let masked = source.is_some_and(|source| source.mask.is_some());
        if masked || !self.painter.is_inpainting_model() {
            return Ok(None);
        }
        let size = self.request.size;
        let mask = GrayImage::from_pixel(size.width, size.height, image::Luma([255]));
        let all = BinaryMask::new(&mask, size.width, size.height);
        let grey = (1, size.height as usize, size.width as usize, 3);
        let grey = Tensor::zeros(grey, DType::F32, self.painter.device())?;
        Ok(Some(Blank {
            on_latents: all.latent_values(self.painter.vae().config().pixels_per_latent() as u32),
            mask,
            masked: self.encode(&grey, watch)?.mean(),
        }))
    }

    fn encode(&self, pixels: &Tensor, watch: &dyn Watch) -> Result<EncodedPicture, PipelineError> {
        EncodedPicture::of(self.painter.vae(), pixels, &|| !watch.cancelled())
    }
}

/// What one picture starts from.
struct Start {
    latents: Vec<f32>,
    noise: Vec<f32>,
    original: Vec<f32>,
    masked: Option<Vec<f32>>,
}

impl Start {
    /// Draws in diffusers' order: the picture's latents, the start noise, the masked picture's latents.
    fn draw(
        painter: &dyn Painter,
        source: Option<&Source>,
        scheduler: &dyn Scheduler,
        shape: LatentShape,
        generator: &mut TorchGenerator,
    ) -> Self {
        let encoded = source.and_then(|source| source.encoded.as_ref());
        let drawn = encoded.is_some() || (source.is_some() && painter.draws_unused_latents());
        let of_picture = drawn.then(|| generator.randn(shape.len()));
        let original = encoded
            .zip(of_picture)
            .map_or_else(Vec::new, |(encoded, noise)| encoded.sample(&noise));
        let noise = generator.randn(shape.len());
        let mask = source.and_then(|source| source.mask.as_ref());
        // A plain model makes nothing of the masked picture, but diffusers draws for it all the same.
        let masked = mask.and_then(|mask| {
            let drawn = generator.randn(shape.len());
            mask.masked.as_ref().map(|masked| masked.sample(&drawn))
        });
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
            masked,
        }
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
