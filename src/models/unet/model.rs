//! The whole UNet.

use candle_core::{D, DType, Device, Result, Tensor};

use super::super::ModelError;
use super::attention::PromptReaders;
use super::blocks::{Context, Down, Middle, Parts, Up};
use super::config::UNetConfig;
use super::deep_cache::DeepCache;
use crate::ops::{Activation, Bias, Conv2d, ConvShape, GroupNorm, Linear, Padding, TimestepEmbedding, silu};
use crate::weights::{LoadResult, Weights};

/// Residual blocks of the way down that tell a [`DeepCache`] how far the picture has moved; they and their counterparts on
/// the way up are computed at each step.
const SHALLOW: usize = 1;

/// What a UNet makes of a prompt once, for all steps of a job. Made anew when a LoRA changes the UNet's weights.
#[derive(Clone, Debug)]
pub struct Prompt {
    keys_and_values: Vec<(Tensor, Tensor)>,
}

impl Prompt {
    pub(super) fn keys_and_values(&self, number: usize) -> Result<(&Tensor, &Tensor)> {
        match self.keys_and_values.get(number) {
            Some((k, v)) => Ok((k, v)),
            None => candle_core::bail!("this prompt was prepared for another model"),
        }
    }
}

/// What some models are told besides the prompt.
#[derive(Clone, Debug, Default)]
pub struct Added {
    /// SDXL's pooled text `(B, width)` and the sizes of each picture (height and width of the original, top and left of
    /// the crop, height and width aimed at), for models with `takes_text_time`.
    pub text_time: Option<(Tensor, Vec<[f32; 6]>)>,
    /// The guidance scale's embedding `(B | 1, guidance_embedding)`, for models that have one.
    pub guidance: Option<Tensor>,
}

/// Two linear layers with a SiLU between them.
#[derive(Debug)]
struct Embedder {
    linear_1: Linear,
    linear_2: Linear,
}

