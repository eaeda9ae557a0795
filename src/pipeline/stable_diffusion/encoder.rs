//! The text encoders of one model, with their tokenizers and a memory of prompts they have read.

use std::collections::VecDeque;
use std::rc::Rc;

use candle_core::{D, DType, Device, Tensor};

use crate::domain::request::PromptSyntax;
use crate::models::ModelError;
use crate::models::clip::{ClipConfig, ClipText};
use crate::pipeline::text::{Chunk, ClipTokenizer, TextError, chunks, plain, weighted};
use crate::weights::{LayerTable, TensorSource, Weights};

/// Prompts whose embeddings are kept.
const REMEMBERED: usize = 64;

/// What the denoiser reads of one prompt.
#[derive(Clone, Debug)]
pub struct Encoded {
    /// `(1, 77 * chunks, width)`; the widths of several encoders side by side.
    pub states: Tensor,
    /// SDXL's pooled text `(1, width)`.
    pub pooled: Option<Tensor>,
}

impl Encoded {
    /// Chunks of 77 tokens.
    pub fn chunks(&self) -> candle_core::Result<usize> {
        Ok(self.states.dim(1)? / TOKENS)
    }

    /// Zeros of the same shape: SDXL's way to say nothing.
    pub fn zeros(&self) -> candle_core::Result<Self> {
        Ok(Self {
            states: self.states.zeros_like()?,
            pooled: self.pooled.as_ref().map(Tensor::zeros_like).transpose()?,
        })
    }

    /// The same with chunks of `filler` (one chunk) at the end, up to `count`.
    pub fn padded(&self, count: usize, filler: &Self) -> candle_core::Result<Self> {
        let missing = count.saturating_sub(self.chunks()?);
        let mut parts = vec![self.states.clone()];
        parts.extend(std::iter::repeat_n(filler.states.clone(), missing));
        Ok(Self {
            states: Tensor::cat(&parts, 1)?,
            pooled: self.pooled.clone(),
        })
    }
}

const TOKENS: usize = 77;

/// Which hidden state of an encoder the model was trained on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UsualLayer {
    /// The last one, normed: Stable Diffusion 1.x; 2.x, whose files leave the last layer out.
    Last,
    /// The one before the last, without the final norm, and the pooled text: SDXL.
    Penultimate,
}

/// One text encoder. Its weights can be dropped and read again.
pub struct TextEncoder {
    tokenizer: ClipTokenizer,
    config: ClipConfig,
    usual: UsualLayer,
    tensors: Rc<dyn TensorSource>,
    loaded: Option<Loaded>,
}

struct Loaded {
    model: ClipText,
    layers: Rc<LayerTable>,
}

impl TextEncoder {
    /// An encoder that reads its weights when it is first needed.
    pub fn new(tokenizer: ClipTokenizer, config: ClipConfig, usual: UsualLayer, tensors: Rc<dyn TensorSource>) -> Self {
        Self {
            tokenizer,
            config,
            usual,
            tensors,
            loaded: None,
        }
    }

    fn load(&mut self, device: &Device, dtype: DType) -> Result<&Loaded, ModelError> {
        let loaded = match self.loaded.take() {
            Some(loaded) => loaded,
            None => {
                let weights = Weights::new(Rc::clone(&self.tensors), device.clone(), dtype);
                let model = ClipText::load(&weights, &self.config)?;
                let layers = Rc::clone(weights.layers());
                Loaded { model, layers }
            }
        };
        Ok(self.loaded.insert(loaded))
    }
}

/// What a prompt was read with.
#[derive(Clone, Debug, PartialEq)]
struct Key {
    text: String,
    syntax: PromptSyntax,
    skip: usize,
}

/// Every text encoder of one model.
pub struct TextEncoders {
    encoders: Vec<TextEncoder>,
    device: Device,
    dtype: DType,
    remembered: VecDeque<(Key, Encoded)>,
}

impl TextEncoders {
    /// The encoders in the order in which their states stand side by side.
    pub fn new(encoders: Vec<TextEncoder>, device: Device, dtype: DType) -> Self {
        Self {
            encoders,
            device,
            dtype,
            remembered: VecDeque::new(),
        }
    }

    /// Reads all weights that are not there yet.
    ///
    /// # Errors
    /// A tensor is missing or does not fit.
    pub fn load(&mut self) -> Result<(), ModelError> {
        for encoder in &mut self.encoders {
            encoder.load(&self.device, self.dtype)?;
        }
        Ok(())
    }

    /// Drops all weights; the memory of prompts stays.
    pub fn unload(&mut self) {
        for encoder in &mut self.encoders {
            encoder.loaded = None;
        }
    }

    /// The layers of each encoder, for LoRAs.
    ///
    /// # Errors
    /// As [`TextEncoders::load`].
    pub fn layers(&mut self) -> Result<Vec<Rc<LayerTable>>, ModelError> {
        let (device, dtype) = (&self.device, self.dtype);
        let layers = |encoder: &mut TextEncoder| Ok(Rc::clone(&encoder.load(device, dtype)?.layers));
        self.encoders.iter_mut().map(layers).collect()
    }

