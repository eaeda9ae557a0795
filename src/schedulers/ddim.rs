//! DDIM (arXiv 2010.02502), with `eta` between the deterministic sampler (0) and DDPM (1).
//!
//! diffusers finds the previous timestep by subtracting `num_train_timesteps // steps`; so do we for the schedules it
//! has. For Karras and exponential, which it lacks, the previous timestep is the next one in the list.

use super::{NoiseSource, Prediction, Scheduler, plan::Plan};

pub(super) struct Ddim {
    pub plan: Plan,
    /// Timesteps of this run, whole, each with the one it leads to (`None`: past the last).
    pub moves: Vec<(usize, Option<usize>)>,
    pub cumprod: Vec<f32>,
    pub final_alpha: f32,
    pub prediction: Prediction,
    pub clip: Option<f32>,
    pub eta: f32,
    pub denoised: Vec<f32>,
}

impl Scheduler for Ddim {
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
        let alpha_prev = previous.map_or(self.final_alpha, |p| self.cumprod[p]);
        let (beta, beta_prev) = (1.0 - alpha, 1.0 - alpha_prev);
        let variance = (beta_prev / beta) * (1.0 - alpha / alpha_prev);
        let deviation = self.eta * variance.sqrt();
        let direction = (1.0 - alpha_prev - deviation * deviation).sqrt();
        self.prediction
            .denoise_vp(alpha.sqrt(), beta.sqrt(), model_output, latents, &mut self.denoised);
        if let Some(range) = self.clip {
            self.denoised.iter_mut().for_each(|x| *x = x.clamp(-range, range));
        }
        for ((x, x0), output) in latents.iter_mut().zip(&self.denoised).zip(model_output) {
            let epsilon = self.prediction.epsilon_vp(alpha.sqrt(), beta.sqrt(), *output, *x);
            *x = alpha_prev.sqrt() * x0 + direction * epsilon;
        }
        if self.eta > 0.0 {
            add_drawn(latents, deviation, noise);
        }
    }

    fn add_noise(&self, original: &[f32], noise: &[f32], call: usize) -> Vec<f32> {
        add_noise_vp(&self.cumprod, self.moves.get(call).map(|m| m.0), original, noise)
    }

    fn denoised(&self) -> &[f32] {
        &self.denoised
    }
}

/// Adds one draw of standard normal noise, scaled.
pub(super) fn add_drawn(latents: &mut [f32], scale: f32, noise: &mut dyn NoiseSource) {
    let mut drawn = vec![0.0; latents.len()];
    noise.fill(&mut drawn);
    for (x, n) in latents.iter_mut().zip(&drawn) {
        *x += scale * n;
    }
}

/// `original` at the noise level of a whole timestep; unchanged where there is none.
pub(super) fn add_noise_vp(cumprod: &[f32], timestep: Option<usize>, original: &[f32], noise: &[f32]) -> Vec<f32> {
    let Some(alpha) = timestep.map(|t| cumprod[t]) else {
        return original.to_vec();
    };
    let (signal, sigma) = (alpha.sqrt(), (1.0 - alpha).sqrt());
    original
        .iter()
        .zip(noise)
        .map(|(x, n)| signal * x + sigma * n)
        .collect()
}
