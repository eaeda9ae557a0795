//! Euler and Euler ancestral (Karras et al. 2022, and k-diffusion), on variance-exploding latents; and what the samplers
//! of that kind share.

use super::{NoiseSource, Prediction, Scheduler, ddim::add_drawn, plan::Plan};

/// A run on variance-exploding latents.
pub(super) struct Exploding {
    pub plan: Plan,
    /// Noise level of each model call of the full schedule, and the one after the last.
    pub sigmas: Vec<f32>,
    pub init_noise_sigma: f32,
    pub prediction: Prediction,
    pub denoised: Vec<f32>,
}

impl Exploding {
    /// Noise level at a call of this run.
    pub fn sigma(&self, call: usize) -> f32 {
        let last = self.sigmas.len() - 1;
        self.sigmas[(self.plan.begin + call).min(last)]
    }

    pub fn add_noise(&self, original: &[f32], noise: &[f32], call: usize) -> Vec<f32> {
        let sigma = self.sigma(call);
        original.iter().zip(noise).map(|(x, n)| x + n * sigma).collect()
    }

    /// Sets the clean latents that the model saw in `latents` at noise level `sigma`.
    pub fn denoise(&mut self, sigma: f32, output: &[f32], latents: &[f32]) {
        self.prediction.denoise_ve(sigma, output, latents, &mut self.denoised);
    }
}

/// Divides by `sqrt(sigma^2 + 1)`: from variance-exploding to variance-preserving.
pub(super) fn scale_down(latents: &mut [f32], sigma: f32) {
    let scale = (sigma * sigma + 1.0).sqrt();
    latents.iter_mut().for_each(|x| *x /= scale);
}

/// How far down (deterministic) and up (noise) an ancestral step from one level to the next goes.
pub(super) fn ancestral(from: f32, to: f32) -> (f32, f32) {
    let (from2, to2) = (from * from, to * to);
    let up = (to2 * (from2 - to2) / from2).sqrt();
    ((to2 - up * up).sqrt(), up)
}

/// Implements the methods that every sampler on [`Exploding`] has in common.
macro_rules! exploding {
    () => {
        exploding!(but add_noise);

        fn add_noise(&self, original: &[f32], noise: &[f32], call: usize) -> Vec<f32> {
            self.run.add_noise(original, noise, call)
        }
    };
    (but add_noise) => {
        fn timesteps(&self) -> &[f32] {
            &self.run.plan.timesteps
        }

        fn steps(&self) -> usize {
            self.run.plan.steps
        }

        fn steps_done(&self, call: usize) -> usize {
            self.run.plan.steps_done(call)
        }

        fn init_noise_sigma(&self) -> f32 {
            self.run.init_noise_sigma
        }

        fn denoised(&self) -> &[f32] {
            &self.run.denoised
        }
    };
}
pub(super) use exploding;

pub(super) struct Euler {
    pub run: Exploding,
    pub ancestral: bool,
}

impl Scheduler for Euler {
    exploding!();

    fn scale_model_input(&self, call: usize, latents: &mut [f32]) {
        scale_down(latents, self.run.sigma(call));
    }

    fn step(&mut self, call: usize, model_output: &[f32], latents: &mut [f32], noise: &mut dyn NoiseSource) {
        let (sigma, next) = (self.run.sigma(call), self.run.sigma(call + 1));
        self.run.denoise(sigma, model_output, latents);
        let (down, up) = if self.ancestral {
            ancestral(sigma, next)
        } else {
            (next, 0.0)
        };
        let dt = down - sigma;
        for (x, x0) in latents.iter_mut().zip(&self.run.denoised) {
            *x += (*x - x0) / sigma * dt;
        }
        if self.ancestral {
            add_drawn(latents, up, noise);
        }
    }
}
