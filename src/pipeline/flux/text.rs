//! From a prompt to what FLUX is conditioned on: T5's hidden states and CLIP's pooled state.

use std::collections::VecDeque;
use std::rc::Rc;

use candle_core::{DType, Device, Result, Tensor};

use super::t5_tokenizer::{T5Tokenizer, T5Tokens};
use crate::domain::load::Residency;
use crate::domain::request::PromptSyntax;
use crate::models::ModelError;
use crate::models::clip::{ClipConfig, ClipText};
use crate::models::t5::{T5Config, T5Encoder};
use crate::pipeline::text::{ClipTokenizer, Piece, Stage, TextError, plain, stages, weighted};
use crate::pipeline::{Compute, PartsError, PipelineError};
use crate::weights::{Component, LayerTable, ModelFiles, TensorSource, TokenizerFiles, Weights};

/// Prompts whose embeddings are kept.
const KEPT: usize = 8;

/// One prompt as the transformer reads it.
#[derive(Clone, Debug)]
pub(super) struct Conditioning {
    /// T5's hidden states `(1, T, joint_attention_dim)`.
    pub text: Tensor,
    /// CLIP's pooled state `(1, pooled_projection_dim)`.
    pub pooled: Tensor,
    /// T5 tokens that did not fit.
    pub dropped: usize,
}

/// A prompt over a run: each part holds from its step on. Never empty.
pub(super) type Script = Vec<(usize, Conditioning)>;

/// Both text encoders, where they are now.
pub(super) struct FluxText {
    place: Place,
    length: usize,
    clip_tokenizer: ClipTokenizer,
    t5_tokenizer: T5Tokenizer,
    encoders: Option<Encoders>,
    known: VecDeque<(Vec<(String, u32)>, Conditioning)>,
}

/// Where encoders are loaded from and to.
struct Place {
    clip: (ClipConfig, Rc<dyn TensorSource>),
    t5: (T5Config, Rc<dyn TensorSource>),
    device: Device,
    dtype: DType,
}

struct Encoders {
    clip: ClipText,
    t5: T5Encoder,
    layers: [Rc<LayerTable>; 2],
}

impl FluxText {
    /// Reads the tokenizers and, unless they do not stay, the encoders. `length` is the number of T5
    /// tokens that the model was trained with; a tokenizer that cuts earlier has its way.
    pub(super) fn load(files: &ModelFiles, compute: &Compute, length: usize) -> std::result::Result<Self, PartsError> {
        let clip_files = files.tokenizer()?;
        let clip_tokenizer = match clip_files {
            TokenizerFiles::BuiltInClip => ClipTokenizer::built_in(crate::pipeline::text::Padding::End)?,
            TokenizerFiles::Files(_) => ClipTokenizer::from_files(&|name| clip_files.read(name))?,
        };
        let t5_tokenizer = T5Tokenizer::from_files(files.tokenizer_2()?)?;
        let place = Place::new(files, &compute.device, compute.dtype)?;
        clip_tokenizer.fits(place.clip.0.vocab_size)?;
        let length = t5_tokenizer.longest().map_or(length, |longest| length.min(longest));
        let mut text = Self {
            place,
            length,
            clip_tokenizer,
            t5_tokenizer,
            encoders: None,
            known: VecDeque::new(),
        };
        if compute.residency == Residency::Keep {
            text.prepare()?;
        }
        Ok(text)
    }

    /// Loads the encoders if they are not there, and gives their layers (CLIP's, then T5's) for LoRAs to patch.
    pub(super) fn prepare(&mut self) -> std::result::Result<&[Rc<LayerTable>; 2], ModelError> {
        let encoders = match self.encoders.take() {
            Some(encoders) => encoders,
            None => self.place.load()?,
        };
        Ok(&self.encoders.insert(encoders).layers)
    }

    /// Forgets every prompt: the encoders' weights have changed.
    pub(super) fn forget(&mut self) {
        self.known.clear();
    }

    /// Drops the encoders; the memory of prompts stays.
    pub(super) fn unload(&mut self) {
        self.encoders = None;
    }

    /// What `prompt` says at each of `steps` steps.
    pub(super) fn script(
        &mut self,
        prompt: &str,
        syntax: PromptSyntax,
        steps: usize,
    ) -> std::result::Result<Script, PipelineError> {
        let stages = match syntax {
            PromptSyntax::A1111 => stages(prompt, steps as u32),
            PromptSyntax::Plain => vec![Stage {
                from_step: 0,
                text: prompt.to_owned(),
            }],
        };
        let read = match syntax {
            PromptSyntax::A1111 => weighted,
            PromptSyntax::Plain => plain,
        };
        stages
            .iter()
            .map(|stage| {
                Ok((
                    stage.from_step as usize,
                    self.conditioning(&pieces(&read(&stage.text)))?,
                ))
            })
            .collect()
    }

