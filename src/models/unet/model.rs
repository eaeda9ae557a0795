//! The whole UNet.

use candle_core::{D, DType, Device, Result, Tensor};

use super::super::ModelError;
use super::attention::PromptReaders;
use super::blocks::{Context, Down, Middle, Parts, Up};
use super::config::UNetConfig;
use super::reuse::FeatureCache;
use crate::ops::{Activation, Bias, Conv2d, ConvShape, GroupNorm, Linear, Padding, TimestepEmbedding, silu};
use crate::weights::{LoadResult, Weights};

/// Stages of the last level up that always run: those that read what the input and the first stage down left.
const OUTER: usize = 2;

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
        self.forward_shown(x, t, prompt, added, &mut |_, _| ())
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
        let time = silu(&self.embed_time(t, added)?)?;
        let context = Context { time: &time, prompt };
        let x = self.enter(x)?;
        show("conv_in", &x);
        let x = self.through(x, context, show)?;
        self.leave(&x)
    }

    /// As [`UNet::forward`], but the deep levels are left out where what they gave last, which `cache` remembers, is still
    /// good.
    ///
    /// # Errors
    /// As [`UNet::forward`].
    pub fn forward_reusing(
        &self,
        x: &Tensor,
        t: f32,
        prompt: &Prompt,
        added: &Added,
        cache: &mut FeatureCache,
    ) -> Result<Tensor> {
        let time = silu(&self.embed_time(t, added)?)?;
        let context = Context { time: &time, prompt };
        let x = self.enter(x)?;
        let x = match (self.down.split_first(), self.up.split_last()) {
            (Some(down), Some((last, up))) if last.stages() >= OUTER => {
                self.through_with(cache, x, context, down, (last, up))?
            }
            _ => self.through(x, context, &mut |_, _| ())?,
        };
        self.leave(&x)
    }

    fn enter(&self, x: &Tensor) -> Result<Tensor> {
        let x = x.to_dtype(self.dtype)?;
        let x = if self.config.center_input {
            x.affine(2.0, -1.0)?
        } else {
            x
        };
        self.conv_in.forward(&x)
    }

    fn leave(&self, x: &Tensor) -> Result<Tensor> {
        self.conv_out
            .forward(&self.norm_out.forward_silu(x)?)?
            .to_dtype(DType::F32)
    }

    /// Down, through the middle, and up.
    fn through(&self, mut x: Tensor, context: Context<'_>, show: &mut dyn FnMut(&str, &Tensor)) -> Result<Tensor> {
        let mut skips = vec![x.clone()];
        for (i, block) in self.down.iter().enumerate() {
            x = block.forward(x, context, &mut skips)?;
            show(&format!("down_blocks.{i}"), &x);
        }
        if let Some(middle) = &self.middle {
            x = middle.forward(&x, context)?;
            show("mid_block", &x);
        }
        for (i, block) in self.up.iter().enumerate() {
            x = block.forward(x, context, &mut skips)?;
            show(&format!("up_blocks.{i}"), &x);
        }
        Ok(x)
    }

    /// As [`UNet::through`], but all between the first stage down and the last two stages up may come from memory.
    fn through_with(
        &self,
        cache: &mut FeatureCache,
        x: Tensor,
        context: Context<'_>,
        (first, down): (&Down, &[Down]),
        (last, up): (&Up, &[Up]),
    ) -> Result<Tensor> {
        let Some(start) = first.first(&x, context)? else {
            return self.through(x, context, &mut |_, _| ());
        };
        let outer = last.stages() - OUTER..last.stages();
        let mut skips = vec![x.clone(), start.clone()];
        if let Some(deep) = cache.recall(&x, &start)? {
            return last.forward_stages(outer, deep, context, &mut skips);
        }
        let mut x = first.forward_from(1, start, context, &mut skips)?;
        for block in down {
            x = block.forward(x, context, &mut skips)?;
        }
        if let Some(middle) = &self.middle {
            x = middle.forward(&x, context)?;
        }
        for block in up {
            x = block.forward(x, context, &mut skips)?;
        }
        let deep = last.forward_stages(0..outer.start, x, context, &mut skips)?;
        cache.store(&deep);
        last.forward_stages(outer, deep, context, &mut skips)
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
