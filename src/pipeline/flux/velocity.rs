//! The transformer's prediction for the latents of one picture, guided where asked for.

use candle_core::{DType, Device, Result, Tensor};

use super::latents::Grid;
use super::text::{Conditioning, Script};
use crate::models::Plan;
use crate::models::flux::{BlockCache, FluxInput, FluxTransformer, positions, rope_table};
use crate::ops::RopeTable;
use crate::pipeline::PipelineError;
use crate::pipeline::denoise::{Call, Predict};
use crate::pipeline::guidance::Guidance;
use crate::pipeline::step_cache::Reuse;

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
    pub reuse: Reuse,
}

/// Both prompts over a run.
pub struct Scripts {
    pub(super) prompt: Script,
    pub(super) negative: Option<Script>,
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
        let guided = self.true_cfg.at(call.done, call.scheduler.steps());
        let prompt = place(&scripts.prompt, call.done);
        let negative = scripts.negative.as_ref().filter(|_| guided);
        let negative = negative.map(|script| (script, place(script, call.done)));
        if let Some([of_prompt, _]) = &mut self.caches {
            of_prompt.plan(self.reuse.plan(call, (prompt, negative.map(|(_, place)| place))));
        }
        let mut wanted = self.evaluate(&packed, timestep, scripts.prompt.get(prompt), 0)?;
        if let Some((script, place)) = negative {
            // Both halves of guidance are computed alike: a difference of a new and an old one would be amplified.
            if let Some([of_prompt, of_negative]) = &mut self.caches {
                of_negative.plan(if of_prompt.reused() { Plan::Follow } else { Plan::Full });
            }
            let unwanted = self.evaluate(&packed, timestep, script.get(place), 1)?;
            self.true_cfg.apply(&unwanted, &mut wanted);
        }
        let reused = self.caches.as_ref().is_some_and(|[of_prompt, _]| of_prompt.reused());
        self.reuse.count(reused);
        if wanted.iter().all(|value| value.is_finite()) {
            Ok(wanted)
        } else {
            Err(PipelineError::NotFinite { part: "denoiser" })
        }
    }

    fn reused(&self) -> u32 {
        self.reuse.counted()
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
        told: Option<&(usize, Conditioning)>,
        side: usize,
    ) -> Result<Vec<f32>> {
        let Some((_, Conditioning { text, pooled, .. })) = told else {
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

/// The place in a script of what it says at a step.
fn place(script: &Script, step: usize) -> usize {
    script.iter().rposition(|(from, _)| *from <= step).unwrap_or(0)
}
