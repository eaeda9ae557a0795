//! The shape of a FLUX transformer.

use serde::Deserialize;

use super::super::ModelError;
use super::super::config::{read, require};
use crate::weights::{LoadResult, Weights, WeightsError};

const MODEL: &str = "FLUX transformer";

/// `transformer/config.json`; the defaults are FLUX.1 schnell's (dev adds `guidance_embeds`).
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
pub struct FluxConfig {
    /// Numbers of one packed patch as it comes in: 64, or 384 for FLUX.1-Fill.
    pub in_channels: usize,
    /// Numbers of one packed patch as it goes out; `in_channels` if silent.
    pub out_channels: Option<usize>,
    /// Double blocks.
    pub num_layers: usize,
    /// Single blocks.
    pub num_single_layers: usize,
    /// Width of one head.
    pub attention_head_dim: usize,
    /// Heads.
    pub num_attention_heads: usize,
    /// Width of the T5 hidden states.
    pub joint_attention_dim: usize,
    /// Width of CLIP's pooled state.
    pub pooled_projection_dim: usize,
    /// Whether the guidance scale is an input (dev, Fill) or not (schnell).
    pub guidance_embeds: bool,
    /// How a head's width is shared by the three position axes.
    pub axes_dims_rope: [usize; 3],
}

impl Default for FluxConfig {
    fn default() -> Self {
        Self {
            in_channels: 64,
            out_channels: None,
            num_layers: 19,
            num_single_layers: 38,
            attention_head_dim: 128,
            num_attention_heads: 24,
            joint_attention_dim: 4096,
            pooled_projection_dim: 768,
            guidance_embeds: false,
            axes_dims_rope: [16, 56, 56],
        }
    }
}

impl FluxConfig {
    /// Reads the text of a `config.json`; where that says nothing of the size, `weights` do.
    ///
    /// # Errors
    /// It is no such file, it makes no sense, or the weights are no FLUX transformer's.
    pub fn parse(text: &str, weights: &Weights) -> Result<Self, ModelError> {
        let value: serde_json::Value = read(MODEL, text)?;
        if value.get("num_attention_heads").is_none() {
            return Ok(Self::from_weights(weights)?);
        }
        let config: Self = read(MODEL, text)?;
        let axes = config.axes_dims_rope;
        require(
            axes.iter().sum::<usize>() == config.attention_head_dim && axes.iter().all(|axis| axis % 2 == 0),
            MODEL,
            "axes_dims_rope",
            axes,
            "it must be three even numbers that add up to attention_head_dim",
        )?;
        Ok(config)
    }

    /// Width of the residual streams.
    pub fn width(&self) -> usize {
        self.attention_head_dim * self.num_attention_heads
    }

    /// Numbers of one packed patch as it goes out.
    pub fn out_channels(&self) -> usize {
        self.out_channels.unwrap_or(self.in_channels)
    }

    /// The configuration that weights without a `config.json` (GGUF, one safetensors file) imply by their shapes.
    ///
    /// # Errors
    /// A tensor that every FLUX transformer has is missing.
    pub fn from_weights(weights: &Weights) -> LoadResult<Self> {
        let shape = |name: &str, rank: usize| {
            let missing = || WeightsError::Missing {
                name: weights.path(name),
            };
            weights.shape(name).filter(|s| s.len() == rank).ok_or_else(missing)
        };
        let count = |list: &str, name: &str| {
            (0..)
                .take_while(|i| weights.contains(format!("{list}.{i}.{name}")))
                .count()
        };
        let image = shape("x_embedder.weight", 2)?;
        let head = shape("single_transformer_blocks.0.attn.norm_q.weight", 1)?[0].max(1);
        let side = head * 7 / 16 / 2 * 2;
        Ok(Self {
            in_channels: image[1],
            out_channels: Some(shape("proj_out.weight", 2)?[0]),
            num_layers: count("transformer_blocks", "attn.norm_q.weight"),
            num_single_layers: count("single_transformer_blocks", "attn.norm_q.weight"),
            attention_head_dim: head,
            num_attention_heads: image[0] / head,
            joint_attention_dim: shape("context_embedder.weight", 2)?[1],
            pooled_projection_dim: shape("time_text_embed.text_embedder.linear_1.weight", 2)?[1],
            guidance_embeds: weights.contains("time_text_embed.guidance_embedder.linear_1.weight"),
            axes_dims_rope: [head - 2 * side, side, side],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_config_file_may_say_null_or_nothing() {
        let config: FluxConfig =
            serde_json::from_str(r#"{"guidance_embeds": true, "out_channels": null, "patch_size": 1}"#).unwrap();
        assert_eq!(
            config,
            FluxConfig {
                guidance_embeds: true,
                ..FluxConfig::default()
            }
        );
        assert_eq!((config.width(), config.out_channels()), (3072, 64));
    }
}
