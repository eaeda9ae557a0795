//! DPM-Solver++ SDE (k-diffusion's `sample_dpmpp_sde`): second order, ancestral at both stages. Two model calls a step, one
//! at the last.
//!
//! diffusers' `DPMSolverSDEScheduler` takes its noise from a `torchsde` Brownian tree with a seed of its own, random unless
//! `noise_sampler_seed` is set, so that a seed does not name a picture there. Here the same process is sampled
//! from the image's generator: one draw for the path to the middle of the step, one from there to its end; the noise of
//! the whole step is both, weighted as the path adds up. Same distribution, and the same seed is the same picture.

use super::{
    NoiseSource, Scheduler,
    euler::{Exploding, exploding, scale_down},
};

pub(super) struct DpmSde {
    /// Its sigmas are those of the steps, each but the first twice, as diffusers keeps them.
    pub run: Exploding,
    /// Latents before the first stage, and the noise drawn there.
    pub first: Option<(Vec<f32>, Vec<f32>)>,
}

impl DpmSde {
    /// Start, middle and end of the step that `call` belongs to, and whether it is its second call.
    fn levels(&self, call: usize) -> (f32, f32, f32, bool) {
        let second = !(self.run.plan.begin + call).is_multiple_of(2);
        let first_call = if second { call - 1 } else { call };
        let (from, to) = (self.run.sigma(first_call), self.run.sigma(first_call + 1));
        (from, middle(from, to), to, second)
    }
}

/// Geometric mean, computed in the logarithm.
fn middle(from: f32, to: f32) -> f32 {
    let (t, t_next) = (-from.ln(), -to.ln());
    (-(t + (t_next - t) * 0.5)).exp()
}

/// Timesteps of the model calls: those of the steps and of the middles between them.
pub(super) fn middles(sigmas: &[f64]) -> Vec<f64> {
    sigmas
        .windows(2)
        .map(|pair| {
            let (t, t_next) = (-pair[0].ln(), -pair[1].ln());
            (-(t + (t_next - t) * 0.5)).exp()
        })
        .collect()
}

/// One ancestral exponential-integrator stage between two levels.
fn stage(latents: &mut [f32], start: &[f32], denoised: &[f32], noise: &[f32], from: f32, to: f32) {
    // diffusers passes every level through its negative logarithm and back; the rounding is part of the numbers.
    let t = -from.ln();
    let (from, to) = ((-t).exp(), (-(-to.ln())).exp());
    let (from2, to2) = (from * from, to * to);
    let up = (to2 * (from2 - to2) / from2).sqrt().min(to);
    let down = (to2 - up * up).sqrt();
    let ancestral_t = -down.ln();
    let keep = (-ancestral_t).exp() / (-t).exp();
    let pull = (t - ancestral_t).exp_m1();
    for (i, x) in latents.iter_mut().enumerate() {
        *x = keep * start[i] - pull * denoised[i] + noise[i] * up;
    }
}

impl Scheduler for DpmSde {
    exploding!();

    fn scale_model_input(&self, call: usize, latents: &mut [f32]) {
        let (from, middle, _, second) = self.levels(call);
        scale_down(latents, if second { middle } else { from });
    }

    fn step(&mut self, call: usize, model_output: &[f32], latents: &mut [f32], noise: &mut dyn NoiseSource) {
        let (from, middle, to, second) = self.levels(call);
        self.run
            .denoise(if second { middle } else { from }, model_output, latents);
        if to == 0.0 {
            for (x, x0) in latents.iter_mut().zip(&self.run.denoised) {
                *x += (*x - x0) / from * (to - from);
            }
            return;
        }
        let mut drawn = vec![0.0; latents.len()];
        noise.fill(&mut drawn);
        if let Some((start, first)) = self.first.take() {
            let (a, b) = (f64::from(from - middle), f64::from(middle - to));
            let (wa, wb) = ((a / (a + b)).sqrt() as f32, (b / (a + b)).sqrt() as f32);
            drawn.iter_mut().zip(&first).for_each(|(n, f)| *n = wa * f + wb * *n);
            stage(latents, &start, &self.run.denoised, &drawn, from, to);
        } else {
            let start = latents.to_vec();
            stage(latents, &start, &self.run.denoised, &drawn, from, middle);
            self.first = Some((start, drawn));
        }
    }
}
