//! The attention of a UNet's transformer layers.

use candle_core::{Result, Tensor};

use super::Prompt;
use crate::ops::{Bias, Linear, Mask, attention};
use crate::weights::{LoadResult, Weights};

/// Projections to keys and values.
#[derive(Debug)]
pub(super) struct KeyValue {
    k: Linear,
    v: Linear,
}

impl KeyValue {
    fn load(weights: &Weights, inputs: usize, width: usize) -> LoadResult<Self> {
        Ok(Self {
            k: Linear::load(&weights.at("to_k"), inputs, width, Bias::No)?,
            v: Linear::load(&weights.at("to_v"), inputs, width, Bias::No)?,
        })
    }

    pub fn of(&self, x: &Tensor) -> Result<(Tensor, Tensor)> {
        Ok((self.k.forward(x)?, self.v.forward(x)?))
    }
}

/// The projections of every attention that looks at the prompt, kept together so that they are run once per prompt and
/// not once per step.
#[derive(Debug, Default)]
pub(super) struct PromptReaders(Vec<KeyValue>);

impl PromptReaders {
    /// Keys and values of the prompt's states, for each attention.
    pub fn read(&self, text: &Tensor) -> Result<Vec<(Tensor, Tensor)>> {
        self.0.iter().map(|reader| reader.of(text)).collect()
    }

    fn add(&mut self, reader: KeyValue) -> usize {
        self.0.push(reader);
        self.0.len() - 1
    }
}

#[derive(Debug)]
enum Keys {
    /// The tokens themselves.
    Own(KeyValue),
    /// The prompt, by its reader's number.
    Prompt(usize),
}

/// Attention over the picture's tokens, or of them over the prompt. Scores and softmax are `f32` always, so the files'
/// `upcast_attention` asks for nothing more.
#[derive(Debug)]
pub(super) struct Attention {
    q: Linear,
    keys: Keys,
    out: Linear,
    heads: usize,
}

impl Attention {
    /// Over its own tokens.
    pub fn of_itself(weights: &Weights, width: usize, heads: usize) -> LoadResult<Self> {
        let keys = Keys::Own(KeyValue::load(weights, width, width)?);
        Self::load(weights, width, heads, keys)
    }

    /// Over a prompt of states `prompt` wide.
    pub fn of_prompt(
        weights: &Weights,
        width: usize,
        heads: usize,
        prompt: usize,
        readers: &mut PromptReaders,
    ) -> LoadResult<Self> {
        let keys = Keys::Prompt(readers.add(KeyValue::load(weights, prompt, width)?));
        Self::load(weights, width, heads, keys)
    }

    fn load(weights: &Weights, width: usize, heads: usize, keys: Keys) -> LoadResult<Self> {
        let q = Linear::load(&weights.at("to_q"), width, width, Bias::No)?;
        let out = Linear::load(&weights.at("to_out.0"), width, width, Bias::Yes)?;
        Ok(Self { q, keys, out, heads })
    }

    /// `residual` plus the attention of `x`, both `(B, N, width)`.
    pub fn forward_add(&self, x: &Tensor, prompt: &Prompt, residual: &Tensor) -> Result<Tensor> {
        let q = self.q.forward(x)?;
        let scale = 1.0 / ((q.dim(2)? / self.heads) as f64).sqrt();
        let attended = match &self.keys {
            Keys::Own(own) => {
                let (k, v) = own.of(x)?;
                attention(&q, &k, &v, self.heads, scale, Mask::None)?
            }
            Keys::Prompt(number) => {
                let (k, v) = prompt.keys_and_values(*number)?;
                attention(&q, k, v, self.heads, scale, Mask::None)?
            }
        };
        self.out.forward_add(&attended, residual)
    }
}
