//! Euler and Heun for flow matching: the model's output is the velocity from picture to noise.

use super::{NoiseSource, Scheduler, heun::Trial, plan::Plan};

pub(super) struct Flow {
    pub plan: Plan,
    /// Share of noise at each call of the full schedule, and after the last.
    pub sigmas: Vec<f32>,
    /// Two calls a step.
    pub heun: bool,
    pub trial: Option<Trial>,
    pub denoised: Vec<f32>,
}

impl Flow {
    fn sigma(&self, call: usize) -> f32 {
        let last = self.sigmas.len() - 1;
        self.sigmas[(self.plan.begin + call).min(last)]
    }
}

impl Scheduler for Flow {
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

    fn step(&mut self, call: usize, model_output: &[f32], latents: &mut [f32], _noise: &mut dyn NoiseSource) {
        let (sigma, next) = (self.sigma(call), self.sigma(call + 1));
        self.denoised.clear();
        self.denoised
            .extend(latents.iter().zip(model_output).map(|(x, v)| x - v * sigma));
        if !self.heun {
            let dt = next - sigma;
            latents.iter_mut().zip(model_output).for_each(|(x, v)| *x += dt * v);
            return;
        }
        let derivative: Vec<f32> = latents
            .iter()
            .zip(&self.denoised)
            .map(|(x, x0)| (x - x0) / sigma)
            .collect();
        if let Some(trial) = self.trial.take() {
            let both = trial.derivative.iter().zip(&derivative);
            for ((x, start), (a, b)) in latents.iter_mut().zip(&trial.latents).zip(both) {
                *x = start + 0.5 * (a + b) * trial.dt;
            }
            return;
        }
        let dt = next - sigma;
        let start = latents.to_vec();
        latents.iter_mut().zip(&derivative).for_each(|(x, d)| *x += d * dt);
        self.trial = Some(Trial {
            latents: start,
            derivative,
            dt,
        });
    }

    fn add_noise(&self, original: &[f32], noise: &[f32], call: usize) -> Vec<f32> {
        let sigma = self.sigma(call);
        original
            .iter()
            .zip(noise)
            .map(|(x, n)| sigma * n + (1.0 - sigma) * x)
            .collect()
    }

    fn denoised(&self) -> &[f32] {
        &self.denoised
    }
}
