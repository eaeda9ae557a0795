//! CLIP's text transformer: OpenAI's ViT-L (SD 1.x, SDXL, FLUX), OpenCLIP's ViT-H (SD 2.x) and bigG (SDXL).

use candle_core::{Result, Tensor};
use serde::Deserialize;

use super::ModelError;
use super::config::{read, require};
use crate::ops::{Activation, Bias, Embedding, LayerNorm, Linear, Mask, attention};
use crate::weights::{LoadResult, Weights};

const MODEL: &str = "text encoder";

/// transformers' `CLIPTextConfig`.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct ClipConfig {
    /// Entries of the vocabulary.
    pub vocab_size: usize,
    /// Width of the hidden states.
    pub hidden_size: usize,
    /// Width inside the feed-forward part.
    pub intermediate_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Heads of each layer.
    pub num_attention_heads: usize,
    /// Tokens that there are positions for.
    pub max_position_embeddings: usize,
    /// Name of the activation.
    pub hidden_act: String,
    /// Of the layer norms.
    pub layer_norm_eps: f64,
    /// Width of the projected pooled state, where there is a projection.
    pub projection_dim: usize,
    /// The end-of-text token; 2 in old files, where the highest token number is meant.
    pub eos_token_id: u32,
}

impl Default for ClipConfig {
    fn default() -> Self {
        Self {
            vocab_size: 49408,
            hidden_size: 512,
            intermediate_size: 2048,
            num_hidden_layers: 12,
            num_attention_heads: 8,
            max_position_embeddings: 77,
            hidden_act: "quick_gelu".to_owned(),
            layer_norm_eps: 1e-5,
            projection_dim: 512,
            eos_token_id: 49407,
        }
    }
}

impl ClipConfig {
    /// Reads the text of a `config.json`.
    ///
    /// # Errors
    /// It is not one, or asks for something that is not built here.
    pub fn parse(text: &str) -> std::result::Result<Self, ModelError> {
        let config: Self = read(MODEL, text)?;
        let known = Activation::from_name(&config.hidden_act).is_some();
        require(
            known,
            MODEL,
            "hidden_act",
            &config.hidden_act,
            "gelu, quick_gelu, gelu_new and silu are known",
        )?;
        let divides = config.num_attention_heads > 0 && config.hidden_size.is_multiple_of(config.num_attention_heads);
        require(
            divides,
            MODEL,
            "num_attention_heads",
            config.num_attention_heads,
            "it must divide hidden_size",
        )?;
        Ok(config)
    }
}

#[derive(Debug)]
struct Layer {
    norm1: LayerNorm,
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
    norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
}

impl Layer {
    fn load(weights: &Weights, config: &ClipConfig) -> LoadResult<Self> {
        let (width, inner, eps) = (config.hidden_size, config.intermediate_size, config.layer_norm_eps);
        let attn = weights.at("self_attn");
        let square = |name| Linear::load(&attn.at(name), width, width, Bias::Yes);
        Ok(Self {
            norm1: LayerNorm::load(&weights.at("layer_norm1"), width, eps)?,
            q: square("q_proj")?,
            k: square("k_proj")?,
            v: square("v_proj")?,
            out: square("out_proj")?,
            norm2: LayerNorm::load(&weights.at("layer_norm2"), width, eps)?,
            fc1: Linear::load(&weights.at("mlp.fc1"), width, inner, Bias::Yes)?,
            fc2: Linear::load(&weights.at("mlp.fc2"), inner, width, Bias::Yes)?,
        })
    }

    fn forward(&self, x: &Tensor, heads: usize, activation: Activation) -> Result<Tensor> {
        let normed = self.norm1.forward(x)?;
        let (q, k, v) = (
            self.q.forward(&normed)?,
            self.k.forward(&normed)?,
            self.v.forward(&normed)?,
        );
        let scale = 1.0 / ((q.dim(2)? / heads) as f64).sqrt();
        let x = self
            .out
            .forward_add(&attention(&q, &k, &v, heads, scale, Mask::Causal)?, x)?;
        let inner = self.fc1.forward_act(&self.norm2.forward(&x)?, activation)?;
        self.fc2.forward_add(&inner, &x)
    }
}

/// CLIP's text transformer.
#[derive(Debug)]
pub struct ClipText {
    config: ClipConfig,
    activation: Activation,
    tokens: Embedding,
    positions: Tensor,
    layers: Vec<Layer>,
    final_norm: LayerNorm,
    projection: Option<Linear>,
}

