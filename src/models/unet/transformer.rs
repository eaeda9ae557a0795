//! Transformer layers over a picture's pixels: diffusers' `Transformer2DModel`.

use candle_core::{Result, Tensor};

use super::Prompt;
use super::attention::{Attention, PromptReaders};
use super::config::AttentionShape;
use crate::ops::{Bias, Conv2d, ConvShape, GegluLinear, GroupNorm, LayerNorm, Linear};
use crate::weights::{LoadResult, Weights};

/// Self-attention, attention over the prompt, and a gated feed-forward part: diffusers' `BasicTransformerBlock`.
#[derive(Debug)]
struct Layer {
    norm1: LayerNorm,
    attn1: Attention,
    norm2: LayerNorm,
    attn2: Attention,
    norm3: LayerNorm,
    feed: GegluLinear,
    feed_out: Linear,
}

/// Diffusers' default for the layer norms; no file has another.
const LAYER_NORM_EPS: f64 = 1e-5;
/// Diffusers' constant for the norm before the layers.
const GROUP_NORM_EPS: f64 = 1e-6;

impl Layer {
    fn load(weights: &Weights, width: usize, shape: AttentionShape, readers: &mut PromptReaders) -> LoadResult<Self> {
        let norm = |name| LayerNorm::load(&weights.at(name), width, LAYER_NORM_EPS);
        let AttentionShape {
            heads,
            prompt,
            only_cross,
            ..
        } = shape;
        let attn1 = if only_cross {
            Attention::of_prompt(&weights.at("attn1"), width, heads, prompt, readers)?
        } else {
            Attention::of_itself(&weights.at("attn1"), width, heads)?
        };
        Ok(Self {
            norm1: norm("norm1")?,
            attn1,
            norm2: norm("norm2")?,
            attn2: Attention::of_prompt(&weights.at("attn2"), width, heads, prompt, readers)?,
            norm3: norm("norm3")?,
            feed: GegluLinear::load(&weights.at("ff.net.0"), width, 4 * width)?,
            feed_out: Linear::load(&weights.at("ff.net.2"), 4 * width, width, Bias::Yes)?,
        })
    }

    fn forward(&self, x: &Tensor, prompt: &Prompt) -> Result<Tensor> {
        let x = self.attn1.forward_add(&self.norm1.forward(x)?, prompt, x)?;
        let x = self.attn2.forward_add(&self.norm2.forward(&x)?, prompt, &x)?;
        self.feed_out
            .forward_add(&self.feed.forward(&self.norm3.forward(&x)?)?, &x)
    }
}

/// A projection around the layers: a linear layer or a 1x1 convolution, which over NHWC are the same.
#[derive(Debug)]
enum Projection {
    Linear(Linear),
    Conv(Conv2d),
}

impl Projection {
    fn load(weights: &Weights, width: usize, linear: bool) -> LoadResult<Self> {
        if linear {
            Linear::load(weights, width, width, Bias::Yes).map(Self::Linear)
        } else {
            Conv2d::load(weights, ConvShape::pointwise(width, width), Bias::Yes).map(Self::Conv)
        }
    }

    /// `(B, H, W, C)`.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Linear(linear) => linear.forward(x),
            Self::Conv(conv) => conv.forward(x),
        }
    }

    /// `(B, H, W, C)`.
    fn forward_add(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        match self {
            Self::Linear(linear) => linear.forward_add(x, residual),
            Self::Conv(conv) => conv.forward_add(x, residual),
        }
    }
}

/// Transformer layers over the pixels of `(B, H, W, C)`, added to their input.
#[derive(Debug)]
pub(super) struct SpatialTransformer {
    norm: GroupNorm,
    proj_in: Projection,
    layers: Vec<Layer>,
    proj_out: Projection,
}

impl SpatialTransformer {
    pub fn load(
        weights: &Weights,
        width: usize,
        groups: usize,
        shape: AttentionShape,
        readers: &mut PromptReaders,
    ) -> LoadResult<Self> {
        let blocks = weights.at("transformer_blocks");
        let layers = (0..shape.depth)
            .map(|i| Layer::load(&blocks.at(i), width, shape, readers))
            .collect::<LoadResult<_>>();
        Ok(Self {
            norm: GroupNorm::load(&weights.at("norm"), groups, width, GROUP_NORM_EPS)?,
            proj_in: Projection::load(&weights.at("proj_in"), width, shape.linear)?,
            layers: layers?,
            proj_out: Projection::load(&weights.at("proj_out"), width, shape.linear)?,
        })
    }

    pub fn forward(&self, x: &Tensor, prompt: &Prompt) -> Result<Tensor> {
        let (batch, height, width, channels) = x.dims4()?;
        let tokens = self
            .proj_in
            .forward(&self.norm.forward(x)?)?
            .reshape((batch, height * width, channels))?;
        let tokens = self
            .layers
            .iter()
            .try_fold(tokens, |tokens, layer| layer.forward(&tokens, prompt))?;
        self.proj_out
            .forward_add(&tokens.reshape((batch, height, width, channels))?, x)
    }
}
