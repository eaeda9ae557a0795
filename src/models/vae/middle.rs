//! The middle of encoder and decoder.

use candle_core::{Result, Tensor};

use super::super::resnet::{Resnet, ResnetShape};
use super::config::VaeConfig;
use crate::ops::{Bias, GroupNorm, Linear, Mask, attention};
use crate::weights::{LoadResult, Weights};

/// Of every norm in a VAE; a constant in diffusers too.
pub(super) const EPS: f64 = 1e-6;

/// A residual block of a VAE, which knows no time.
pub(super) fn resnet(weights: &Weights, config: &VaeConfig, inputs: usize, outputs: usize) -> LoadResult<Resnet> {
    let groups = config.norm_num_groups;
    Resnet::load(
        weights,
        ResnetShape {
            inputs,
            outputs,
            time: None,
            groups,
            eps: EPS,
        },
    )
}

/// One head of attention over all pixels.
#[derive(Debug)]
struct PixelAttention {
    norm: GroupNorm,
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
}

impl PixelAttention {
    fn load(weights: &Weights, config: &VaeConfig, width: usize) -> LoadResult<Self> {
        // Files from before diffusers 0.15 have the old names.
        let linear = |name, old| {
            let name = if weights.at(old).contains("weight") { old } else { name };
            Linear::load(&weights.at(name), width, width, Bias::Yes)
        };
        Ok(Self {
            norm: GroupNorm::load(&weights.at("group_norm"), config.norm_num_groups, width, EPS)?,
            q: linear("to_q", "query")?,
            k: linear("to_k", "key")?,
            v: linear("to_v", "value")?,
            out: linear("to_out.0", "proj_attn")?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (batch, height, width, channels) = x.dims4()?;
        let tokens = self.norm.forward(x)?.reshape((batch, height * width, channels))?;
        let (q, k, v) = (
            self.q.forward(&tokens)?,
            self.k.forward(&tokens)?,
            self.v.forward(&tokens)?,
        );
        let attended = attention(&q, &k, &v, 1, 1.0 / (channels as f64).sqrt(), Mask::None)?;
        self.out
            .forward_add(&attended.reshape((batch, height, width, channels))?, x)
    }
}

/// Residual block, attention, residual block.
#[derive(Debug)]
pub(super) struct Middle {
    first: Resnet,
    attention: Option<PixelAttention>,
    second: Resnet,
}

impl Middle {
    pub fn load(weights: &Weights, config: &VaeConfig, width: usize) -> LoadResult<Self> {
        let attends = config.mid_block_add_attention;
        let attention = attends.then(|| PixelAttention::load(&weights.at("attentions.0"), config, width));
        Ok(Self {
            first: resnet(&weights.at("resnets.0"), config, width, width)?,
            attention: attention.transpose()?,
            second: resnet(&weights.at("resnets.1"), config, width, width)?,
        })
    }

    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut x = self.first.forward(x, None)?;
        if let Some(attention) = &self.attention {
            x = attention.forward(&x)?;
        }
        self.second.forward(&x, None)
    }
}
