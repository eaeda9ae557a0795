//! What a job starts from: the picture and the mask of its request, resized and encoded once, and for each of its pictures
//! the latents and the noise that are drawn.

use candle_core::{DType, Tensor};
use image::{GrayImage, RgbImage};

use super::image_io::{BinaryMask, resize_luma, resize_rgb};
use super::job::{Beside, Painter};
use super::latents::LatentShape;
use super::noise::TorchGenerator;
use super::source::{EncodedPicture, masked_pixels, pixels};
use super::{PipelineError, Watch};
use crate::domain::request::{GenerationRequest, Operation};
use crate::schedulers::Scheduler;

/// What a job works on besides the noise, the same for each of its pictures.
pub struct Source {
    /// In the size of the result.
    pub picture: RgbImage,
    strength: f32,
    /// Of img2img, and of inpainting where it needs the whole picture's latents.
    encoded: Option<EncodedPicture>,
    /// Of inpainting.
    pub mask: Option<Mask>,
}

impl Source {
    /// Resizes and encodes what a job starts from; `None` for txt2img.
    ///
    /// # Errors
    /// Cancelled, or the VAE failed.
    pub fn of(
        painter: &dyn Painter,
        request: &GenerationRequest,
        watch: &dyn Watch,
    ) -> Result<Option<Self>, PipelineError> {
        let size = request.size;
        let (picture, mask, strength, feather) = match &request.operation {
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
        let needs_whole = mask.is_none() || !painter.is_inpainting_model() || strength < 1.0;
        let encoded = if needs_whole {
            Some(encode(painter, &pixels(&picture, painter.device())?, watch)?)
        } else {
            None
        };
        let mask = mask.map(|mask| {
            let mask = resize_luma(&mask.0, size.width, size.height);
            Mask::of(painter, &picture, mask, feather, watch)
        });
        let mask = mask.transpose()?;
        Ok(Some(Self {
            picture,
            strength,
            encoded,
            mask,
        }))
    }
}

/// Which part of the picture is painted.
pub struct Mask {
    /// As it was given, in the size of the result.
    pub picture: GrayImage,
    /// Split in two.
    pub pixels: BinaryMask,
    /// Pixels over which the painted part fades in.
    pub feather: u32,
    /// On the latents' grid, 1 where it is painted; one plane.
    pub on_latents: Vec<f32>,
    /// Of the picture without what the mask covers, for inpainting models.
    masked: Option<EncodedPicture>,
}

impl Mask {
    fn of(
        painter: &dyn Painter,
        picture: &RgbImage,
        mask: GrayImage,
        feather: u32,
        watch: &dyn Watch,
    ) -> Result<Self, PipelineError> {
        let pixels = BinaryMask::new(&mask, mask.width(), mask.height());
        let masked = if painter.is_inpainting_model() {
            let kept = masked_pixels(picture, &pixels, painter.device())?;
            Some(encode(painter, &kept, watch)?)
        } else {
            None
        };
        Ok(Self {
            on_latents: pixels.latent_values(painter.vae().config().pixels_per_latent() as u32),
            picture: mask,
            pixels,
            feather,
            masked,
        })
    }
}

/// What stands for mask and masked picture when an inpainting model paints without a mask: everything is to be painted,
/// over grey.
pub struct Blank {
    mask: GrayImage,
    on_latents: Vec<f32>,
    masked: Vec<f32>,
}

impl Blank {
    /// What an inpainting model is shown when there is no mask. `None` for other models.
    ///
    /// # Errors
    /// Cancelled, or the VAE failed.
    pub fn of(
        painter: &dyn Painter,
        request: &GenerationRequest,
        watch: &dyn Watch,
    ) -> Result<Option<Self>, PipelineError> {
        if !painter.is_inpainting_model() {
            return Ok(None);
        }
        let size = request.size;
        let mask = GrayImage::from_pixel(size.width, size.height, image::Luma([255]));
        let all = BinaryMask::new(&mask, size.width, size.height);
        let grey = (1, size.height as usize, size.width as usize, 3);
        let grey = Tensor::zeros(grey, DType::F32, painter.device())?;
        Ok(Some(Self {
            on_latents: all.latent_values(painter.vae().config().pixels_per_latent() as u32),
            mask,
            masked: encode(painter, &grey, watch)?.mean(),
        }))
    }

    /// As an inpainting model reads it.
    pub fn beside(&self) -> Beside<'_> {
        Beside {
            mask: &self.mask,
            on_latents: &self.on_latents,
            masked: &self.masked,
        }
    }
}

/// What one picture starts from.
pub struct Start {
    /// At the first noise level.
    pub latents: Vec<f32>,
    /// The start noise.
    pub noise: Vec<f32>,
    /// Of the picture; empty without one.
    pub original: Vec<f32>,
    /// Of the picture without what the mask covers, for inpainting models.
    pub masked: Option<Vec<f32>>,
}

impl Start {
    /// Draws in diffusers' order: the picture's latents, the start noise, the masked picture's latents.
    pub fn draw(
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

fn encode(painter: &dyn Painter, pixels: &Tensor, watch: &dyn Watch) -> Result<EncodedPicture, PipelineError> {
    EncodedPicture::of(painter.vae(), pixels, &|| !watch.cancelled())
}
