//! From a picture to the moments of its latents.

use candle_core::{Result, Tensor};

use super::super::resnet::Resnet;
use super::config::VaeConfig;
use super::middle::{EPS, Middle, resnet};
use crate::ops::{Bias, Conv2d, ConvShape, GroupNorm, Padding};
use crate::weights::{LoadResult, Weights};

#[derive(Debug)]
struct Level {
    resnets: Vec<Resnet>,
    downsample: Option<Conv2d>,
}

/// diffusers' `Encoder`, and the 1x1 convolution behind it.
#[derive(Debug)]
pub(super) struct Encoder {
    conv_in: Conv2d,
    levels: Vec<Level>,
    middle: Middle,
    norm_out: GroupNorm,
    conv_out: Conv2d,
    quant: Option<Conv2d>,
}

impl Encoder {
    /// `weights` are the whole VAE's.
    pub fn load(weights: &Weights, config: &VaeConfig) -> LoadResult<Self> {
        let at = weights.at("encoder");
        let channels = &config.block_out_channels;
        let (first, deepest) = (channels[0], channels[channels.len() - 1]);
        let moments = 2 * config.latent_channels;
        let levels = (0..channels.len())
            .map(|i| level(&at.at("down_blocks").at(i), config, i))
            .collect::<LoadResult<_>>();
        let quant = config.use_quant_conv.then(|| {
            Conv2d::load(
                &weights.at("quant_conv"),
                ConvShape::pointwise(moments, moments),
                Bias::Yes,
            )
        });
        Ok(Self {
            conv_in: Conv2d::load(
                &at.at("conv_in"),
                ConvShape::same3(config.in_channels, first),
                Bias::Yes,
            )?,
            levels: levels?,
            middle: Middle::load(&at.at("mid_block"), config, deepest)?,
            norm_out: GroupNorm::load(&at.at("conv_norm_out"), config.norm_num_groups, deepest, EPS)?,
            conv_out: Conv2d::load(&at.at("conv_out"), ConvShape::same3(deepest, moments), Bias::Yes)?,
            quant: quant.transpose()?,
        })
    }

    /// `(1, H, W, 3)` to `(1, H / 8, W / 8, 2 * latent_channels)`; `None` if `go_on` said no between levels.
    pub fn forward(&self, x: &Tensor, go_on: &dyn Fn() -> bool) -> Result<Option<Tensor>> {
        let mut x = self.conv_in.forward(x)?;
        for level in &self.levels {
            for resnet in &level.resnets {
                if !go_on() {
                    return Ok(None);
                }
                x = resnet.forward(&x, None)?;
            }
            if let Some(downsample) = &level.downsample {
                x = downsample.forward(&x)?;
            }
        }
        x = self.middle.forward(&x)?;
        x = self.conv_out.forward(&self.norm_out.forward_silu(&x)?)?;
        match &self.quant {
            Some(quant) => quant.forward(&x).map(Some),
            None => Ok(Some(x)),
        }
    }
}

fn level(weights: &Weights, config: &VaeConfig, i: usize) -> LoadResult<Level> {
    let outputs = config.block_out_channels[i];
    let inputs = config.block_out_channels[i.saturating_sub(1)];
    let resnets = (0..config.layers_per_block)
        .map(|j| {
            resnet(
                &weights.at("resnets").at(j),
                config,
                if j == 0 { inputs } else { outputs },
                outputs,
            )
        })
        .collect::<LoadResult<_>>()?;
    let last = i + 1 == config.block_out_channels.len();
    let halved = ConvShape {
        stride: 2,
        padding: Padding::AFTER,
        ..ConvShape::same3(outputs, outputs)
    };
    let downsample = (!last).then(|| Conv2d::load(&weights.at("downsamplers.0.conv"), halved, Bias::Yes));
    Ok(Level {
        resnets,
        downsample: downsample.transpose()?,
    })
}
