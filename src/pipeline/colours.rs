//! Preview colours of latents that nobody has published.

use candle_core::{DType, Tensor};
use image::RgbImage;

use super::PipelineError;
use super::latents::to_planes;
use super::preview::LatentColours;
use super::source::pixels;
use crate::models::vae::{Tiling, Vae};

/// Side of the picture that unknown latents are measured with.
const CARD: u32 = 128;

/// Finds the colours of a VAE's latents: encodes a card of many colours and fits a linear map to what comes out.
///
/// # Errors
/// The device refused.
pub fn find_colours(vae: &Vae, device: &candle_core::Device) -> Result<LatentColours, PipelineError> {
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
