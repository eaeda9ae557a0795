//! DPM-Solver++ multistep (arXiv 2211.01095) of order 1 to 3, deterministic (`dpmpp_2m`) and stochastic (`dpmpp_2m_sde`), for
//! variance-preserving latents and for flow matching.

use super::{NoiseSource, Prediction, Scheduler, plan::Plan};

pub(super) struct DpmMultistep {
    pub levels: Levels,
    pub prediction: Prediction,
    pub stochastic: bool,
    pub order: usize,
    /// `solver_type: heun` instead of `midpoint`.
    pub heun: bool,
    pub lower_order_final: bool,
    /// First order at the last step, whatever the number of steps.
    pub euler_at_final: bool,
    /// Predictions of clean latents, latest first.
    pub outputs: Vec<Vec<f32>>,
}

/// A run on variance-preserving or flow latents: what DPM-Solver and UniPC share.
pub(super) struct Levels {
    pub plan: Plan,
    /// Noise relative to signal (flow: share of noise) at each call of the full schedule, and after the last.
    pub sigmas: Vec<f32>,
    pub flow: bool,
    pub init_noise_sigma: f32,
}

impl Levels {
    /// Signal and noise at an index of the full schedule.
    pub fn alpha_sigma(&self, index: usize) -> (f32, f32) {
        let sigma = self.sigmas[index.min(self.sigmas.len() - 1)];
        if self.flow {
            (1.0 - sigma, sigma)
        } else {
            let alpha = 1.0 / (sigma * sigma + 1.0).sqrt();
            (alpha, sigma * alpha)
        }
    }

    /// Half the logarithm of the signal-to-noise ratio.
    pub fn lambda(&self, index: usize) -> f32 {
        let (alpha, sigma) = self.alpha_sigma(index);
        alpha.ln() - sigma.ln()
    }

    /// Steps of the full schedule.
    pub fn len(&self) -> usize {
        self.sigmas.len() - 1
    }

    pub fn add_noise(&self, original: &[f32], noise: &[f32], call: usize) -> Vec<f32> {
        let (alpha, sigma) = self.alpha_sigma(self.plan.begin + call);
        original.iter().zip(noise).map(|(x, n)| alpha * x + sigma * n).collect()
    }
}

/// Implements the methods that the samplers on [`Levels`] have in common.
macro_rules! levels {
    () => {
        fn timesteps(&self) -> &[f32] {
            &self.levels.plan.timesteps
        }

        fn steps(&self) -> usize {
            self.levels.plan.steps
        }

        fn steps_done(&self, call: usize) -> usize {
            self.levels.plan.steps_done(call)
        }

        fn init_noise_sigma(&self) -> f32 {
            self.levels.init_noise_sigma
        }

        fn scale_model_input(&self, _call: usize, _latents: &mut [f32]) {}

        fn add_noise(&self, original: &[f32], noise: &[f32], call: usize) -> Vec<f32> {
            self.levels.add_noise(original, noise, call)
        }

        fn denoised(&self) -> &[f32] {
            self.outputs.first().map_or(&[], Vec::as_slice)
        }
    };
}
pub(super) use levels;

impl DpmMultistep {
    /// The order that this step can and should have.
    fn order_at(&self, index: usize) -> usize {
        let n = self.levels.len();
        let short = self.lower_order_final && n < 15;
        if index + 1 == n && (self.euler_at_final || short) {
            return 1;
        }
        let order = self.order.min(self.outputs.len());
        if index + 2 == n && short { order.min(2) } else { order }
    }

    /// Weights of the latents, of D0, D1, D2 and of the noise.
    fn weights(&self, index: usize, order: usize) -> [f32; 5] {
        let (alpha_t, sigma_t) = self.levels.alpha_sigma(index + 1);
        let (_, sigma_s) = self.levels.alpha_sigma(index);
        let h = self.levels.lambda(index + 1) - self.levels.lambda(index);
        if !self.stochastic {
            let phi = (-h).exp() - 1.0;
            let d1 = match (order, self.heun) {
                (1, _) => 0.0,
                (2, false) => -(0.5 * (alpha_t * phi)),
                _ => alpha_t * (phi / h + 1.0),
            };
            let d2 = if order == 3 {
                -(alpha_t * ((phi + h) / (h * h) - 0.5))
            } else {
                0.0
            };
            return [sigma_t / sigma_s, -(alpha_t * phi), d1, d2, 0.0];
        }
        let phi = 1.0 - (-2.0 * h).exp();
        let d1 = match (order, self.heun) {
            (1, _) => 0.0,
            (2, false) => 0.5 * (alpha_t * phi),
            _ => alpha_t * (phi / (-2.0 * h) + 1.0),
        };
        let d2 = if order == 3 {
            alpha_t * ((phi - 2.0 * h) / ((2.0 * h) * (2.0 * h)) - 0.5)
        } else {
            0.0
        };
        let noise = sigma_t * (1.0 - (-2.0 * h).exp()).sqrt();
        [sigma_t / sigma_s * (-h).exp(), alpha_t * phi, d1, d2, noise]
    }

    /// First and second divided differences of the predictions.
    fn differences(&self, index: usize, order: usize) -> (Vec<f32>, Vec<f32>) {
        if order == 1 {
            return (Vec::new(), Vec::new());
        }
        let lambda = |back: usize| self.levels.lambda(index - back);
        let h = self.levels.lambda(index + 1) - lambda(0);
        let r0 = (lambda(0) - lambda(1)) / h;
        let difference = |a: usize, b: usize, r: f32| -> Vec<f32> {
            let pairs = self.outputs[a].iter().zip(&self.outputs[b]);
            pairs.map(|(x, y)| 1.0 / r * (x - y)).collect()
        };
        let d10 = difference(0, 1, r0);
        if order == 2 {
            return (d10, Vec::new());
        }
        let r1 = (lambda(1) - lambda(2)) / h;
        let d11 = difference(1, 2, r1);
        let pairs = || d10.iter().zip(&d11);
        let d1 = pairs().map(|(a, b)| a + r0 / (r0 + r1) * (a - b)).collect();
        let d2 = pairs().map(|(a, b)| 1.0 / (r0 + r1) * (a - b)).collect();
        (d1, d2)
    }
}

impl Scheduler for DpmMultistep {
    levels!();

    fn step(&mut self, call: usize, model_output: &[f32], latents: &mut [f32], noise: &mut dyn NoiseSource) {
        let index = self.levels.plan.begin + call;
        let (alpha, sigma) = self.levels.alpha_sigma(index);
        let mut denoised = Vec::with_capacity(latents.len());
        self.prediction
            .denoise_vp(alpha, sigma, model_output, latents, &mut denoised);
        self.outputs.insert(0, denoised);
        self.outputs.truncate(self.order);
        let order = self.order_at(index);
        let [keep, w0, w1, w2, wn] = self.weights(index, order);
        let (d1, d2) = self.differences(index, order);
        let d0 = &self.outputs[0];
        for (i, x) in latents.iter_mut().enumerate() {
            *x = keep * *x + w0 * d0[i];
            if order > 1 {
                *x += w1 * d1[i];
            }
            if order > 2 {
                *x += w2 * d2[i];
            }
        }
        if self.stochastic {
            super::ddim::add_drawn(latents, wn, noise);
        }
    }
}
