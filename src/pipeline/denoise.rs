//! The denoise loop of one picture.

use super::PipelineError;
use crate::schedulers::{NoiseSource, Scheduler};

/// One evaluation of the denoiser.
#[derive(Clone, Copy)]
pub struct Call<'a> {
    /// The run's scheduler.
    pub scheduler: &'a dyn Scheduler,
    /// Number of the evaluation in the run, from 0.
    pub number: usize,
    /// Steps of the run that are done.
    pub done: usize,
}

/// What a family's denoiser makes of the latents of one picture.
pub trait Predict {
    /// The prediction for `latents` `(C, H, W)` with the noise of `call`, guided where the run is, in the same form.
    ///
    /// # Errors
    /// The device refused, or numbers are not finite.
    fn predict(&mut self, call: Call<'_>, latents: &[f32]) -> Result<Vec<f32>, PipelineError>;

    /// Predictions so far for which deep features of earlier ones were used again.
    fn reused(&self) -> u32;
}

/// What stays the same over the steps of one picture.
pub struct Denoise<'a> {
    /// The denoiser.
    pub denoiser: &'a mut dyn Predict,
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
    ///
    /// # Errors
    /// A preview could not be made.
    fn after_step(&mut self, done: usize, denoised: &[f32]) -> Result<(), PipelineError>;
}

impl Denoise<'_> {
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
            let now = Call {
                scheduler: &*scheduler,
                number: call,
                done,
            };
            let output = self.denoiser.predict(now, latents)?;
            scheduler.step(call, &output, latents, noise);
            if let Some(keep) = &self.keep {
                keep.put_back(scheduler, call + 1, latents);
            }
            let after = scheduler.steps_done(call);
            if after > done {
                done = after;
                watch.after_step(done, scheduler.denoised())?;
            }
        }
        Ok(())
    }
}
