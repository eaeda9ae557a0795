//! Previews: a linear map from latents to colours, at one pixel a latent, which costs a few thousand multiplications; or
//! a tiny decoder (TAESD) at full size, where its file is given.

use std::path::Path;
use std::rc::Rc;

use candle_core::{DType, Device, Tensor};
use image::{Rgb, RgbImage};

use super::image_io::from_model;
use crate::models::ModelError;
use crate::models::taesd::{Taesd, TaesdConfig};
use crate::weights::{SafeTensors, Weights, WeightsError};

/// How latents become a preview.
#[derive(Debug)]
pub enum Previewer {
    /// By a linear map.
    Colours(LatentColours),
    /// By a tiny decoder.
    Tiny(Taesd),
}

impl Previewer {
    /// The tiny decoder of a folder (`config.json` and a `.safetensors` file) or of a file for latents of `channels`.
    ///
    /// # Errors
    /// It is not there, damaged, or for other latents.
    pub fn open(path: &Path, channels: usize, device: &Device, dtype: DType) -> Result<Self, ModelError> {
        let (config, file) = if path.is_dir() {
            let name = path.join("config.json");
            let text = std::fs::read_to_string(&name).map_err(|source| WeightsError::Io { path: name, source })?;
            (
                TaesdConfig::parse(&text)?,
                path.join("diffusion_pytorch_model.safetensors"),
            )
        } else {
            let mut config = TaesdConfig::default();
            config.latent_channels = channels;
            (config, path.to_owned())
        };
        if config.latent_channels != channels {
            let reason = format!(
                "it is for latents of {} channels, not {channels}",
                config.latent_channels
            );
            return Err(WeightsError::Damaged { path: file, reason }.into());
        }
        let weights = Weights::new(Rc::new(SafeTensors::open(&file)?), device.clone(), dtype);
        Ok(Self::Tiny(Taesd::load(&weights, &config)?))
    }

    /// A preview of latents `(1, H, W, C)`.
    ///
    /// # Errors
    /// The device refused.
    pub fn picture(&self, latents: &Tensor) -> candle_core::Result<RgbImage> {
        let (pixels, colours) = match self {
            Self::Colours(colours) => (latents.clone(), Some(colours)),
            Self::Tiny(decoder) => (decoder.decode(latents)?, None),
        };
        let (_, height, width, _) = pixels.dims4()?;
        let values: Vec<f32> = pixels
            .to_device(&Device::Cpu)?
            .to_dtype(DType::F32)?
            .flatten_all()?
            .to_vec1()?;
        Ok(match colours {
            Some(colours) => colours.picture(&values, width, height),
            None => from_model(&values, width as u32, height as u32),
        })
    }
}

/// What each latent channel adds to red, green and blue, for colours from -1 to 1.
#[derive(Clone, Debug, PartialEq)]
pub struct LatentColours {
    factors: Vec<[f32; 3]>,
    bias: [f32; 3],
}

impl LatentColours {
    /// A map of `factors` for each channel and a constant.
    #[must_use]
    pub fn new(factors: Vec<[f32; 3]>, bias: [f32; 3]) -> Self {
        Self { factors, bias }
    }

    /// Latents of the VAE of Stable Diffusion 1.x and 2.x (factors as ComfyUI has them).
    #[must_use]
    pub fn stable_diffusion() -> Self {
        Self {
            factors: vec![
                [0.3512, 0.2297, 0.3227],
                [0.3250, 0.4974, 0.2350],
                [-0.2829, 0.1762, 0.2721],
                [-0.2120, -0.2616, -0.7177],
            ],
            bias: [0.0; 3],
        }
    }

    /// Latents of the VAE of SDXL (factors as ComfyUI has them).
    #[must_use]
    pub fn sdxl() -> Self {
        Self {
            factors: vec![
                [0.3651, 0.4232, 0.4341],
                [-0.2533, -0.0042, 0.1068],
                [0.1076, 0.1111, -0.0362],
                [-0.3165, -0.2492, -0.2188],
            ],
            bias: [0.1084, -0.0175, -0.0011],
        }
    }

    /// Latents of FLUX.1's VAE (factors as ComfyUI has them).
    #[must_use]
    pub fn flux() -> Self {
        Self {
            factors: vec![
                [-0.0346, 0.0244, 0.0681],
                [0.0034, 0.0210, 0.0687],
                [0.0275, -0.0668, -0.0433],
                [-0.0174, 0.0160, 0.0617],
                [0.0859, 0.0721, 0.0329],
                [0.0004, 0.0383, 0.0115],
                [0.0405, 0.0861, 0.0915],
                [-0.0236, -0.0185, -0.0259],
                [-0.0245, 0.0250, 0.1180],
                [0.1008, 0.0755, -0.0421],
                [-0.0515, 0.0201, 0.0011],
                [0.0428, -0.0012, -0.0036],
                [0.0817, 0.0765, 0.0749],
                [-0.1264, -0.0522, -0.1103],
                [-0.0280, -0.0881, -0.0499],
                [-0.1262, -0.0982, -0.0778],
            ],
            bias: [-0.0329, -0.0718, -0.0851],
        }
    }

