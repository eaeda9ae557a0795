//! A tiny decoder for previews: diffusers' `AutoencoderTiny` (TAESD, TAESDXL, TAEF1).

use candle_core::{DType, Result, Tensor};
use serde::Deserialize;

use super::ModelError;
use super::config::{read, require};
use crate::ops::{Activation, Bias, Conv2d, ConvShape, upsample_nearest2x};
use crate::weights::{LoadResult, Weights};

const MODEL: &str = "preview decoder";

/// The fields of diffusers' `AutoencoderTiny` configuration that its decoder follows from; the default is TAESD's.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct TaesdConfig {
    /// Channels of the picture.
    pub out_channels: usize,
    /// Channels of each level.
    pub decoder_block_out_channels: Vec<usize>,
    act_fn: String,
    upsample_fn: String,
    /// Channels of the latents: 4, or 16 for FLUX.
    pub latent_channels: usize,
    upsampling_scaling_factor: usize,
    /// Blocks of each level.
    pub num_decoder_blocks: Vec<usize>,
}

impl Default for TaesdConfig {
    fn default() -> Self {
        Self {
            out_channels: 3,
            decoder_block_out_channels: vec![64; 4],
            act_fn: "relu".to_owned(),
            upsample_fn: "nearest".to_owned(),
            latent_channels: 4,
            upsampling_scaling_factor: 2,
            num_decoder_blocks: vec![3, 3, 3, 1],
        }
    }
}

impl TaesdConfig {
    /// Reads the text of a `config.json`.
    ///
    /// # Errors
    /// It is not one, or asks for something that is not built here; the message names the field.
    pub fn parse(text: &str) -> std::result::Result<Self, ModelError> {
        let config: Self = read(MODEL, text)?;
        require(
            config.act_fn == "relu",
            MODEL,
            "act_fn",
            &config.act_fn,
            "only \"relu\" is supported",
        )?;
        let nearest = config.upsample_fn == "nearest";
        require(
            nearest,
            MODEL,
            "upsample_fn",
            &config.upsample_fn,
            "only \"nearest\" is supported",
        )?;
        let factor = config.upsampling_scaling_factor;
        require(
            factor == 2,
            MODEL,
            "upsampling_scaling_factor",
            factor,
            "only 2 is supported",
        )?;
        let (blocks, channels) = (&config.num_decoder_blocks, &config.decoder_block_out_channels);
        let fits = !blocks.is_empty() && blocks.len() == channels.len();
        require(
            fits,
            MODEL,
            "num_decoder_blocks",
            blocks,
            "it must be as long as decoder_block_out_channels",
        )?;
        Ok(config)
    }
}

#[derive(Debug)]
struct Block {
    convs: [Conv2d; 3],
}

impl Block {
    fn load(weights: &Weights, channels: usize) -> LoadResult<Self> {
        let conv = |i: usize| {
            Conv2d::load(
                &weights.at("conv").at(i),
                ConvShape::same3(channels, channels),
                Bias::Yes,
            )
        };
        Ok(Self {
            convs: [conv(0)?, conv(2)?, conv(4)?],
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let [first, second, third] = &self.convs;
        let inner = Activation::Relu.apply(&first.forward(x)?)?;
        let inner = Activation::Relu.apply(&second.forward(&inner)?)?;
        Activation::Relu.apply(&third.forward_add(&inner, x)?)
    }
}

#[derive(Debug)]
struct Level {
    blocks: Vec<Block>,
    upsample: bool,
    conv: Conv2d,
}

/// A tiny decoder.
#[derive(Debug)]
pub struct Taesd {
    dtype: DType,
    conv_in: Conv2d,
    levels: Vec<Level>,
}

impl Taesd {
    /// Builds it from weights in diffusers' names (`decoder.layers.0.weight`) or the original ones (`1.weight`).
    ///
    /// # Errors
    /// A tensor is missing or does not fit.
    pub fn load(weights: &Weights, config: &TaesdConfig) -> std::result::Result<Self, ModelError> {
        let original = weights.contains("1.weight");
        let layers = if original {
            weights.clone()
        } else {
            weights.at("decoder.layers")
        };
        // The original counts the clamping of the latents as a layer.
        let at = |number: usize| layers.at(number + usize::from(original));
        let channels = &config.decoder_block_out_channels;
        let conv_in = ConvShape::same3(config.latent_channels, channels[0]);
        let conv_in = Conv2d::load(&at(0), conv_in, Bias::Yes)?;
        let mut next = 2;
        let mut levels = Vec::with_capacity(channels.len());
        for (i, (&width, &count)) in channels.iter().zip(&config.num_decoder_blocks).enumerate() {
            let blocks = (next..next + count)
                .map(|number| Block::load(&at(number), width))
                .collect::<LoadResult<_>>()?;
            next += count;
            let last = i + 1 == channels.len();
            next += usize::from(!last);
            let outputs = if last { config.out_channels } else { width };
            let conv = Conv2d::load(&at(next), ConvShape::same3(width, outputs), Bias::when(last))?;
            next += 1;
            levels.push(Level {
                blocks,
                upsample: !last,
                conv,
            });
        }
        Ok(Self {
            dtype: weights.dtype(),
            conv_in,
            levels,
        })
    }

    /// Pictures `(B, 8h, 8w, 3)`, about -1 to 1, `f32`, of latents `(B, h, w, latent_channels)` as the denoiser has them.
    ///
    /// # Errors
    /// The shape does not fit, or the device refused.
    pub fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        let clamped = ((latents.to_dtype(DType::F32)? / 3.0)?.tanh()? * 3.0)?.to_dtype(self.dtype)?;
        let mut x = Activation::Relu.apply(&self.conv_in.forward(&clamped)?)?;
        for level in &self.levels {
            x = level.blocks.iter().try_fold(x, |x, block| block.forward(&x))?;
            if level.upsample {
                x = upsample_nearest2x(&x)?;
            }
            x = level.conv.forward(&x)?;
        }
        x.to_dtype(DType::F32)?.affine(2.0, -1.0)
    }
}
