//! The whole autoencoder.

use candle_core::{DType, Result, Tensor};

use super::super::ModelError;
use super::config::VaeConfig;
use super::decoder::Decoder;
use super::encoder::Encoder;
use super::tiles::{Tiling, in_tiles};
use crate::weights::Weights;

/// What the encoder says of a picture's latents: a normal distribution for each number, `(B, h, w, latent_channels)`,
/// `f32`, not scaled yet.
#[derive(Clone, Debug)]
pub struct Posterior {
    /// Means.
    pub mean: Tensor,
    /// Standard deviations.
    pub std: Tensor,
}

impl Posterior {
    /// From the encoder's `(B, h, w, 2 * latent_channels)`.
    fn of(moments: &Tensor) -> Result<Self> {
        let channels = moments.dim(3)? / 2;
        let mean = moments.narrow(3, 0, channels)?.contiguous()?;
        let log_variance = moments
            .narrow(3, channels, channels)?
            .contiguous()?
            .clamp(-30f32, 20f32)?;
        Ok(Self {
            mean,
            std: (log_variance * 0.5)?.exp()?,
        })
    }

    /// One draw; `noise` is standard normal, of the shape of the means.
    ///
    /// # Errors
    /// The shape does not fit, or the device refused.
    pub fn sample(&self, noise: &Tensor) -> Result<Tensor> {
        &self.mean + (&self.std * noise)?
    }
}

/// diffusers' `AutoencoderKL`.
#[derive(Debug)]
pub struct Vae {
    config: VaeConfig,
    dtype: DType,
    tiling: Tiling,
    encoder: Encoder,
    decoder: Decoder,
}

impl Vae {
    /// Builds it from weights in diffusers' names, to compute in their type: see [`VaeConfig::compute_dtype`].
    ///
    /// # Errors
    /// A tensor is missing or does not fit.
    pub fn load(weights: &Weights, config: &VaeConfig) -> std::result::Result<Self, ModelError> {
        Ok(Self {
            config: config.clone(),
            dtype: weights.dtype(),
            tiling: Tiling::of(weights.device(), weights.dtype()),
            encoder: Encoder::load(weights, config)?,
            decoder: Decoder::load(weights, config)?,
        })
    }

    /// Its configuration.
    pub fn config(&self) -> &VaeConfig {
        &self.config
    }

    /// When large pictures are done in tiles.
    pub fn tiling(&self) -> &Tiling {
        &self.tiling
    }

    /// Where the latents of pictures `(B, H, W, 3)` from -1 to 1 lie; sides are multiples of
    /// [`VaeConfig::pixels_per_latent`]. `go_on` is asked between blocks and tiles; `None` once it says no.
    ///
    /// # Errors
    /// The shape does not fit, or the device refused.
    pub fn encode(&self, pictures: &Tensor, tiling: &Tiling, go_on: &dyn Fn() -> bool) -> Result<Option<Posterior>> {
        let pixels = self.config.pixels_per_latent();
        let run = |x: &Tensor| self.encoder.forward(&x.to_dtype(self.dtype)?, go_on);
        let moments = each_picture(pictures, |picture| {
            let (_, height, width, _) = picture.dims4()?;
            if tiling.applies(height / pixels, width / pixels) {
                return in_tiles(picture, tiling, (pixels, 1), run);
            }
            run(picture)
        })?;
        moments.map(|moments| Posterior::of(&moments)).transpose()
    }

    /// Pictures `(B, 8h, 8w, 3)`, about -1 to 1, of latents `(B, h, w, latent_channels)` as the denoiser has them. `go_on`
    /// is asked between blocks and tiles; `None` once it says no.
    ///
    /// # Errors
    /// The shape does not fit, or the device refused.
    pub fn decode(&self, latents: &Tensor, tiling: &Tiling, go_on: &dyn Fn() -> bool) -> Result<Option<Tensor>> {
        let pixels = self.config.pixels_per_latent();
        let run = |z: &Tensor| self.decoder.forward(&z.to_dtype(self.dtype)?, go_on);
        each_picture(&self.unscale(latents)?, |z| {
            let (_, height, width, _) = z.dims4()?;
            if tiling.applies(height, width) {
                return in_tiles(z, tiling, (1, pixels), run);
            }
            run(z)
        })
    }

    /// The encoder's latents as the denoiser has them: `(z - shift) * scale`.
    ///
    /// # Errors
    /// The device refused.
    pub fn scale(&self, z: &Tensor) -> Result<Tensor> {
        (z - self.config.shift_factor.unwrap_or(0.0))? * self.config.scaling_factor
    }

    fn unscale(&self, latents: &Tensor) -> Result<Tensor> {
        (latents.to_dtype(DType::F32)? / self.config.scaling_factor)? + self.config.shift_factor.unwrap_or(0.0)
    }
}

/// Runs `run` on each picture of a batch by itself, which keeps memory low and asks `go_on` often; the result is `f32`.
fn each_picture(batch: &Tensor, run: impl Fn(&Tensor) -> Result<Option<Tensor>>) -> Result<Option<Tensor>> {
    let mut done = Vec::with_capacity(batch.dim(0)?);
    for i in 0..batch.dim(0)? {
        let Some(result) = run(&batch.narrow(0, i, 1)?)? else {
            return Ok(None);
        };
        done.push(result.to_dtype(DType::F32)?);
    }
    Tensor::cat(&done, 0).map(Some)
}
