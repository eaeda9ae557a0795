//! DDPM (arXiv 2006.11239): ancestral sampling with the posterior's own variance.

use super::{
    NoiseSource, Prediction, Scheduler,
    ddim::{add_drawn, add_noise_vp},
    plan::Plan,
};

pub(super) struct Ddpm {
    pub plan: Plan,
    /// Timesteps of this run, whole, each with the one it leads to (`None`: past the last).
    pub moves: Vec<(usize, Option<usize>)>,
    pub cumprod: Vec<f32>,
    pub prediction: Prediction,
    pub clip: Option<f32>,
    /// Variance of the added noise is beta itself instead of the posterior's.
    pub fixed_large: bool,
    pub denoised: Vec<f32>,
}

impl Scheduler for Ddpm {
    fn timesteps(&self) -> &[f32] {
        &self.plan.timesteps
    }

    fn steps(&self) -> usize {
        self.plan.steps
    }

    fn steps_done(&self, call: usize) -> usize {
        self.plan.steps_done(call)
    }

    fn init_noise_sigma(&self) -> f32 {
        1.0
    }

    fn scale_model_input(&self, _call: usize, _latents: &mut [f32]) {}

    fn step(&mut self, call: usize, model_output: &[f32], latents: &mut [f32], noise: &mut dyn NoiseSource) {
        let (t, previous) = self.moves[call];
        let alpha = self.cumprod[t];
        let alpha_prev = previous.map_or(1.0, |p| self.cumprod[p]);
        let (beta, beta_prev) = (1.0 - alpha, 1.0 - alpha_prev);
        let current_alpha = alpha / alpha_prev;
        let current_beta = 1.0 - current_alpha;
        self.prediction
            .denoise_vp(alpha.sqrt(), beta.sqrt(), model_output, latents, &mut self.denoised);
        if let Some(range) = self.clip {
            self.denoised.iter_mut().for_each(|x| *x = x.clamp(-range, range));
        }
        let original = alpha_prev.sqrt() * current_beta / beta;
        let current = current_alpha.sqrt() * beta_prev / beta;
        for (x, x0) in latents.iter_mut().zip(&self.denoised) {
            *x = original * x0 + current * *x;
        }
        if t > 0 {
            let variance = if self.fixed_large {
                current_beta
            } else {
                (beta_prev / beta * current_beta).max(1e-20)
            };
            add_drawn(latents, variance.sqrt(), noise);
        }
    }

    fn add_noise(&self, original: &[f32], noise: &[f32], call: usize) -> Vec<f32> {
        add_noise_vp(&self.cumprod, self.moves.get(call).map(|m| m.0), original, noise)
    }

    fn denoised(&self) -> &[f32] {
        &self.denoised
    }
}
