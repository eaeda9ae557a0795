//! The picture that a job starts from, as the VAE sees it.

use candle_core::{Device, Tensor};
use image::RgbImage;

use super::PipelineError;
use super::image_io::{BinaryMask, to_model};
use super::latents::to_planes;
use crate::models::vae::{Posterior, Vae};

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
        let found = vae.encode(pixels, vae.tiling(), go_on)?;
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

    /// The middle of the distribution, as the denoiser has it.
    pub fn mean(&self) -> Vec<f32> {
        self.mean
            .iter()
            .map(|mean| self.scaling * (mean - self.shift))
            .collect()
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
    tensor(to_model(picture), picture, device)
}

/// As [`pixels`], with 0 (grey) where the mask is white.
///
/// # Errors
/// The device refused.
pub fn masked_pixels(picture: &RgbImage, mask: &BinaryMask, device: &Device) -> candle_core::Result<Tensor> {
    let mut values = to_model(picture);
    mask.blank(&mut values);
    tensor(values, picture, device)
}

fn tensor(values: Vec<f32>, picture: &RgbImage, device: &Device) -> candle_core::Result<Tensor> {
    let shape = (1, picture.height() as usize, picture.width() as usize, 3);
    Tensor::from_vec(values, shape, &Device::Cpu)?.to_device(device)
}

/// Whether a pixel of a mask is painted anew.
pub fn is_painted(mask: u8) -> bool {
    mask >= 128
}
