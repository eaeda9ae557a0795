//! Latent consistency models (arXiv 2310.04378): each call predicts the clean latents, which are then noised again to the
//! next level. The default schedule takes every k-th of the timesteps used in distillation.

use super::{NoiseSource, Prediction, Scheduler, ddim::add_noise_vp, plan::Plan};

pub(super) struct Lcm {
    pub plan: Plan,
    /// Timesteps of this run, whole.
    pub timesteps: Vec<usize>,
    pub cumprod: Vec<f32>,
    pub prediction: Prediction,
    pub clip: Option<f32>,
    /// `timestep_scaling` of the configuration.
    pub scaling: f64,
    pub denoised: Vec<f32>,
}

/// Every k-th of the distillation's timesteps, descending. `original`: the distillation's step count.
pub(super) fn distillation_timesteps(n: usize, original: usize, train: usize) -> Vec<usize> {
    let k = train / original;
    (0..n)
        .map(|i| (i as f64 * (original as f64 / n as f64)).floor() as usize)
        .map(|index| (original - index.min(original - 1)) * k - 1)
        .collect()
}

impl Scheduler for Lcm {
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
        let t = self.timesteps[call];
        let alpha = self.cumprod[t];
        self.prediction.denoise_vp(
            alpha.sqrt(),
            (1.0 - alpha).sqrt(),
            model_output,
            latents,
            &mut self.denoised,
        );
        if let Some(range) = self.clip {
            self.denoised.iter_mut().for_each(|x| *x = x.clamp(-range, range));
        }
        let scaled = t as f64 * self.scaling;
        let c_skip = (0.25 / (scaled * scaled + 0.25)) as f32;
        let c_out = (scaled / (scaled * scaled + 0.25).sqrt()) as f32;
        for (x0, x) in self.denoised.iter_mut().zip(latents.iter()) {
            *x0 = c_out * *x0 + c_skip * x;
        }
        let Some(next) = self.timesteps.get(call + 1) else {
            latents.copy_from_slice(&self.denoised);
            return;
        };
        let alpha_next = self.cumprod[*next];
        let (signal, sigma) = (alpha_next.sqrt(), (1.0 - alpha_next).sqrt());
        noise.fill(latents);
        for (x, x0) in latents.iter_mut().zip(&self.denoised) {
            *x = signal * x0 + sigma * *x;
        }
    }

    fn add_noise(&self, original: &[f32], noise: &[f32], call: usize) -> Vec<f32> {
        add_noise_vp(&self.cumprod, self.timesteps.get(call).copied(), original, noise)
    }

    fn denoised(&self) -> &[f32] {
        &self.denoised
    }
}