impl Embedder {
    fn load(weights: &Weights, inputs: usize, width: usize) -> LoadResult<Self> {
        Ok(Self {
            linear_1: Linear::load(&weights.at("linear_1"), inputs, width, Bias::Yes)?,
            linear_2: Linear::load(&weights.at("linear_2"), width, width, Bias::Yes)?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.linear_2.forward(&self.linear_1.forward_act(x, Activation::Silu)?)
    }
}

/// diffusers' `UNet2DConditionModel`.
#[derive(Debug)]
pub struct UNet {
    config: UNetConfig,
    dtype: DType,
    device: Device,
    conv_in: Conv2d,
    time: Embedder,
    guidance: Option<Linear>,
    added: Option<Embedder>,
    down: Vec<Down>,
    middle: Option<Middle>,
    up: Vec<Up>,
    norm_out: GroupNorm,
    conv_out: Conv2d,
    readers: PromptReaders,
}

impl UNet {
    /// Builds it from weights in diffusers' names.
    ///
    /// # Errors
    /// A tensor is missing or does not fit.
    pub fn load(weights: &Weights, config: &UNetConfig) -> std::result::Result<Self, ModelError> {
        let base = config.down.first().map_or(0, |level| level.channels);
        let mut parts = Parts {
            config,
            readers: PromptReaders::default(),
            skips: vec![base],
        };
        let conv_in = around(config.in_channels, base, config.conv_in_kernel);
        let mut channels = base;
        let mut down = Vec::with_capacity(config.down.len());
        for (i, level) in config.down.iter().enumerate() {
            let last = i + 1 == config.down.len();
            down.push(Down::load(
                &weights.at("down_blocks").at(i),
                channels,
                *level,
                last,
                &mut parts,
            )?);
            channels = level.channels;
        }
        let middle = Middle::load(&weights.at("mid_block"), channels, &mut parts)?;
        let mut up = Vec::with_capacity(config.up.len());
        for (i, level) in config.up.iter().enumerate() {
            let last = i + 1 == config.up.len();
            up.push(Up::load(
                &weights.at("up_blocks").at(i),
                channels,
                *level,
                last,
                &mut parts,
            )?);
            channels = level.channels;
        }
        let guidance = config
            .guidance_embedding
            .map(|width| Linear::load(&weights.at("time_embedding.cond_proj"), width, base, Bias::No));
        let added = config
            .text_time
            .map(|t| Embedder::load(&weights.at("add_embedding"), t.total, config.time_width));
        let conv_out = around(base, config.out_channels, config.conv_out_kernel);
        Ok(Self {
            config: config.clone(),
            dtype: weights.dtype(),
            device: weights.device().clone(),
            conv_in: Conv2d::load(&weights.at("conv_in"), conv_in, Bias::Yes)?,
            time: Embedder::load(&weights.at("time_embedding"), base, config.time_width)?,
            guidance: guidance.transpose()?,
            added: added.transpose()?,
            down,
            middle,
            up,
            norm_out: GroupNorm::load(&weights.at("conv_norm_out"), config.groups, base, config.eps)?,
            conv_out: Conv2d::load(&weights.at("conv_out"), conv_out, Bias::Yes)?,
            readers: parts.readers,
        })
    }

    /// Its configuration.
    pub fn config(&self) -> &UNetConfig {
        &self.config
    }

    /// Reads the prompt's states `(B, tokens, cross_attention_dim)`, once for all steps.
    ///
    /// # Errors
    /// The shape does not fit, or the device refused.
    pub fn prepare(&self, text: &Tensor) -> Result<Prompt> {
        let keys_and_values = self.readers.read(&text.to_dtype(self.dtype)?)?;
        Ok(Prompt { keys_and_values })
    }

    /// The model's output `(B, H, W, out_channels)`, `f32`, for latents `x` `(B, H, W, in_channels)` of any number type
    /// at timestep `t`. `prompt` was prepared for `B` rows.
    ///
    /// # Errors
    /// The shapes do not fit, something that the model needs is not given, or the device refused.
    pub fn forward(&self, x: &Tensor, t: f32, prompt: &Prompt, added: &Added) -> Result<Tensor> {
        self.run(x, t, prompt, added, None, &mut |_, _| ())
    }

    /// As [`UNet::forward`]; with a `cache`, what lies below the highest resolution is left out where the first residual
    /// blocks say that it would hardly differ from the last evaluation.
    ///
    /// # Errors
    /// As [`UNet::forward`].
    pub fn forward_cached(
        &self,
        x: &Tensor,
        t: f32,
        prompt: &Prompt,
        added: &Added,
        cache: Option<&mut DeepCache>,
    ) -> Result<Tensor> {
        self.run(x, t, prompt, added, cache, &mut |_, _| ())
    }

    /// As [`UNet::forward`]; `show` is given each block's output with its diffusers name, such as `down_blocks.0`, to
    /// compare implementations block by block.
    ///
    /// # Errors
    /// As [`UNet::forward`].
    pub fn forward_shown(
        &self,
        x: &Tensor,
        t: f32,
        prompt: &Prompt,
        added: &Added,
        show: &mut dyn FnMut(&str, &Tensor),
    ) -> Result<Tensor> {
        self.run(x, t, prompt, added, None, show)
    }

    fn run(
        &self,
        x: &Tensor,
        t: f32,
        prompt: &Prompt,
        added: &Added,
        cache: Option<&mut DeepCache>,
        show: &mut dyn FnMut(&str, &Tensor),
    ) -> Result<Tensor> {
        let time = silu(&self.embed_time(t, added)?)?;
        let context = Context { time: &time, prompt };
        let x = if self.config.center_input {
            x.affine(2.0, -1.0)?
        } else {
            x.clone()
        };
        let (Some(first), Some(last)) = (self.down.first(), self.up.last()) else {
            candle_core::bail!("a model needs a level at least")
        };
        let x = self.conv_in.forward(&x.to_dtype(self.dtype)?)?;
        show("conv_in", &x);
        let mut skips = vec![x.clone()];
        let shallow = SHALLOW.min(last.len().saturating_sub(1));
        let x = first.begin(x, shallow, context, &mut skips)?;
        let left = skips.len();
        let x = match cache {
            None => self.below(x, left, context, &mut skips, show)?,
            Some(cache) => cache.recall_or(&x, || self.below(x.clone(), left, context, &mut skips, show))?,
        };
        let x = last.end(x, left, context, &mut skips)?;
        show(&format!("up_blocks.{}", self.up.len() - 1), &x);
        self.conv_out
            .forward(&self.norm_out.forward_silu(&x)?)?
            .to_dtype(DType::F32)
    }

    /// What comes up to the last `left` residual blocks from below, for what the first ones gave (`x`). Leaves the states
    /// of the first ones in `skips`.
    fn below(
        &self,
        mut x: Tensor,
        left: usize,
        context: Context<'_>,
        skips: &mut Vec<Tensor>,
        show: &mut dyn FnMut(&str, &Tensor),
    ) -> Result<Tensor> {
        for (i, block) in self.down.iter().enumerate() {
            let begun = if i == 0 { left - 1 } else { 0 };
            x = block.rest(x, begun, context, skips)?;
            show(&format!("down_blocks.{i}"), &x);
        }
        if let Some(middle) = &self.middle {
            x = middle.forward(&x, context)?;
            show("mid_block", &x);
        }
        for (i, block) in self.up.iter().enumerate() {
            if i + 1 == self.up.len() {
                return block.begin(x, left, context, skips);
            }
            x = block.forward(x, context, skips)?;
            show(&format!("up_blocks.{i}"), &x);
        }
        Ok(x)
    }

    /// `(B | 1, time_width)`.
    fn embed_time(&self, t: f32, added: &Added) -> Result<Tensor> {
        let base = self.config.down.first().map_or(0, |level| level.channels);
        let mut sines = self.sines(base, &[t])?;
        match (&self.guidance, &added.guidance) {
            (Some(projection), Some(guidance)) => {
                sines = projection
                    .forward(&guidance.to_dtype(self.dtype)?)?
                    .broadcast_add(&sines)?;
            }
            (None, None) => {}
            (Some(_), None) => candle_core::bail!("this model needs the guidance scale's embedding"),
            (None, Some(_)) => candle_core::bail!("this model takes no guidance scale's embedding"),
        }
        let time = self.time.forward(&sines)?;
        match (&self.added, self.config.text_time, &added.text_time) {
            (Some(embedder), Some(shape), Some((pooled, sizes))) => {
                let numbers: Vec<f32> = sizes.iter().flatten().copied().collect();
                let sizes = self.sines(shape.each, &numbers)?.reshape((sizes.len(), ()))?;
                let both = Tensor::cat(&[&pooled.to_dtype(self.dtype)?, &sizes], D::Minus1)?;
                embedder.forward(&both)?.broadcast_add(&time)
            }
            (None, _, None) => Ok(time),
            (None, _, Some(_)) => candle_core::bail!("this model takes no pooled text and sizes"),
            _ => candle_core::bail!("this model needs pooled text and sizes"),
        }
    }

    fn sines(&self, width: usize, numbers: &[f32]) -> Result<Tensor> {
        let UNetConfig {
            flip_sin_to_cos,
            freq_shift,
            ..
        } = self.config;
        let embedding = TimestepEmbedding {
            width,
            flip_sin_to_cos,
            freq_shift,
        };
        embedding.of(numbers, &self.device)?.to_dtype(self.dtype)
    }
}

/// A convolution that keeps the size, with a kernel of `side`.
fn around(inputs: usize, outputs: usize, side: usize) -> ConvShape {
    ConvShape {
        inputs,
        outputs,
        kernel: side,
        stride: 1,
        padding: Padding::all(side / 2),
    }
}