impl ClipText {
    /// Builds it from weights in transformers' names, with or without the leading `text_model.`; a `text_projection` is
    /// taken where there is one. Its layers are in the table as `text_model.encoder.layers.0.self_attn.q_proj` and so on
    /// either way.
    ///
    /// # Errors
    /// A tensor is missing or does not fit.
    pub fn load(weights: &Weights, config: &ClipConfig) -> std::result::Result<Self, ModelError> {
        // Few products, of which the whole picture hangs; its numbers differ so much in size that roundings grow.
        let weights = &weights.exact();
        let projection = if weights.contains("text_projection.weight") {
            let at = weights.at("text_projection");
            Some(Linear::load(&at, config.hidden_size, config.projection_dim, Bias::No)?)
        } else {
            None
        };
        let long = ["final_layer_norm", "embeddings.token_embedding"];
        let body = if long
            .iter()
            .any(|name| weights.contains(format!("text_model.{name}.weight")))
        {
            weights.at("text_model")
        } else {
            weights.shortened_by("text_model")
        };
        let embeddings = body.at("embeddings");
        let width = config.hidden_size;
        let layers: LoadResult<Vec<_>> = (0..config.num_hidden_layers)
            .map(|i| Layer::load(&body.at("encoder.layers").at(i), config))
            .collect();
        Ok(Self {
            activation: Activation::from_name(&config.hidden_act).unwrap_or(Activation::QuickGelu),
            tokens: Embedding::load(&embeddings.at("token_embedding"), config.vocab_size, width)?,
            positions: embeddings.tensor("position_embedding.weight", &[config.max_position_embeddings, width])?,
            layers: layers?,
            final_norm: LayerNorm::load(&body.at("final_layer_norm"), width, config.layer_norm_eps)?,
            projection,
            config: config.clone(),
        })
    }

    /// Its configuration.
    pub fn config(&self) -> &ClipConfig {
        &self.config
    }

    /// The hidden state `(B, N, hidden_size)` after all but the last `skip` layers, without the final norm. `tokens` are
    /// rows of the same length, at most `max_position_embeddings`.
    ///
    /// # Errors
    /// The rows do not fit, `skip` is more than there are layers, or the device refused.
    pub fn hidden(&self, tokens: &[Vec<u32>], skip: usize) -> Result<Tensor> {
        let layers = self.layers_before(skip)?;
        self.run(self.embed(tokens)?, layers)
    }

    /// [`ClipText::hidden`], and the pooled state `(B, projection_dim)`: that of the end-of-text token after all layers
    /// and the final norm, projected where the model has a projection (else `(B, hidden_size)`).
    ///
    /// # Errors
    /// As [`ClipText::hidden`].
    pub fn hidden_and_pooled(&self, tokens: &[Vec<u32>], skip: usize) -> Result<(Tensor, Tensor)> {
        let before = self.layers_before(skip)?;
        let hidden = self.run(self.embed(tokens)?, before)?;
        let last = self.run(hidden.clone(), &self.layers[before.len()..])?;
        let ends: Vec<Tensor> = tokens
            .iter()
            .enumerate()
            .map(|(row, ids)| last.narrow(0, row, 1)?.narrow(1, self.end_of(ids), 1)?.squeeze(1))
            .collect::<Result<_>>()?;
        let pooled = self.final_norm.forward(&Tensor::cat(&ends, 0)?)?;
        match &self.projection {
            Some(projection) => Ok((hidden, projection.forward(&pooled)?)),
            None => Ok((hidden, pooled)),
        }
    }

    /// The final norm, for a hidden state that SD 1.x or 2.x is to be conditioned on.
    ///
    /// # Errors
    /// The device refused.
    pub fn normed(&self, hidden: &Tensor) -> Result<Tensor> {
        self.final_norm.forward(hidden)
    }

    fn layers_before(&self, skip: usize) -> Result<&[Layer]> {
        let Some(count) = self.layers.len().checked_sub(skip) else {
            candle_core::bail!("cannot leave out {skip} of {} layers", self.layers.len())
        };
        Ok(&self.layers[..count])
    }

    fn run(&self, state: Tensor, layers: &[Layer]) -> Result<Tensor> {
        let heads = self.config.num_attention_heads;
        layers
            .iter()
            .try_fold(state, |x, layer| layer.forward(&x, heads, self.activation))
    }

    fn embed(&self, tokens: &[Vec<u32>]) -> Result<Tensor> {
        let length = tokens.first().map_or(0, Vec::len);
        if length == 0 || length > self.config.max_position_embeddings || tokens.iter().any(|t| t.len() != length) {
            let most = self.config.max_position_embeddings;
            candle_core::bail!("token rows must have one length, from 1 to {most}");
        }
        let device = self.positions.device();
        let ids = Tensor::from_vec(tokens.concat(), (tokens.len(), length), device)?;
        self.tokens
            .forward(&ids)?
            .broadcast_add(&self.positions.narrow(0, 0, length)?)
    }

    /// Where the end-of-text token is: its first place, or, as transformers has it for the old files whose configuration
    /// says 2, the first place of the highest number.
    fn end_of(&self, ids: &[u32]) -> usize {
        let end = match self.config.eos_token_id {
            2 => ids.iter().max().copied().unwrap_or(0),
            id => id,
        };
        ids.iter().position(|id| *id == end).unwrap_or(0)
    }
}
