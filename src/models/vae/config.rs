//! A VAE's `config.json`.

use candle_core::DType;
use serde::Deserialize;

use super::super::ModelError;
use super::super::config::{read, require};

const MODEL: &str = "VAE";

/// diffusers' `AutoencoderKL` configuration.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct VaeConfig {
    /// Channels of the picture that goes in.
    pub in_channels: usize,
    /// Channels of the picture that comes out.
    pub out_channels: usize,
    down_block_types: Vec<String>,
    up_block_types: Vec<String>,
    /// Channels of each level.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks of each level of the encoder; the decoder has one more.
    pub layers_per_block: usize,
    act_fn: String,
    /// Channels of the latents.
    pub latent_channels: usize,
    /// Groups of the norms.
    pub norm_num_groups: usize,
    /// What the encoder's latents are multiplied by before the denoiser sees them.
    pub scaling_factor: f64,
    /// What is taken off them before that.
    pub shift_factor: Option<f64>,
    /// Whether `f16` overflows in it.
    pub force_upcast: bool,
    /// Whether a 1x1 convolution follows the encoder.
    pub use_quant_conv: bool,
    /// Whether a 1x1 convolution leads the decoder.
    pub use_post_quant_conv: bool,
    /// Whether its middle has attention.
    pub mid_block_add_attention: bool,
    /// Side in pixels of the pictures that it was trained with.
    pub sample_size: Option<u32>,
    latents_mean: Option<Vec<f64>>,
    latents_std: Option<Vec<f64>>,
}

const DOWN: &str = "DownEncoderBlock2D";
const UP: &str = "UpDecoderBlock2D";

impl Default for VaeConfig {
    fn default() -> Self {
        Self {
            in_channels: 3,
            out_channels: 3,
            down_block_types: vec![DOWN.to_owned()],
            up_block_types: vec![UP.to_owned()],
            block_out_channels: vec![64],
            layers_per_block: 1,
            act_fn: "silu".to_owned(),
            latent_channels: 4,
            norm_num_groups: 32,
            scaling_factor: 0.18215,
            shift_factor: None,
            force_upcast: true,
            use_quant_conv: true,
            use_post_quant_conv: true,
            mid_block_add_attention: true,
            sample_size: None,
            latents_mean: None,
            latents_std: None,
        }
    }
}

impl VaeConfig {
    /// Reads the text of a `config.json`.
    ///
    /// # Errors
    /// It is not one, or asks for something that is not built here; the message names the field.
    pub fn parse(text: &str) -> Result<Self, ModelError> {
        let config: Self = read(MODEL, text)?;
        let levels = config.block_out_channels.len();
        let plain = |types: &[String], name| types.len() == levels && types.iter().all(|t| t == name);
        require(
            levels > 0,
            MODEL,
            "block_out_channels",
            &config.block_out_channels,
            "it must not be empty",
        )?;
        let down = plain(&config.down_block_types, DOWN);
        require(
            down,
            MODEL,
            "down_block_types",
            &config.down_block_types,
            "one DownEncoderBlock2D per level is supported",
        )?;
        let up = plain(&config.up_block_types, UP);
        require(
            up,
            MODEL,
            "up_block_types",
            &config.up_block_types,
            "one UpDecoderBlock2D per level is supported",
        )?;
        for (field, numbers) in [
            ("latents_mean", &config.latents_mean),
            ("latents_std", &config.latents_std),
        ] {
            require(numbers.is_none(), MODEL, field, numbers, "only null is supported")?;
        }
        let silu = ["silu", "swish"].contains(&config.act_fn.as_str());
        require(silu, MODEL, "act_fn", &config.act_fn, "only \"silu\" is supported")?;
        Ok(config)
    }

    /// Pixels of a side for one latent: 8 in all models of the day.
    pub fn pixels_per_latent(&self) -> usize {
        1 << (self.block_out_channels.len() - 1)
    }

    /// The type to compute in when the model computes in `wanted`: `F16` overflows in the VAEs that say so (SDXL's comes
    /// out black), which are computed in `F32`.
    pub fn compute_dtype(&self, wanted: DType) -> DType {
        if self.force_upcast && wanted == DType::F16 {
            DType::F32
        } else {
            wanted
        }
    }
}
