//! The levels of a UNet: down, middle, up.

use candle_core::{Result, Tensor};

use super::super::resnet::{Resnet, ResnetShape};
use super::Prompt;
use super::attention::PromptReaders;
use super::config::{AttentionShape, Level, Mid, UNetConfig};
use super::transformer::SpatialTransformer;
use crate::ops::{Bias, Conv2d, ConvShape, Padding, concat, upsample_nearest};
use crate::weights::{LoadResult, Weights};

/// What every block is made of.
pub(super) struct Parts<'a> {
    pub config: &'a UNetConfig,
    pub readers: PromptReaders,
    /// Channels of the states that the way down leaves for the way up.
    pub skips: Vec<usize>,
}

impl Parts<'_> {
    fn resnet(&self, weights: &Weights, inputs: usize, outputs: usize) -> LoadResult<Resnet> {
        let UNetConfig {
            time_width,
            groups,
            eps,
            ..
        } = *self.config;
        Resnet::load(
            weights,
            ResnetShape {
                inputs,
                outputs,
                time: Some(time_width),
                groups,
                eps,
            },
        )
    }

    fn transformer(
        &mut self,
        weights: &Weights,
        channels: usize,
        shape: Option<AttentionShape>,
    ) -> LoadResult<Option<SpatialTransformer>> {
        let groups = self.config.groups;
        shape
            .map(|shape| SpatialTransformer::load(weights, channels, groups, shape, &mut self.readers))
            .transpose()
    }
}

/// What a block's forward pass needs besides the picture.
#[derive(Clone, Copy)]
pub(super) struct Context<'a> {
    /// SiLU of the time embedding.
    pub time: &'a Tensor,
    pub prompt: &'a Prompt,
}

#[derive(Debug)]
struct Stage {
    resnet: Resnet,
    transformer: Option<SpatialTransformer>,
}

impl Stage {
    fn forward(&self, x: &Tensor, context: Context<'_>) -> Result<Tensor> {
        let x = self.resnet.forward(x, Some(context.time))?;
        match &self.transformer {
            Some(transformer) => transformer.forward(&x, context.prompt),
            None => Ok(x),
        }
    }
}

/// A level on the way down.
#[derive(Debug)]
pub(super) struct Down {
    stages: Vec<Stage>,
    downsample: Option<Conv2d>,
}

impl Down {
    pub fn load(weights: &Weights, inputs: usize, level: Level, last: bool, parts: &mut Parts<'_>) -> LoadResult<Self> {
        let channels = level.channels;
        let mut stages = Vec::with_capacity(level.layers);
        for i in 0..level.layers {
            let from = if i == 0 { inputs } else { channels };
            let resnet = parts.resnet(&weights.at("resnets").at(i), from, channels)?;
            let transformer = parts.transformer(&weights.at("attentions").at(i), channels, level.attention)?;
            stages.push(Stage { resnet, transformer });
            parts.skips.push(channels);
        }
        if last {
            return Ok(Self {
                stages,
                downsample: None,
            });
        }
        let padding = match parts.config.downsample_padding {
            0 => Padding::AFTER,
            side => Padding::all(side),
        };
        let shape = ConvShape {
            stride: 2,
            padding,
            ..ConvShape::same3(channels, channels)
        };
        parts.skips.push(channels);
        Ok(Self {
            stages,
            downsample: Some(Conv2d::load(&weights.at("downsamplers.0.conv"), shape, Bias::Yes)?),
        })
    }

    /// Runs the first `count` residual blocks and leaves each of their states in `skips`.
    pub fn begin(&self, mut x: Tensor, count: usize, context: Context<'_>, skips: &mut Vec<Tensor>) -> Result<Tensor> {
        for stage in self.stages.iter().take(count) {
            x = stage.forward(&x, context)?;
            skips.push(x.clone());
        }
        Ok(x)
    }

    /// Runs all that comes after the first `begun` residual blocks and leaves each of its states in `skips`.
    pub fn rest(&self, mut x: Tensor, begun: usize, context: Context<'_>, skips: &mut Vec<Tensor>) -> Result<Tensor> {
        for stage in self.stages.iter().skip(begun) {
            x = stage.forward(&x, context)?;
            skips.push(x.clone());
        }
        if let Some(downsample) = &self.downsample {
            x = downsample.forward(&x)?;
            skips.push(x.clone());
        }
        Ok(x)
    }
}