    /// The map that fits best, in the least squares, what `planes` `(C, H, W)` decode to: `colours` are the `H * W`
    /// pixels, each from -1 to 1. `None` where the latents do not tell the channels apart.
    #[must_use]
    pub fn fitted(planes: &[f32], colours: &[[f32; 3]]) -> Option<Self> {
        let plane = colours.len();
        let channels = planes.len().checked_div(plane)?;
        let row = |pixel: usize| {
            let own = (0..channels).map(move |c| f64::from(planes[c * plane + pixel]));
            own.chain(std::iter::once(1.0)).collect::<Vec<_>>()
        };
        let n = channels + 1;
        // Normal equations, with the three right hand sides at the end of each row.
        let mut system = vec![vec![0.0; n + 3]; n];
        for (pixel, colour) in colours.iter().enumerate() {
            let values = row(pixel);
            for (i, equation) in system.iter_mut().enumerate() {
                for (j, value) in values.iter().enumerate() {
                    equation[j] += values[i] * value;
                }
                for (c, target) in colour.iter().enumerate() {
                    equation[n + c] += values[i] * f64::from(*target);
                }
            }
        }
        let solution = solve(system)?;
        let as_f32 = |row: &[f64; 3]| row.map(|v| v as f32);
        Some(Self {
            factors: solution[..channels].iter().map(as_f32).collect(),
            bias: as_f32(&solution[channels]),
        })
    }

    /// Latents `(height, width, C)` as a picture.
    #[must_use]
    pub fn picture(&self, latents: &[f32], width: usize, height: usize) -> RgbImage {
        let channels = self.factors.len();
        RgbImage::from_fn(width as u32, height as u32, |x, y| {
            let pixel = y as usize * width + x as usize;
            let mut colour = self.bias;
            for (c, factors) in self.factors.iter().enumerate() {
                let value = latents.get(pixel * channels + c).copied().unwrap_or(0.0);
                for (sum, factor) in colour.iter_mut().zip(factors) {
                    *sum += value * factor;
                }
            }
            Rgb(colour.map(|v| ((v + 1.0) * 127.5).round().clamp(0.0, 255.0) as u8))
        })
    }
}

/// Gauss-Jordan elimination of `n` equations with three right hand sides each.
fn solve(mut system: Vec<Vec<f64>>) -> Option<Vec<[f64; 3]>> {
    let n = system.len();
    for column in 0..n {
        let pivot = (column..n).max_by(|a, b| system[*a][column].abs().total_cmp(&system[*b][column].abs()))?;
        if system[pivot][column].abs() < 1e-9 {
            return None;
        }
        system.swap(column, pivot);
        let pivot_row: Vec<f64> = system[column].iter().map(|v| v / system[column][column]).collect();
        for (i, equation) in system.iter_mut().enumerate() {
            let factor = if i == column { 0.0 } else { equation[column] };
            for (value, of_pivot) in equation.iter_mut().zip(&pivot_row) {
                *value -= factor * of_pivot;
            }
        }
        system[column] = pivot_row;
    }
    Some(system.iter().map(|row| [row[n], row[n + 1], row[n + 2]]).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_is_grey_and_colours_are_clamped() {
        let map = LatentColours::stable_diffusion();
        assert_eq!(map.picture(&[0.0; 24], 3, 2).get_pixel(1, 1).0, [128; 3]);
        let mut planes = vec![0.0; 24];
        planes[1] = 100.0;
        let picture = map.picture(&planes, 3, 2);
        assert_eq!((picture.width(), picture.height()), (3, 2));
        assert_eq!(picture.get_pixel(0, 0).0, [255; 3]);
        assert_eq!(picture.get_pixel(1, 0).0, [128; 3]);
    }

    #[test]
    fn a_fit_finds_the_map_it_was_made_from() {
        let map = LatentColours::sdxl();
        let planes: Vec<f32> = (0..4 * 50)
            .map(|i| ((i * 37 % 101) as f32 / 50.0 - 1.0) * 0.8)
            .collect();
        let colours: Vec<[f32; 3]> = (0..50)
            .map(|pixel| {
                let mut colour = map.bias;
                for (c, factors) in map.factors.iter().enumerate() {
                    for (sum, factor) in colour.iter_mut().zip(factors) {
                        *sum += planes[c * 50 + pixel] * factor;
                    }
                }
                colour
            })
            .collect();
        let fitted = LatentColours::fitted(&planes, &colours).unwrap();
        for (found, expected) in fitted.factors.iter().flatten().zip(map.factors.iter().flatten()) {
            assert!((found - expected).abs() < 1e-4, "{found} is not {expected}");
        }
        assert_eq!(LatentColours::fitted(&[1.0; 200], &colours), None);
    }
}
