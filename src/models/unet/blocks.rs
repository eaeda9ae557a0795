//! The levels of a UNet: down, middle, up.

use std::ops::Range;

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

    /// The first of its stages alone; `None` if it has none.
    pub fn first(&self, x: &Tensor, context: Context<'_>) -> Result<Option<Tensor>> {
        self.stages.first().map(|stage| stage.forward(x, context)).transpose()
    }

    /// Leaves each of its states in `skips`.
    pub fn forward(&self, x: Tensor, context: Context<'_>, skips: &mut Vec<Tensor>) -> Result<Tensor> {
        self.forward_from(0, x, context, skips)
    }

    /// As [`Down::forward`], from the stage `begin` on, which `x` has reached.
    pub fn forward_from(
        &self,
        begin: usize,
        mut x: Tensor,
        context: Context<'_>,
        skips: &mut Vec<Tensor>,
    ) -> Result<Tensor> {
        for stage in self.stages.iter().skip(begin) {
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

    /// How many stages there are.
    pub fn stages(&self) -> usize {
        self.stages.len()
    }

    /// Takes its states from `skips`, and the size to go up to from the next one there.
    pub fn forward(&self, x: Tensor, context: Context<'_>, skips: &mut Vec<Tensor>) -> Result<Tensor> {
        let x = self.forward_stages(0..self.stages.len(), x, context, skips)?;
        self.go_up(x, skips)
    }

    /// Some of its stages, without the way up to the next level.
    pub fn forward_stages(
        &self,
        range: Range<usize>,
        mut x: Tensor,
        context: Context<'_>,
        skips: &mut Vec<Tensor>,
    ) -> Result<Tensor> {
        for stage in &self.stages[range] {
            let Some(skip) = skips.pop() else {
                candle_core::bail!("the way up is longer than the way down")
            };
            x = stage.forward(&concat(&x, &skip)?, context)?;
        }
        Ok(x)
    }

    fn go_up(&self, x: Tensor, skips: &[Tensor]) -> Result<Tensor> {
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
}