    /// Forgets every prompt: the weights have changed.
    pub fn forget(&mut self) {
        self.remembered.clear();
    }

    /// Reads one prompt; `skip` layers are left out besides the usual ones.
    ///
    /// # Errors
    /// The tokenizer or an encoder failed.
    pub fn encode(&mut self, text: &str, syntax: PromptSyntax, skip: usize) -> Result<Encoded, TextError> {
        let key = Key {
            text: text.to_owned(),
            syntax,
            skip,
        };
        if let Some(at) = self.remembered.iter().position(|(known, _)| *known == key) {
            let found = self.remembered.remove(at);
            if let Some((key, encoded)) = found {
                self.remembered.push_front((key, encoded.clone()));
                return Ok(encoded);
            }
        }
        let encoded = self.read(&key)?;
        self.remembered.push_front((key, encoded.clone()));
        self.remembered.truncate(REMEMBERED);
        Ok(encoded)
    }

    fn read(&mut self, key: &Key) -> Result<Encoded, TextError> {
        let pieces = match key.syntax {
            PromptSyntax::Plain => plain(&key.text),
            PromptSyntax::A1111 => weighted(&key.text),
        };
        let mut states = Vec::with_capacity(self.encoders.len());
        let mut pooled = None;
        for encoder in &mut self.encoders {
            let chunks = chunks(&encoder.tokenizer, &pieces)?;
            let usual = encoder.usual;
            let model = &encoder.load(&self.device, self.dtype).map_err(TextError::from)?.model;
            let rows: Vec<Vec<u32>> = chunks.iter().map(|chunk| chunk.tokens.clone()).collect();
            let hidden = match usual {
                UsualLayer::Last => model.normed(&model.hidden(&rows, key.skip)?)?,
                UsualLayer::Penultimate => {
                    let (hidden, of_rows) = model.hidden_and_pooled(&rows, key.skip + 1)?;
                    pooled = Some(of_rows.narrow(0, 0, 1)?);
                    hidden
                }
            };
            let hidden = weigh(&hidden, &chunks)?;
            states.push(hidden.reshape((1, chunks.len() * TOKENS, ()))?);
        }
        Ok(Encoded {
            states: Tensor::cat(&states, D::Minus1)?.contiguous()?,
            pooled,
        })
    }
}

/// Multiplies each token's state by its weight and brings each chunk's mean back to what it was, as A1111 does.
fn weigh(states: &Tensor, chunks: &[Chunk]) -> candle_core::Result<Tensor> {
    if !chunks.iter().any(Chunk::is_weighted) {
        return Ok(states.clone());
    }
    let weighed = chunks.iter().enumerate().map(|(row, chunk)| {
        let before = states.narrow(0, row, 1)?;
        if !chunk.is_weighted() {
            return Ok(before);
        }
        let before = before.to_dtype(DType::F32)?;
        let weights = Tensor::from_vec(chunk.weights.clone(), (1, chunk.weights.len(), 1), states.device())?;
        let after = before.broadcast_mul(&weights)?;
        let mean = |t: &Tensor| t.mean_all()?.to_scalar::<f32>();
        let (old, new) = (mean(&before)?, mean(&after)?);
        let restored = if new == 0.0 {
            after
        } else {
            (after * f64::from(old / new))?
        };
        restored.to_dtype(states.dtype())
    });
    Tensor::cat(&weighed.collect::<candle_core::Result<Vec<_>>>()?, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(weights: &[f32]) -> Chunk {
        Chunk {
            tokens: vec![0; weights.len()],
            weights: weights.to_vec(),
        }
    }

    #[test]
    fn weights_keep_the_mean_of_each_chunk() {
        let states =
            Tensor::from_vec(vec![1.0f32, 3.0, 5.0, 7.0, 1.0, 3.0, 5.0, 7.0], (2, 2, 2), &Device::Cpu).unwrap();
        let weighed = weigh(&states, &[chunk(&[1.0, 1.0]), chunk(&[1.0, 2.0])]).unwrap();
        let values: Vec<f32> = weighed.flatten_all().unwrap().to_vec1().unwrap();
        assert_eq!(values[..4], [1.0, 3.0, 5.0, 7.0]);
        // (1 + 3 + 10 + 14) / 4 = 7, which was 4.
        for (found, expected) in values[4..].iter().zip([1.0f32, 3.0, 10.0, 14.0]) {
            assert!((found - expected * 4.0 / 7.0).abs() < 1e-6);
        }
    }

    #[test]
    fn padding_adds_whole_chunks() {
        let of = |value: f32, chunks: usize| Encoded {
            states: Tensor::full(value, (1, chunks * TOKENS, 2), &Device::Cpu).unwrap(),
            pooled: None,
        };
        let padded = of(1.0, 1).padded(3, &of(2.0, 1)).unwrap();
        assert_eq!(padded.chunks().unwrap(), 3);
        let sum = padded.states.sum_all().unwrap().to_scalar::<f32>().unwrap();
        assert_eq!(sum, (154 + 2 * 2 * 154) as f32);
        assert_eq!(of(1.0, 2).padded(2, &of(2.0, 1)).unwrap().chunks().unwrap(), 2);
    }
}
