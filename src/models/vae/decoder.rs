//! From latents to a picture.

use candle_core::{Result, Tensor};

use super::super::resnet::Resnet;
use super::config::VaeConfig;
use super::middle::{EPS, Middle, resnet};
use crate::ops::{Bias, Conv2d, ConvShape, GroupNorm};
use crate::weights::{LoadResult, Weights};

#[derive(Debug)]
struct Level {
    resnets: Vec<Resnet>,
    upsample: Option<Conv2d>,
}

/// diffusers' `Decoder`, and the 1x1 convolution before it.
#[derive(Debug)]
pub(super) struct Decoder {
    post_quant: Option<Conv2d>,
    conv_in: Conv2d,
    middle: Middle,
    levels: Vec<Level>,
    norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Decoder {
    /// `weights` are the whole VAE's.
    pub fn load(weights: &Weights, config: &VaeConfig) -> LoadResult<Self> {
        let at = weights.at("decoder");
        let latent = config.latent_channels;
        let channels: Vec<usize> = config.block_out_channels.iter().rev().copied().collect();
        let (deepest, last) = (channels[0], channels[channels.len() - 1]);
        let levels = (0..channels.len())
            .map(|i| level(&at.at("up_blocks").at(i), config, &channels, i))
            .collect::<LoadResult<_>>();
        let post_quant = config.use_post_quant_conv.then(|| {
            Conv2d::load(
                &weights.at("post_quant_conv"),
                ConvShape::pointwise(latent, latent),
                Bias::Yes,
            )
        });
        Ok(Self {
            post_quant: post_quant.transpose()?,
            conv_in: Conv2d::load(&at.at("conv_in"), ConvShape::same3(latent, deepest), Bias::Yes)?,
            middle: Middle::load(&at.at("mid_block"), config, deepest)?,
            levels: levels?,
            norm_out: GroupNorm::load(&at.at("conv_norm_out"), config.norm_num_groups, last, EPS)?,
            conv_out: Conv2d::load(
                &at.at("conv_out"),
                ConvShape::same3(last, config.out_channels),
                Bias::Yes,
            )?,
        })
    }

    /// `(1, h, w, latent_channels)` to `(1, 8h, 8w, 3)`; `None` if `go_on` said no between blocks.
    pub fn forward(&self, z: &Tensor, go_on: &dyn Fn() -> bool) -> Result<Option<Tensor>> {
        let z = match &self.post_quant {
            Some(conv) => conv.forward(z)?,
            None => z.clone(),
        };
        let mut x = self.middle.forward(&self.conv_in.forward(&z)?)?;
        for level in &self.levels {
            for resnet in &level.resnets {
                if !go_on() {
                    return Ok(None);
                }
                x = resnet.forward(&x, None)?;
            }
            if let Some(conv) = &level.upsample {
                x = conv.forward_doubled(&x)?;
            }
        }
        self.conv_out.forward(&self.norm_out.forward_silu(&x)?).map(Some)
    }
}

fn level(weights: &Weights, config: &VaeConfig, channels: &[usize], i: usize) -> LoadResult<Level> {
    let outputs = channels[i];
    let inputs = channels[i.saturating_sub(1)];
    let resnets = (0..=config.layers_per_block)
        .map(|j| {
            resnet(
                &weights.at("resnets").at(j),
                config,
                if j == 0 { inputs } else { outputs },
                outputs,
            )
        })
        .collect::<LoadResult<_>>()?;
    let last = i + 1 == channels.len();
    let same = ConvShape::same3(outputs, outputs);
    let upsample = (!last).then(|| Conv2d::load(&weights.at("upsamplers.0.conv"), same, Bias::Yes));
    Ok(Level {
        resnets,
        upsample: upsample.transpose()?,
    })
}
