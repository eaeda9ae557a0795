//! The residual block that UNets and VAEs are made of: diffusers' `ResnetBlock2D`.

use candle_core::{Result, Tensor};

use crate::ops::{Bias, Conv2d, ConvShape, GroupNorm, Linear};
use crate::weights::{LoadResult, Weights};

/// Sizes of a [`Resnet`].
#[derive(Clone, Copy, Debug)]
pub struct ResnetShape {
    /// Channels in.
    pub inputs: usize,
    /// Channels out.
    pub outputs: usize,
    /// Width of the time embedding; `None` in a VAE.
    pub time: Option<usize>,
    /// Groups of the norms.
    pub groups: usize,
    /// Of the norms.
    pub eps: f64,
}

/// Norm, SiLU, convolution, time embedding, norm, SiLU, convolution, plus its input.
#[derive(Debug)]
pub struct Resnet {
    norm1: GroupNorm,
    conv1: Conv2d,
    time: Option<Linear>,
    norm2: GroupNorm,
    conv2: Conv2d,
    shortcut: Option<Conv2d>,
}

impl Resnet {
    /// Reads it in diffusers' names.
    ///
    /// # Errors
    /// A tensor is missing or does not fit.
    pub fn load(weights: &Weights, shape: ResnetShape) -> LoadResult<Self> {
        let ResnetShape {
            inputs,
            outputs,
            time,
            groups,
            eps,
        } = shape;
        let time = time.map(|width| Linear::load(&weights.at("time_emb_proj"), width, outputs, Bias::Yes));
        let pointwise = ConvShape::pointwise(inputs, outputs);
        let shortcut = (inputs != outputs).then(|| Conv2d::load(&weights.at("conv_shortcut"), pointwise, Bias::Yes));
        Ok(Self {
            norm1: GroupNorm::load(&weights.at("norm1"), groups, inputs, eps)?,
            conv1: Conv2d::load(&weights.at("conv1"), ConvShape::same3(inputs, outputs), Bias::Yes)?,
            time: time.transpose()?,
            norm2: GroupNorm::load(&weights.at("norm2"), groups, outputs, eps)?,
            conv2: Conv2d::load(&weights.at("conv2"), ConvShape::same3(outputs, outputs), Bias::Yes)?,
            shortcut: shortcut.transpose()?,
        })
    }

    /// `x` is `(B, H, W, inputs)`; `time` is SiLU of the time embedding, `(B, width)`, for a block that has one.
    ///
    /// # Errors
    /// The shapes do not fit, or the device refused.
    pub fn forward(&self, x: &Tensor, time: Option<&Tensor>) -> Result<Tensor> {
        let inner = self.norm1.forward_silu(x)?;
        let inner = match (&self.time, time) {
            (Some(projection), Some(time)) => self.conv1.forward_add_channels(&inner, &projection.forward(time)?)?,
            (None, _) => self.conv1.forward(&inner)?,
            (Some(_), None) => candle_core::bail!("this block needs a time embedding"),
        };
        let inner = self.norm2.forward_silu(&inner)?;
        match &self.shortcut {
            Some(shortcut) => self.conv2.forward_add(&inner, &shortcut.forward(x)?),
            None => self.conv2.forward_add(&inner, x),
        }
    }
}
