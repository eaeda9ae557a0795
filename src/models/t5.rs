//! The T5 v1.1 encoder that FLUX reads its prompt with: relative position bias, RMS norm, gated GELU.
//!
//! Names and numbers are those of transformers' `T5EncoderModel`. It computes in `F32` or `BF16`; in `F16` its activations
//! overflow, so [`T5Encoder::load`] refuses that type.

use candle_core::{DType, Device, Result, Tensor};
use serde::Deserialize;

use super::ModelError;
use super::config::{read, require};
use crate::ops::{Activation, Bias, Embedding, Linear, Mask, RmsNorm, attention};
use crate::weights::{LoadResult, Weights, WeightsError};

const MODEL: &str = "T5 encoder";

/// `config.json` of a T5 encoder; the defaults are T5 v1.1 XXL's.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
pub struct T5Config {
    /// Rows of the token table.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub d_model: usize,
    /// Width of one head.
    pub d_kv: usize,
    /// Width inside the feed-forward part.
    pub d_ff: usize,
    /// Blocks.
    pub num_layers: usize,
    /// Heads of each block.
    pub num_heads: usize,
    /// Distances that have a bias of their own.
    pub relative_attention_num_buckets: usize,
    /// Distance from which all share one bias.
    pub relative_attention_max_distance: usize,
    /// Added to the mean square of each norm.
    pub layer_norm_epsilon: f64,
    /// `gated-gelu` for v1.1.
    pub feed_forward_proj: String,
}

impl Default for T5Config {
    fn default() -> Self {
        Self {
            vocab_size: 32_128,
            d_model: 4096,
            d_kv: 64,
            d_ff: 10_240,
            num_layers: 24,
            num_heads: 64,
            relative_attention_num_buckets: 32,
            relative_attention_max_distance: 128,
            layer_norm_epsilon: 1e-6,
            feed_forward_proj: "gated-gelu".to_owned(),
        }
    }
}

impl T5Config {
    /// Reads the text of a `config.json`; where that says nothing of the size, `weights` do.
    ///
    /// # Errors
    /// It is no such file, or the weights are no T5 encoder's.
    pub fn parse(text: &str, weights: &Weights) -> std::result::Result<Self, ModelError> {
        let value: serde_json::Value = read(MODEL, text)?;
        if value.get("d_model").is_none() {
            return Ok(Self::from_weights(weights)?);
        }
        let config: Self = read(MODEL, text)?;
        require(
            config.feed_forward_proj == "gated-gelu",
            MODEL,
            "feed_forward_proj",
            &config.feed_forward_proj,
            "only T5 v1.1's \"gated-gelu\" is supported",
        )?;
        require(
            config.num_heads > 0,
            MODEL,
            "num_heads",
            config.num_heads,
            "it must be above 0",
        )?;
        let buckets = config.relative_attention_num_buckets;
        require(
            buckets >= 4 && config.relative_attention_max_distance > buckets / 4,
            MODEL,
            "relative_attention_num_buckets",
            buckets,
            "it must be 4 or more, and less than four times relative_attention_max_distance",
        )?;
        Ok(config)
    }

    /// The configuration that weights without a `config.json` (GGUF, one safetensors file) imply by their shapes.
    ///
    /// # Errors
    /// A tensor that every T5 v1.1 encoder has is missing.
    pub fn from_weights(weights: &Weights) -> LoadResult<Self> {
        let shape = |name: &str| {
            let missing = || WeightsError::Missing {
                name: weights.path(name),
            };
            weights.shape(name).filter(|s| s.len() == 2).ok_or_else(missing)
        };
        let attention = "encoder.block.0.layer.0.SelfAttention";
        let table = shape(token_table(weights))?;
        let bias = shape(&format!("{attention}.relative_attention_bias.weight"))?;
        let query = shape(&format!("{attention}.q.weight"))?;
        let wide = shape("encoder.block.0.layer.1.DenseReluDense.wi_0.weight")?;
        let layers = (0..).take_while(|i| weights.contains(format!("encoder.block.{i}.layer.0.layer_norm.weight")));
        Ok(Self {
            vocab_size: table[0],
            d_model: table[1],
            d_kv: query[0] / bias[1].max(1),
            d_ff: wide[0],
            num_layers: layers.count(),
            num_heads: bias[1],
            relative_attention_num_buckets: bias[0],
            ..Self::default()
        })
    }
}

fn token_table(weights: &Weights) -> &'static str {
    if weights.contains("shared.weight") {
        "shared.weight"
    } else {
        "encoder.embed_tokens.weight"
    }
}

/// The encoder.
#[derive(Debug)]
pub struct T5Encoder {
    tokens: Embedding,
    position_bias: Tensor,
    blocks: Vec<Block>,
    final_norm: RmsNorm,
    config: T5Config,
    dtype: DType,
}

#[derive(Debug)]
struct Block {
    attention_norm: RmsNorm,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    feed_norm: RmsNorm,
    gate: Linear,
    value: Linear,
    out: Linear,
}

