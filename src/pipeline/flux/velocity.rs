//! The transformer's prediction for the latents of one picture, guided where asked for.

use candle_core::{DType, Device, Result, Tensor};

use super::latents::Grid;
use super::text::{Conditioning, Script};
use crate::models::flux::{BlockCache, FluxInput, FluxTransformer, positions, rope_table};
use crate::ops::RopeTable;
use crate::pipeline::PipelineError;
use crate::pipeline::denoise::{Call, Predict};
use crate::pipeline::guidance::Guidance;

/// What stays the same over the steps of one picture.
pub(super) struct Velocity<'a> {
    pub transformer: &'a FluxTransformer,
    pub grid: Grid,
    /// Channels of the latents.
    pub channels: usize,
    /// The prompt, and the negative prompt where any step is guided.
    pub scripts: &'a Scripts,
    /// True classifier-free guidance.
    pub true_cfg: Guidance,
    /// The guidance embedding's scale.
    pub guidance: f32,
    /// Beside the latents in FLUX.1-Fill's input: masked picture and mask, packed `(1, N, C)`.
    pub beside: Option<Tensor>,
    /// Angles of text and image tokens.
    pub positions: RopeTable,
    /// Memory of the blocks, for the prompt and for the negative one.
    pub caches: Option<[BlockCache; 2]>,
}

/// Both prompts over a run.
pub(super) struct Scripts {
    pub prompt: Script,
    pub negative: Option<Script>,
}

impl Scripts {
    /// Angles for the prompts' tokens and a picture's patches.
    pub(super) fn positions(&self, grid: Grid, axes: [usize; 3], device: &Device) -> Result<RopeTable> {
        let tokens = self.prompt.first().map_or(Ok(0), |(_, first)| first.text.dim(1))?;
        rope_table(&positions(tokens, grid.rows, grid.columns), axes, device)
    }
}

impl Predict for Velocity<'_> {
    fn predict(&mut self, call: Call<'_>, planes: &[f32]) -> std::result::Result<Vec<f32>, PipelineError> {
        let packed = self.input(planes)?;
        let (scripts, timestep) = (self.scripts, call.scheduler.timesteps()[call.number]);
        let mut wanted = self.evaluate(&packed, timestep, at(&scripts.prompt, call.done), 0)?;
        let guided = self.true_cfg.at(call.done, call.scheduler.steps());
        if let Some(negative) = scripts.negative.as_ref().filter(|_| guided) {
            let unwanted = self.evaluate(&packed, timestep, at(negative, call.done), 1)?;
            self.true_cfg.apply(&unwanted, &mut wanted);
        }
        if wanted.iter().all(|value| value.is_finite()) {
            Ok(wanted)
        } else {
            Err(PipelineError::NotFinite { part: "denoiser" })
        }
    }
}

impl Velocity<'_> {
    fn input(&self, planes: &[f32]) -> Result<Tensor> {
        let packed = self.grid.pack(planes, self.channels);
        let shape = (1, self.grid.tokens(), 4 * self.channels);
        let packed = Tensor::from_vec(packed, shape, &Device::Cpu)?.to_device(self.transformer.device())?;
        match &self.beside {
            Some(beside) => Tensor::cat(&[&packed, beside], 2),
            None => Ok(packed),
        }
    }

    fn evaluate(
        &mut self,
        packed: &Tensor,
        timestep: f32,
        conditioning: Option<&Conditioning>,
        side: usize,
    ) -> Result<Vec<f32>> {
        let Some(Conditioning { text, pooled, .. }) = conditioning else {
            candle_core::bail!("a prompt has no text");
        };
        let input = FluxInput {
            image: packed,
            text,
            pooled,
            positions: &self.positions,
            timestep,
            guidance: self.guidance,
        };
        let cache = self.caches.as_mut().map(|caches| &mut caches[side]);
        let tokens = self.transformer.forward(&input, cache)?;
        let tokens: Vec<f32> = tokens
            .to_device(&Device::Cpu)?
            .to_dtype(DType::F32)?
            .flatten_all()?
            .to_vec1()?;
        Ok(self.grid.unpack(&tokens, self.channels))
    }
}

/// What a script says at a step.
fn at(script: &Script, step: usize) -> Option<&Conditioning> {
    let current = script
        .iter()
        .rev()
        .find(|(from, _)| *from <= step)
        .or_else(|| script.first());
    current.map(|(_, conditioning)| conditioning)
}
