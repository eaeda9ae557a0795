//! The picture that a job starts from, and the mask of what is painted anew.

use candle_core::{Device, Tensor};
use image::{GrayImage, RgbImage};

use super::latents::{LatentShape, to_planes};
use crate::models::vae::{Posterior, Tiling, Vae};
use crate::pipeline::PipelineError;

/// A picture as the VAE sees it: a distribution of latents.
pub struct EncodedPicture {
    mean: Vec<f32>,
    std: Vec<f32>,
    scaling: f32,
    shift: f32,
}

impl EncodedPicture {
    /// Encodes pixels from -1 to 1, `(1, H, W, 3)`.
    ///
    /// # Errors
    /// Cancelled, or the device refused, or the VAE's output is not finite.
    pub fn of(vae: &Vae, pixels: &Tensor, go_on: &dyn Fn() -> bool) -> Result<Self, PipelineError> {
        let found = vae.encode(pixels, &Tiling::default(), go_on)?;
        let Posterior { mean, std } = found.ok_or(PipelineError::Cancelled)?;
        let (mean, std) = (to_planes(&mean)?, to_planes(&std)?);
        if !mean.iter().chain(&std).all(|value| value.is_finite()) {
            return Err(PipelineError::NotFinite { part: "vae" });
        }
        let config = vae.config();
        Ok(Self {
            mean,
            std,
            scaling: config.scaling_factor as f32,
            shift: config.shift_factor.unwrap_or(0.0) as f32,
        })
    }

    /// One draw of its latents, as the denoiser has them.
    pub fn sample(&self, noise: &[f32]) -> Vec<f32> {
        let drawn = self.mean.iter().zip(&self.std).zip(noise);
        drawn
            .map(|((mean, std), noise)| self.scaling * (mean + std * noise - self.shift))
            .collect()
    }
}

/// A picture's pixels from -1 to 1, `(1, H, W, 3)`.
///
/// # Errors
/// The device refused.
pub fn pixels(picture: &RgbImage, device: &Device) -> candle_core::Result<Tensor> {
    let values: Vec<f32> = picture
        .as_raw()
        .iter()
        .map(|v| 2.0 * (f32::from(*v) / 255.0) - 1.0)
        .collect();
    tensor(values, picture, device)
}

/// As [`pixels`], with 0 (grey) where `mask` is white.
///
/// # Errors
/// The device refused.
pub fn masked_pixels(picture: &RgbImage, mask: &GrayImage, device: &Device) -> candle_core::Result<Tensor> {
    let kept = picture.pixels().zip(mask.pixels()).flat_map(|(colour, mask)| {
        let keep = if is_painted(mask.0[0]) { 0.0 } else { 1.0 };
        colour.0.map(|v| (2.0 * (f32::from(v) / 255.0) - 1.0) * keep)
    });
    tensor(kept.collect(), picture, device)
}

fn tensor(values: Vec<f32>, picture: &RgbImage, device: &Device) -> candle_core::Result<Tensor> {
    let shape = (1, picture.height() as usize, picture.width() as usize, 3);
    Tensor::from_vec(values, shape, device)
}

/// Whether a pixel of a mask is painted anew.
pub fn is_painted(mask: u8) -> bool {
    mask >= 128
}

/// The mask on the latents' grid, 1 where it is painted: each latent takes the pixel at its corner, as torch's nearest
/// interpolation does.
pub fn latent_mask(mask: &GrayImage, shape: LatentShape) -> Vec<f32> {
    let (fy, fx) = (
        mask.height() as usize / shape.height,
        mask.width() as usize / shape.width,
    );
    (0..shape.plane())
        .map(|i| {
            let (y, x) = (i / shape.width * fy, i % shape.width * fx);
            f32::from(u8::from(is_painted(mask.get_pixel(x as u32, y as u32).0[0])))
        })
        .collect()
}