/// The middle: a residual block, and attention and one more where there is attention.
#[derive(Debug)]
pub(super) struct Middle {
    first: Resnet,
    rest: Option<(SpatialTransformer, Resnet)>,
}

impl Middle {
    pub fn load(weights: &Weights, channels: usize, parts: &mut Parts<'_>) -> LoadResult<Option<Self>> {
        let shape = match parts.config.mid {
            Mid::Absent => return Ok(None),
            Mid::Plain => None,
            Mid::Attention(shape) => Some(shape),
        };
        let first = parts.resnet(&weights.at("resnets.0"), channels, channels)?;
        let rest = match parts.transformer(&weights.at("attentions.0"), channels, shape)? {
            Some(transformer) => Some((transformer, parts.resnet(&weights.at("resnets.1"), channels, channels)?)),
            None => None,
        };
        Ok(Some(Self { first, rest }))
    }

    pub fn forward(&self, x: &Tensor, context: Context<'_>) -> Result<Tensor> {
        let x = self.first.forward(x, Some(context.time))?;
        match &self.rest {
            Some((transformer, second)) => {
                second.forward(&transformer.forward(&x, context.prompt)?, Some(context.time))
            }
            None => Ok(x),
        }
    }
}

/// A level on the way up.
#[derive(Debug)]
pub(super) struct Up {
    stages: Vec<Stage>,
    upsample: Option<Conv2d>,
}

impl Up {
    /// `inputs` are the channels that come from below.
    pub fn load(weights: &Weights, inputs: usize, level: Level, last: bool, parts: &mut Parts<'_>) -> LoadResult<Self> {
        let channels = level.channels;
        let mut stages = Vec::with_capacity(level.layers + 1);
        for i in 0..=level.layers {
            let below = if i == 0 { inputs } else { channels };
            let skip = parts.skips.pop().unwrap_or(0);
            let resnet = parts.resnet(&weights.at("resnets").at(i), below + skip, channels)?;
            let transformer = parts.transformer(&weights.at("attentions").at(i), channels, level.attention)?;
            stages.push(Stage { resnet, transformer });
        }
        let upsample = (!last).then(|| {
            Conv2d::load(
                &weights.at("upsamplers.0.conv"),
                ConvShape::same3(channels, channels),
                Bias::Yes,
            )
        });
        Ok(Self {
            stages,
            upsample: upsample.transpose()?,
        })
    }

    /// Takes its states from `skips`, and the size to go up to from the next one there.
    pub fn forward(&self, x: Tensor, context: Context<'_>, skips: &mut Vec<Tensor>) -> Result<Tensor> {
        self.end(x, self.len(), context, skips)
    }

    /// Its residual blocks.
    pub fn len(&self) -> usize {
        self.stages.len()
    }

    /// As [`Up::forward`], of all but the last `left` residual blocks and what follows them.
    pub fn begin(&self, x: Tensor, left: usize, context: Context<'_>, skips: &mut Vec<Tensor>) -> Result<Tensor> {
        let count = self.stages.len().saturating_sub(left);
        Self::run(&self.stages[..count], x, context, skips)
    }

    /// As [`Up::forward`], of the last `left` residual blocks and what follows them.
    pub fn end(&self, x: Tensor, left: usize, context: Context<'_>, skips: &mut Vec<Tensor>) -> Result<Tensor> {
        let count = self.stages.len().saturating_sub(left);
        let x = Self::run(&self.stages[count..], x, context, skips)?;
        let Some(upsample) = &self.upsample else { return Ok(x) };
        let (_, height, width, _) = match skips.last() {
            Some(next) => next.dims4()?,
            None => candle_core::bail!("the way up is longer than the way down"),
        };
        if (height, width) == (2 * x.dim(1)?, 2 * x.dim(2)?) {
            return upsample.forward_doubled(&x);
        }
        upsample.forward(&upsample_nearest(&x, height, width)?)
    }

    fn run(stages: &[Stage], mut x: Tensor, context: Context<'_>, skips: &mut Vec<Tensor>) -> Result<Tensor> {
        for stage in stages {
            let Some(skip) = skips.pop() else {
                candle_core::bail!("the way up is longer than the way down")
            };
            x = stage.forward(&concat(&x, &skip)?, context)?;
        }
        Ok(x)
    }
}
