//! The prompts of one job, ready for the UNet at every step.

use std::collections::HashMap;

use candle_core::{D, Tensor};

use super::encoder::{Encoded, TextEncoders};
use crate::domain::request::PromptSyntax;
use crate::models::unet::{Added, Prompt, UNet};
use crate::pipeline::PipelineError;
use crate::pipeline::step_cache::Told;
use crate::pipeline::text::{Stage, TextError, stages};

/// A prompt as it reads from some step on.
struct EncodedStage {
    from_step: usize,
    /// Place in the list of distinct texts.
    text: usize,
}

/// One side, the prompt or the negative prompt, over the steps of a job.
struct Side {
    stages: Vec<EncodedStage>,
    texts: Vec<Encoded>,
}

impl Side {
    fn text_at(&self, step: usize) -> usize {
        let stage = self.stages.iter().rev().find(|stage| stage.from_step <= step);
        stage.map_or(0, |stage| stage.text)
    }
}

/// How the prompts of a job are to be read.
pub struct Reading<'a> {
    /// What the picture shows.
    pub prompt: &'a str,
    /// What it must not show; `None` if no step is guided.
    pub negative: Option<&'a str>,
    /// How both are read.
    pub syntax: PromptSyntax,
    /// Layers left out for the prompt. The negative prompt has the usual ones, as in diffusers.
    pub skip: usize,
    /// An empty negative prompt is zeros instead of the text encoders' view of it.
    pub zeros_for_empty: bool,
    /// Denoising steps.
    pub steps: usize,
}

/// The prompts of one job.
pub struct Prompts {
    prompt: Side,
    negative: Option<Side>,
}

impl Prompts {
    /// Runs the text encoders over every text of both prompts, and brings all to the same number of chunks.
    ///
    /// # Errors
    /// A text encoder failed.
    pub fn read(encoders: &mut TextEncoders, reading: &Reading<'_>) -> Result<Self, TextError> {
        let syntax = reading.syntax;
        let mut prompt = side(reading.prompt, syntax, reading.steps, |text| {
            encoders.encode(text, syntax, reading.skip)
        })?;
        let mut negative = match reading.negative {
            None => None,
            Some("") if reading.zeros_for_empty => Some(Side {
                stages: vec![EncodedStage { from_step: 0, text: 0 }],
                texts: vec![encoders.encode("", syntax, 0)?.zeros()?],
            }),
            Some(text) => Some(side(text, syntax, reading.steps, |text| {
                encoders.encode(text, syntax, 0)
            })?),
        };
        let all = || prompt.texts.iter().chain(negative.iter().flat_map(|side| &side.texts));
        let mut most = 1;
        let mut least = usize::MAX;
        for text in all() {
            most = most.max(text.chunks()?);
            least = least.min(text.chunks()?);
        }
        if least < most {
            let empty = encoders.encode("", syntax, 0)?;
            for text in &mut prompt.texts {
                *text = text.padded(most, &empty)?;
            }
            let zeros = reading.zeros_for_empty && reading.negative == Some("");
            let filler = if zeros { empty.zeros()? } else { empty };
            for text in negative.iter_mut().flat_map(|side| &mut side.texts) {
                *text = text.padded(most, &filler)?;
            }
        }
        Ok(Self { prompt, negative })
    }
}

fn side(
    text: &str,
    syntax: PromptSyntax,
    steps: usize,
    mut encode: impl FnMut(&str) -> Result<Encoded, TextError>,
) -> Result<Side, TextError> {
    let stages = match syntax {
        PromptSyntax::A1111 => stages(text, steps as u32),
        PromptSyntax::Plain => vec![Stage {
            from_step: 0,
            text: text.to_owned(),
        }],
    };
    let mut places: HashMap<String, usize> = HashMap::new();
    let mut texts = Vec::new();
    let mut encoded = Vec::with_capacity(stages.len());
    for stage in stages {
        let place = match places.get(&stage.text) {
            Some(place) => *place,
            None => {
                texts.push(encode(&stage.text)?);
                places.insert(stage.text, texts.len() - 1);
                texts.len() - 1
            }
        };
        encoded.push(EncodedStage {
            from_step: stage.from_step as usize,
            text: place,
        });
    }
    Ok(Side { stages: encoded, texts })
}

/// What the UNet makes of the prompts, kept for as long as they stay the same.
pub struct Prepared<'a> {
    unet: &'a UNet,
    prompts: &'a Prompts,
    /// SDXL's sizes.
    sizes: Option<[f32; 6]>,
    guidance: Option<Tensor>,
    ready: HashMap<Told, (Prompt, Added)>,
}

impl<'a> Prepared<'a> {
    /// `guidance`: the embedding of the guidance scale, for models that take one.
    pub fn new(unet: &'a UNet, prompts: &'a Prompts, sizes: Option<[f32; 6]>, guidance: Option<Tensor>) -> Self {
        Self {
            unet,
            prompts,
            sizes,
            guidance,
            ready: HashMap::new(),
        }
    }

    /// Places of the texts that the UNet is told at `step`.
    pub fn told(&self, step: usize, guided: bool) -> Told {
        let negative = self.prompts.negative.as_ref().filter(|_| guided);
        let negative = negative.map(|side| side.text_at(step));
        (self.prompts.prompt.text_at(step), negative)
    }

    /// For a batch of the negative prompt and the prompt if `guided`, else of the prompt alone.
    ///
    /// # Errors
    /// The device refused.
    pub fn at(&mut self, step: usize, guided: bool) -> Result<&(Prompt, Added), PipelineError> {
        let key = self.told(step, guided);
        if !self.ready.contains_key(&key) {
            let mut texts = vec![&self.prompts.prompt.texts[key.0]];
            if let (Some(side), Some(text)) = (&self.prompts.negative, key.1) {
                texts.insert(0, &side.texts[text]);
            }
            let made = self.make(&texts)?;
            self.ready.insert(key, made);
        }
        Ok(&self.ready[&key])
    }

    fn make(&self, texts: &[&Encoded]) -> candle_core::Result<(Prompt, Added)> {
        let states: Vec<&Tensor> = texts.iter().map(|text| &text.states).collect();
        let prompt = self.unet.prepare(&Tensor::cat(&states, 0)?)?;
        let text_time = match self.sizes {
            None => None,
            Some(sizes) => {
                let pooled: Vec<Tensor> = texts.iter().filter_map(|text| text.pooled.clone()).collect();
                Some((Tensor::cat(&pooled, 0)?, vec![sizes; texts.len()]))
            }
        };
        let guidance = self.guidance.clone();
        Ok((prompt, Added { text_time, guidance }))
    }
}

/// The embedding of a guidance scale in models that are told it instead of being guided (LCM): `(1, width)`.
///
/// # Errors
/// The device refused.
pub fn guidance_embedding(scale: f32, width: usize, unet_device: &candle_core::Device) -> candle_core::Result<Tensor> {
    let half = width / 2;
    let step = 10_000f32.ln() / (half as f32 - 1.0);
    let angles: Vec<f32> = (0..half)
        .map(|i| (scale - 1.0) * 1000.0 * (-(i as f32) * step).exp())
        .collect();
    let mut values: Vec<f32> = angles.iter().map(|angle| angle.sin()).collect();
    values.extend(angles.iter().map(|angle| angle.cos()));
    let embedding = Tensor::from_vec(values, (1, 2 * half), unet_device)?;
    if width % 2 == 1 {
        return embedding.pad_with_zeros(D::Minus1, 0, 1);
    }
    Ok(embedding)
}