impl T5Encoder {
    /// Reads the encoder.
    ///
    /// # Errors
    /// A tensor is missing or does not fit; the compute type is `F16`.
    pub fn load(weights: &Weights, config: &T5Config) -> LoadResult<Self> {
        if weights.dtype() == DType::F16 {
            return Err(refuse("T5 overflows in f16; load it as bf16 or f32"));
        }
        // As with CLIP: few products, and roundings grow.
        let weights = &weights.exact();
        let table = weights.at(token_table(weights).trim_end_matches(".weight"));
        let encoder = weights.at("encoder");
        let bias_name = "block.0.layer.0.SelfAttention.relative_attention_bias.weight";
        let bias_shape = [config.relative_attention_num_buckets, config.num_heads];
        Ok(Self {
            tokens: Embedding::load(&table, config.vocab_size, config.d_model)?,
            position_bias: encoder.tensor_as(bias_name, &bias_shape, DType::F32)?,
            blocks: (0..config.num_layers)
                .map(|i| Block::load(&encoder.at("block").at(i), config))
                .collect::<LoadResult<_>>()?,
            final_norm: RmsNorm::load(
                &encoder.at("final_layer_norm"),
                config.d_model,
                config.layer_norm_epsilon,
            )?,
            config: config.clone(),
            dtype: weights.dtype(),
        })
    }

    /// Token numbers `(B, N)`, `U32`, to hidden states `(B, N, d_model)`. Padding is attended to, as FLUX was trained.
    ///
    /// # Errors
    /// A number is past the table's end, or the device refused.
    pub fn forward(&self, tokens: &Tensor) -> Result<Tensor> {
        let length = tokens.dim(1)?;
        let bias = self.bias_for(length)?;
        let mut hidden = self.tokens.forward(tokens)?.to_dtype(self.dtype)?;
        for block in &self.blocks {
            hidden = block.forward(&hidden, self.config.num_heads, &bias)?;
        }
        self.final_norm.forward(&hidden)
    }

    /// What is added to the scores: `(1, heads, N, N)`, `F32`.
    fn bias_for(&self, length: usize) -> Result<Tensor> {
        let buckets: Vec<u32> = (0..length * length)
            .map(|i| self.bucket((i % length) as i64 - (i / length) as i64))
            .collect();
        let buckets = Tensor::from_vec(buckets, length * length, self.position_bias.device())?;
        let rows = self.position_bias.index_select(&buckets, 0)?;
        rows.t()?
            .reshape((1, self.config.num_heads, length, length))?
            .contiguous()
    }

    /// The bucket of a distance (key's place less the query's): exact for near ones, logarithmic up to the largest.
    fn bucket(&self, distance: i64) -> u32 {
        let half = self.config.relative_attention_num_buckets / 2;
        let exact = half / 2;
        let side = if distance > 0 { half } else { 0 };
        let far = distance.unsigned_abs() as usize;
        let within = if far < exact {
            far
        } else {
            let reach = (self.config.relative_attention_max_distance as f64 / exact as f64).ln();
            let log = (far as f32 / exact as f32).ln() / reach as f32 * (half - exact) as f32;
            (exact + log as usize).min(half - 1)
        };
        (side + within) as u32
    }

    /// The device it was loaded to.
    pub fn device(&self) -> &Device {
        self.position_bias.device()
    }
}

impl Block {
    fn load(weights: &Weights, config: &T5Config) -> LoadResult<Self> {
        let attention = weights.at("layer.0.SelfAttention");
        let feed = weights.at("layer.1.DenseReluDense");
        let (width, inner) = (config.d_model, config.num_heads * config.d_kv);
        let norm = |layer: &str| RmsNorm::load(&weights.at(layer).at("layer_norm"), width, config.layer_norm_epsilon);
        Ok(Self {
            attention_norm: norm("layer.0")?,
            q: Linear::load(&attention.at("q"), width, inner, Bias::No)?,
            k: Linear::load(&attention.at("k"), width, inner, Bias::No)?,
            v: Linear::load(&attention.at("v"), width, inner, Bias::No)?,
            o: Linear::load(&attention.at("o"), inner, width, Bias::No)?,
            feed_norm: norm("layer.1")?,
            gate: Linear::load(&feed.at("wi_0"), width, config.d_ff, Bias::No)?,
            value: Linear::load(&feed.at("wi_1"), width, config.d_ff, Bias::No)?,
            out: Linear::load(&feed.at("wo"), config.d_ff, width, Bias::No)?,
        })
    }

    fn forward(&self, hidden: &Tensor, heads: usize, bias: &Tensor) -> Result<Tensor> {
        let x = self.attention_norm.forward(hidden)?;
        let (q, k, v) = (self.q.forward(&x)?, self.k.forward(&x)?, self.v.forward(&x)?);
        // T5 does not divide the scores by the root of the head's width: its initialisation did.
        let attended = attention(&q, &k, &v, heads, 1.0, Mask::Add(bias))?;
        let hidden = self.o.forward_add(&attended, hidden)?;
        let x = self.feed_norm.forward(&hidden)?;
        let gated = (self.gate.forward_act(&x, Activation::GeluTanh)? * self.value.forward(&x)?)?;
        self.out.forward_add(&gated, &hidden)
    }
}

fn refuse(why: &str) -> WeightsError {
    candle_core::Error::Msg(why.to_owned()).into()
}
