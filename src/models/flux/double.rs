//! A double block: text and image have weights of their own and attend to each other.

use candle_core::{D, Result, Tensor};

use super::FluxConfig;
use super::attention::{IMAGE, Names, Projections, TEXT};
use crate::ops::{Activation, Bias, LayerNorm, Linear, Mask, RopeTable, attention, rope, silu};
use crate::weights::{LoadResult, Weights};

/// Added to the variance of the norms before a modulation.
pub(super) const NORM_EPS: f64 = 1e-6;

/// diffusers' `FluxTransformerBlock`.
#[derive(Debug)]
pub struct DoubleBlock {
    image: Stream,
    text: Stream,
    heads: usize,
    head_dim: usize,
}

/// One side of a double block: modulation, projections, feed-forward.
#[derive(Debug)]
struct Stream {
    modulation: Linear,
    norm: LayerNorm,
    projections: Projections,
    out: Linear,
    widen: Linear,
    narrow: Linear,
}

/// Names of the layers of one side.
struct StreamNames {
    modulation: &'static str,
    projections: Names,
    out: &'static str,
    feed: &'static str,
}

/// `shift`, `scale` and `gate` of one half of a block, each `(B, 1, width)`.
struct Modulation {
    shift: Tensor,
    scale: Tensor,
    gate: Tensor,
}

impl DoubleBlock {
    /// Reads the block at `weights`.
    ///
    /// # Errors
    /// A tensor is missing or does not fit.
    pub fn load(weights: &Weights, config: &FluxConfig) -> LoadResult<Self> {
        let image = StreamNames {
            modulation: "norm1.linear",
            projections: IMAGE,
            out: "attn.to_out.0",
            feed: "ff.net",
        };
        let text = StreamNames {
            modulation: "norm1_context.linear",
            projections: TEXT,
            out: "attn.to_add_out",
            feed: "ff_context.net",
        };
        Ok(Self {
            image: Stream::load(weights, &image, config)?,
            text: Stream::load(weights, &text, config)?,
            heads: config.num_attention_heads,
            head_dim: config.attention_head_dim,
        })
    }

    /// The new text `(B, T, width)` and image `(B, N, width)`; `condition` is `silu` of the time and text embedding
    /// `(B, width)`, `positions` has the text's tokens first.
    ///
    /// # Errors
    /// The shapes do not fit, or the device refused.
    pub fn forward(
        &self,
        text: &Tensor,
        image: &Tensor,
        condition: &Tensor,
        positions: &RopeTable,
    ) -> Result<(Tensor, Tensor)> {
        let [text_attention, text_feed] = self.text.modulations(condition)?;
        let [image_attention, image_feed] = self.image.modulations(condition)?;
        let of_text = self.text.project(text, &text_attention)?;
        let of_image = self.image.project(image, &image_attention)?;
        let [q, k, v] = joined(&of_text, &of_image)?;
        let (q, k) = (rope(&q, self.heads, positions)?, rope(&k, self.heads, positions)?);
        let scale = (self.head_dim as f64).powf(-0.5);
        let attended = attention(&q, &k, &v, self.heads, scale, Mask::None)?;
        let tokens = text.dim(1)?;
        let for_text = attended.narrow(1, 0, tokens)?.contiguous()?;
        let for_image = attended.narrow(1, tokens, image.dim(1)?)?.contiguous()?;
        let text = self.text.finish(text, &for_text, &text_attention, &text_feed)?;
        let image = self.image.finish(image, &for_image, &image_attention, &image_feed)?;
        Ok((text, image))
    }

    /// `silu` of an embedding, as the modulations want it.
    ///
    /// # Errors
    /// The device refused.
    pub fn condition(embedding: &Tensor) -> Result<Tensor> {
        silu(embedding)
    }
}

impl Stream {
    fn load(weights: &Weights, names: &StreamNames, config: &FluxConfig) -> LoadResult<Self> {
        let width = config.width();
        let linear = |name: &str, inputs, outputs| Linear::load(&weights.at(name), inputs, outputs, Bias::Yes);
        let (widen, narrow) = (format!("{}.0.proj", names.feed), format!("{}.2", names.feed));
        Ok(Self {
            modulation: linear(names.modulation, width, 6 * width)?,
            norm: LayerNorm::plain(NORM_EPS),
            projections: Projections::load(
                &weights.at("attn"),
                &names.projections,
                width,
                config.attention_head_dim,
            )?,
            out: linear(names.out, width, width)?,
            widen: linear(&widen, width, 4 * width)?,
            narrow: linear(&narrow, 4 * width, width)?,
        })
    }

    /// For the attention and for the feed-forward part.
    fn modulations(&self, condition: &Tensor) -> Result<[Modulation; 2]> {
        let parts = self.modulation.forward(condition)?.unsqueeze(1)?.chunk(6, D::Minus1)?;
        let [a, b, c, d, e, f] = parts.as_slice() else {
            candle_core::bail!("a modulation has six parts")
        };
        let of = |shift: &Tensor, scale: &Tensor, gate: &Tensor| -> Result<Modulation> {
            Ok(Modulation {
                shift: shift.contiguous()?,
                scale: scale.contiguous()?,
                gate: gate.contiguous()?,
            })
        };
        Ok([of(a, b, c)?, of(d, e, f)?])
    }

    fn project(&self, x: &Tensor, modulation: &Modulation) -> Result<[Tensor; 3]> {
        self.projections
            .forward(&self.norm.forward_modulated(x, &modulation.shift, &modulation.scale)?)
    }

    fn finish(&self, x: &Tensor, attended: &Tensor, attention: &Modulation, feed: &Modulation) -> Result<Tensor> {
        let x = self.out.forward_gated_add(attended, &attention.gate, x)?;
        let normed = self.norm.forward_modulated(&x, &feed.shift, &feed.scale)?;
        let wide = self.widen.forward_act(&normed, Activation::GeluTanh)?;
        self.narrow.forward_gated_add(&wide, &feed.gate, &x)
    }
}

/// Text tokens before image tokens, for queries, keys and values.
fn joined(text: &[Tensor; 3], image: &[Tensor; 3]) -> Result<[Tensor; 3]> {
    let [tq, tk, tv] = text;
    let [iq, ik, iv] = image;
    Ok([
        Tensor::cat(&[tq, iq], 1)?,
        Tensor::cat(&[tk, ik], 1)?,
        Tensor::cat(&[tv, iv], 1)?,
    ])
}
