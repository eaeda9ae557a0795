//! A single block: one stream of text and image tokens, attention and feed-forward side by side.

use candle_core::{D, Result, Tensor};

use super::FluxConfig;
use super::attention::{IMAGE, Projections};
use super::double::NORM_EPS;
use crate::ops::{Activation, Bias, LayerNorm, Linear, Mask, RopeTable, attention, rope};
use crate::weights::{LoadResult, Weights};

/// diffusers' `FluxSingleTransformerBlock`.
#[derive(Debug)]
pub struct SingleBlock {
    modulation: Linear,
    norm: LayerNorm,
    projections: Projections,
    widen: Linear,
    out: Linear,
    heads: usize,
    head_dim: usize,
}

impl SingleBlock {
    /// Reads the block at `weights`.
    ///
    /// # Errors
    /// A tensor is missing or does not fit.
    pub fn load(weights: &Weights, config: &FluxConfig) -> LoadResult<Self> {
        let width = config.width();
        let linear = |name: &str, inputs, outputs| Linear::load(&weights.at(name), inputs, outputs, Bias::Yes);
        Ok(Self {
            modulation: linear("norm.linear", width, 3 * width)?,
            norm: LayerNorm::plain(NORM_EPS),
            projections: Projections::load(&weights.at("attn"), &IMAGE, width, config.attention_head_dim)?,
            widen: linear("proj_mlp", width, 4 * width)?,
            out: linear("proj_out", 5 * width, width)?,
            heads: config.num_attention_heads,
            head_dim: config.attention_head_dim,
        })
    }

    /// The new tokens `(B, T + N, width)`; `condition` is `silu` of the time and text embedding `(B, width)`.
    ///
    /// # Errors
    /// The shapes do not fit, or the device refused.
    pub fn forward(&self, tokens: &Tensor, condition: &Tensor, positions: &RopeTable) -> Result<Tensor> {
        let parts = self.modulation.forward(condition)?.unsqueeze(1)?.chunk(3, D::Minus1)?;
        let [shift, scale, gate] = parts.as_slice() else {
            candle_core::bail!("a modulation has three parts")
        };
        let x = self
            .norm
            .forward_modulated(tokens, &shift.contiguous()?, &scale.contiguous()?)?;
        let [q, k, v] = self.projections.forward(&x)?;
        let (q, k) = (rope(&q, self.heads, positions)?, rope(&k, self.heads, positions)?);
        let attended = attention(&q, &k, &v, self.heads, (self.head_dim as f64).powf(-0.5), Mask::None)?;
        let wide = self.widen.forward_act(&x, Activation::GeluTanh)?;
        let both = Tensor::cat(&[attended, wide], D::Minus1)?;
        self.out.forward_gated_add(&both, &gate.contiguous()?, tokens)
    }
}
