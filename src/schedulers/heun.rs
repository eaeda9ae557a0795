//! Heun's method (Karras et al. 2022, algorithm 1): a trial Euler step, then the mean of both derivatives. Two model calls a
//! step, one at the last.

use super::{
    NoiseSource, Scheduler,
    euler::{Exploding, exploding, scale_down},
};

pub(super) struct Heun {
    pub run: Exploding,
    pub clip: Option<f32>,
    /// Latents and derivative before the trial step, and its length.
    pub trial: Option<Trial>,
}

pub(super) struct Trial {
    pub latents: Vec<f32>,
    pub derivative: Vec<f32>,
    pub dt: f32,
}

impl Scheduler for Heun {
    exploding!();

    fn scale_model_input(&self, call: usize, latents: &mut [f32]) {
        scale_down(latents, self.run.sigma(call));
    }

    fn step(&mut self, call: usize, model_output: &[f32], latents: &mut [f32], _noise: &mut dyn NoiseSource) {
        let sigma = self.run.sigma(call);
        self.run.denoise(sigma, model_output, latents);
        if let Some(range) = self.clip {
            self.run.denoised.iter_mut().for_each(|x| *x = x.clamp(-range, range));
        }
        let derivative: Vec<f32> = latents
            .iter()
            .zip(&self.run.denoised)
            .map(|(x, x0)| (x - x0) / sigma)
            .collect();
        if let Some(trial) = self.trial.take() {
            let both = trial.derivative.iter().zip(&derivative);
            for ((x, start), (a, b)) in latents.iter_mut().zip(&trial.latents).zip(both) {
                *x = start + (a + b) / 2.0 * trial.dt;
            }
            return;
        }
        let dt = self.run.sigma(call + 1) - sigma;
        let start = latents.to_vec();
        for (x, d) in latents.iter_mut().zip(&derivative) {
            *x += d * dt;
        }
        self.trial = Some(Trial {
            latents: start,
            derivative,
            dt,
        });
    }
}
