//! The denoise loop of one picture.

use candle_core::{DType, Device};

use super::guidance::Guidance;
use super::latents::{LatentShape, to_planes};
use super::prompts::Prepared;
use crate::models::unet::UNet;
use crate::pipeline::PipelineError;
use crate::schedulers::{NoiseSource, Scheduler};

/// What stays the same over the steps of one picture.
pub struct Denoise<'a, 'p> {
    /// The denoiser.
    pub unet: &'a UNet,
    /// Where it computes.
    pub device: &'a Device,
    /// The prompts.
    pub prompts: &'a mut Prepared<'p>,
    /// Guidance.
    pub guidance: Guidance,
    /// Shape of the latents.
    pub shape: LatentShape,
    /// Channels beside the latents in the UNet's input, `(C', H, W)`: mask and masked picture of an inpainting model.
    pub beside: &'a [f32],
    /// What inpainting with a plain model puts back outside the mask after each step.
    pub keep: Option<Keep<'a>>,
}

/// The part of a picture that inpainting leaves alone.
pub struct Keep<'a> {
    /// Latents of the picture.
    pub original: &'a [f32],
    /// The start noise.
    pub noise: &'a [f32],
    /// 1 where it is painted, 0 where it is kept; one plane.
    pub mask: &'a [f32],
}

impl Keep<'_> {
    /// Puts the kept part, with the noise of the level before `call` (none after the last), into `latents`.
    fn put_back(&self, scheduler: &dyn Scheduler, call: usize, latents: &mut [f32]) {
        let noised = if call < scheduler.timesteps().len() {
            &scheduler.add_noise(self.original, self.noise, call)
        } else {
            self.original
        };
        for (i, (value, kept)) in latents.iter_mut().zip(noised).enumerate() {
            let painted = self.mask[i % self.mask.len()];
            *value = (1.0 - painted) * kept + painted * *value;
        }
    }
}

/// Told of the steps as they are done.
pub trait StepWatch {
    /// Before each model call.
    ///
    /// # Errors
    /// [`PipelineError::Cancelled`] ends the loop.
    fn before_call(&mut self) -> Result<(), PipelineError>;

    /// `done` steps of this picture are done; `denoised` is what the latents look like without their noise.
    fn after_step(&mut self, done: usize, denoised: &[f32]);
}

impl Denoise<'_, '_> {
    /// Takes `latents` from the scheduler's first noise level to none.
    ///
    /// # Errors
    /// Cancelled, the device refused, or the model's output is not finite.
    pub fn run(
        &mut self,
        scheduler: &mut dyn Scheduler,
        latents: &mut [f32],
        noise: &mut dyn NoiseSource,
        watch: &mut dyn StepWatch,
    ) -> Result<(), PipelineError> {
        let mut done = 0;
        for call in 0..scheduler.timesteps().len() {
            watch.before_call()?;
            let guided = self.guidance.at(done, scheduler.steps());
            let output = self.predict(scheduler, call, done, guided, latents)?;
            scheduler.step(call, &output, latents, noise);
            if let Some(keep) = &self.keep {
                keep.put_back(scheduler, call + 1, latents);
            }
            let after = scheduler.steps_done(call);
            if after > done {
                done = after;
                watch.after_step(done, scheduler.denoised());
            }
        }
        Ok(())
    }

    fn predict(
        &mut self,
        scheduler: &dyn Scheduler,
        call: usize,
        step: usize,
        guided: bool,
        latents: &[f32],
    ) -> Result<Vec<f32>, PipelineError> {
        let mut input = latents.to_vec();
        scheduler.scale_model_input(call, &mut input);
        input.extend_from_slice(self.beside);
        let input = self.shape.to_device(&input, self.device, DType::F32)?;
        let input = if guided { input.repeat((2, 1, 1, 1))? } else { input };
        let (prompt, added) = self.prompts.at(step, guided)?;
        let output = self.unet.forward(&input, scheduler.timesteps()[call], prompt, added)?;
        let mut wanted = to_planes(&output.narrow(0, usize::from(guided), 1)?)?;
        if guided {
            let negative = to_planes(&output.narrow(0, 0, 1)?)?;
            self.guidance.apply(&negative, &mut wanted);
        }
        if wanted.iter().all(|value| value.is_finite()) {
            Ok(wanted)
        } else {
            Err(PipelineError::NotFinite { part: "denoiser" })
        }
    }
}
