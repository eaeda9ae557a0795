//! Linear multistep (k-diffusion's LMS), up to order 4, for any distances between the noise levels.
//!
//! The order grows with the steps done. diffusers takes it from the step's index in the full schedule instead, so that
//! an img2img run there starts with a fourth-order formula and one derivative, and misses its noise level; here it
//! starts at order 1.

use super::{
    NoiseSource, Scheduler,
    euler::{Exploding, exploding, scale_down},
};

const ORDER: usize = 4;

pub(super) struct Lms {
    pub run: Exploding,
    /// Latest first.
    pub derivatives: Vec<Vec<f32>>,
}

impl Scheduler for Lms {
    exploding!();

    fn scale_model_input(&self, call: usize, latents: &mut [f32]) {
        scale_down(latents, self.run.sigma(call));
    }

    fn step(&mut self, call: usize, model_output: &[f32], latents: &mut [f32], _noise: &mut dyn NoiseSource) {
        let sigma = self.run.sigma(call);
        self.run.denoise(sigma, model_output, latents);
        let derivative = latents
            .iter()
            .zip(&self.run.denoised)
            .map(|(x, x0)| (x - x0) / sigma)
            .collect();
        self.derivatives.insert(0, derivative);
        self.derivatives.truncate(ORDER);
        let past: Vec<f64> = (0..self.derivatives.len())
            .map(|k| f64::from(self.run.sigma(call - k)))
            .collect();
        let next = f64::from(self.run.sigma(call + 1));
        let weights: Vec<f32> = (0..past.len()).map(|k| weight(&past, k, next) as f32).collect();
        for (i, x) in latents.iter_mut().enumerate() {
            let sum: f32 = weights.iter().zip(&self.derivatives).map(|(w, d)| w * d[i]).sum();
            *x += sum;
        }
    }
}

/// Integral from `past[0]` to `next` of the Lagrange polynomial that is 1 at `past[k]`. Two Gauss-Legendre nodes are
/// exact for the degree (at most 3).
fn weight(past: &[f64], k: usize, next: f64) -> f64 {
    let (middle, half) = ((next + past[0]) / 2.0, (next - past[0]) / 2.0);
    let node = half / f64::sqrt(3.0);
    let value = |tau: f64| {
        (0..past.len())
            .filter(|j| *j != k)
            .map(|j| (tau - past[j]) / (past[k] - past[j]))
            .product::<f64>()
    };
    half * (value(middle - node) + value(middle + node))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_adams_bashforth_on_even_levels() {
        let past = [4.0, 5.0, 6.0, 7.0];
        for (k, expected) in [55.0, -59.0, 37.0, -9.0].into_iter().enumerate() {
            assert!((weight(&past, k, 3.0) + expected / 24.0).abs() < 1e-12);
        }
    }
}