    fn conditioning(&mut self, pieces: &[(String, f32)]) -> std::result::Result<Conditioning, PipelineError> {
        let key: Vec<_> = pieces
            .iter()
            .map(|(text, weight)| (text.clone(), weight.to_bits()))
            .collect();
        if let Some((_, known)) = self.known.iter().find(|(known, _)| *known == key) {
            return Ok(known.clone());
        }
        let made = self.encode(pieces)?;
        if self.known.len() == KEPT {
            self.known.pop_front();
        }
        self.known.push_back((key, made.clone()));
        Ok(made)
    }

    fn encode(&mut self, pieces: &[(String, f32)]) -> std::result::Result<Conditioning, PipelineError> {
        self.prepare().map_err(TextError::from)?;
        let tokens = self.t5_tokenizer.encode(
            pieces.iter().map(|(text, weight)| (text.as_str(), *weight)),
            self.length,
        )?;
        let empty = self.t5_tokenizer.encode([("", 1.0)], self.length)?;
        let whole: String = pieces.iter().map(|(text, _)| text.as_str()).collect();
        let clip_ids = self.clip_ids(&whole)?;
        let end = clip_ids
            .iter()
            .position(|id| *id == self.clip_tokenizer.eos)
            .unwrap_or(clip_ids.len() - 1);
        let Some(encoders) = &self.encoders else {
            return Err(PipelineError::Text(TextError::NoTokenizer));
        };
        Ok(Conditioning {
            text: encoders.hidden(&tokens, &empty)?,
            pooled: encoders.pooled(clip_ids, end)?,
            dropped: tokens.dropped,
        })
    }

    /// Start token, as many tokens as fit, end token, padding.
    fn clip_ids(&self, text: &str) -> std::result::Result<Vec<u32>, TextError> {
        let length = self.place.clip.0.max_position_embeddings;
        let mut ids = vec![self.clip_tokenizer.bos];
        ids.extend(self.clip_tokenizer.encode(text)?);
        ids.truncate(length.saturating_sub(1));
        ids.push(self.clip_tokenizer.eos);
        ids.resize(length, self.clip_tokenizer.pad);
        Ok(ids)
    }
}

impl Place {
    fn new(files: &ModelFiles, device: &Device, dtype: DType) -> std::result::Result<Self, ModelError> {
        let source = |component| files.tensors(component);
        let t5_source = source(Component::TextEncoder2)?;
        let probe = Weights::new(Rc::clone(&t5_source), device.clone(), dtype);
        let t5_config = T5Config::parse(files.config(Component::TextEncoder2)?, &probe)?;
        let clip_config = ClipConfig::parse(files.config(Component::TextEncoder)?)?;
        Ok(Self {
            clip: (clip_config, source(Component::TextEncoder)?),
            t5: (t5_config, t5_source),
            device: device.clone(),
            dtype,
        })
    }

    fn load(&self) -> std::result::Result<Encoders, ModelError> {
        let clip = Weights::new(Rc::clone(&self.clip.1), self.device.clone(), self.dtype);
        // T5 overflows in f16.
        let t5_dtype = if self.dtype == DType::F16 {
            DType::BF16
        } else {
            self.dtype
        };
        let t5 = Weights::new(Rc::clone(&self.t5.1), self.device.clone(), t5_dtype);
        let layers = [Rc::clone(clip.layers()), Rc::clone(t5.layers())];
        Ok(Encoders {
            clip: ClipText::load(&clip, &self.clip.0)?,
            t5: T5Encoder::load(&t5, &self.t5.0)?,
            layers,
        })
    }
}

impl Encoders {
    /// T5's hidden states; a weight moves a token's state away from what it is in an empty prompt.
    fn hidden(&self, tokens: &T5Tokens, empty: &T5Tokens) -> Result<Tensor> {
        let run = |tokens: &T5Tokens| {
            let length = tokens.ids.len();
            self.t5
                .forward(&Tensor::from_vec(tokens.ids.clone(), (1, length), self.t5.device())?)
        };
        let states = run(tokens)?;
        if tokens.weights.iter().all(|weight| *weight == 1.0) {
            return Ok(states);
        }
        let empty = run(empty)?.to_dtype(DType::F32)?;
        let weights = Tensor::from_slice(&tokens.weights, (1, tokens.weights.len(), 1), self.t5.device())?;
        let away = (states.to_dtype(DType::F32)? - &empty)?;
        (empty + away.broadcast_mul(&weights)?)?.to_dtype(states.dtype())
    }

    /// CLIP's normed state at the end token. FLUX takes it without the projection that some files carry.
    fn pooled(&self, ids: Vec<u32>, end: usize) -> Result<Tensor> {
        let hidden = self.clip.hidden(&[ids], 0)?;
        self.clip.normed(&hidden.narrow(1, end, 1)?)?.squeeze(1)
    }
}

/// Text and weights; a break in the prompt is a space, for FLUX reads it in one piece.
fn pieces(parsed: &[Piece]) -> Vec<(String, f32)> {
    parsed
        .iter()
        .map(|piece| match piece {
            Piece::Text { text, weight } => (text.clone(), *weight),
            Piece::Break => (" ".to_owned(), 1.0),
        })
        .collect()
}
