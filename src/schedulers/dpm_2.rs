//! DPM2 and DPM2 ancestral (k-diffusion's `sample_dpm_2`): the derivative is taken at the geometric mean of two noise
//! levels. Two model calls a step, one at the last.

use super::{
    NoiseSource, Scheduler,
    ddim::add_drawn,
    euler::{Exploding, ancestral, exploding, scale_down},
    noise_levels::Table,
};

pub(super) struct Dpm2 {
    /// Its sigmas are those at which the model is called.
    pub run: Exploding,
    pub ancestral: bool,
    pub start: Option<Vec<f32>>,
}

/// Sigmas and timesteps of the model calls from those of the steps (`sigmas` ends in 0).
pub(super) fn calls(sigmas: &[f32], timesteps: &[f64], is_ancestral: bool, table: &Table) -> (Vec<f32>, Vec<f64>) {
    let (mut levels, mut times) = (vec![sigmas[0]], vec![timesteps[0]]);
    for (pair, timestep) in sigmas.windows(2).zip(&timesteps[1..]) {
        let target = if is_ancestral {
            ancestral(pair[0], pair[1]).0
        } else {
            pair[1]
        };
        let middle = if is_ancestral {
            lerp(pair[0].ln(), target.ln())
        } else {
            lerp(target.ln(), pair[0].ln())
        };
        let middle = middle.exp();
        levels.extend([middle, pair[1]]);
        times.extend([table.timestep(f64::from(middle)), *timestep]);
    }
    levels.push(0.0);
    (levels, times)
}

/// `torch.lerp(a, b, 0.5)`.
fn lerp(a: f32, b: f32) -> f32 {
    b - (b - a) * 0.5
}

impl Scheduler for Dpm2 {
    exploding!(but add_noise);

    /// At the middle of a step too, diffusers adds the noise of the step's end.
    fn add_noise(&self, original: &[f32], noise: &[f32], call: usize) -> Vec<f32> {
        let middle = !(self.run.plan.begin + call).is_multiple_of(2);
        self.run.add_noise(original, noise, call + usize::from(middle))
    }

    fn scale_model_input(&self, call: usize, latents: &mut [f32]) {
        scale_down(latents, self.run.sigma(call));
    }

    fn step(&mut self, call: usize, model_output: &[f32], latents: &mut [f32], noise: &mut dyn NoiseSource) {
        let sigma = self.run.sigma(call);
        self.run.denoise(sigma, model_output, latents);
        let next = self.run.sigma(call + 1);
        let Some(start) = self.start.take() else {
            let dt = next - sigma;
            self.start = Some(latents.to_vec());
            for (x, x0) in latents.iter_mut().zip(&self.run.denoised) {
                *x += (*x - x0) / sigma * dt;
            }
            return;
        };
        let from = self.run.sigma(call - 1);
        let (down, up) = if self.ancestral {
            ancestral(from, next)
        } else {
            (next, 0.0)
        };
        let dt = down - from;
        for ((x, x0), start) in latents.iter_mut().zip(&self.run.denoised).zip(&start) {
            *x = start + (*x - x0) / sigma * dt;
        }
        if self.ancestral {
            add_drawn(latents, up, noise);
        }
    }
}
