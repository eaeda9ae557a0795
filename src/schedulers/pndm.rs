//! PNDM (arXiv 2202.09778): linear multistep (PLMS), started by one repeated call, or by twelve Runge-Kutta calls where the
//! model's configuration has `skip_prk_steps` false.
//!
//! diffusers' Runge-Kutta start fails below 4 steps and mixes up its timesteps in img2img: there the PLMS start is used.

use super::{NoiseSource, Prediction, Scheduler, ddim::add_noise_vp, plan::Plan};

pub(super) struct Pndm {
    plan: Plan,
    timesteps: Vec<usize>,
    runge_kutta_calls: usize,
    /// `num_train_timesteps / steps`.
    ratio: usize,
    cumprod: Vec<f32>,
    final_alpha: f32,
    prediction: Prediction,
    history: Vec<Vec<f32>>,
    sum: Vec<f32>,
    held: Option<Vec<f32>>,
    denoised: Vec<f32>,
}

/// What [`Pndm`] is built from.
pub(super) struct PndmParts {
    /// Whole timesteps of the full schedule, descending.
    pub timesteps: Vec<usize>,
    pub skipped: usize,
    pub runge_kutta: bool,
    pub train: usize,
    pub cumprod: Vec<f32>,
    pub final_alpha: f32,
    pub prediction: Prediction,
}

impl Pndm {
    pub fn new(parts: PndmParts) -> Self {
        let n = parts.timesteps.len();
        let ratio = parts.train / n;
        let (plan, timesteps, runge_kutta_calls) = if parts.runge_kutta && n >= 4 && parts.skipped == 0 {
            let timesteps = runge_kutta_timesteps(&parts.timesteps, ratio);
            let done = (0..timesteps.len())
                .map(|i| if i < 12 { (i + 1) / 4 } else { i - 8 })
                .collect();
            (Plan::with_done(floats(&timesteps), n, done), timesteps, 12)
        } else {
            let mut all = parts.timesteps;
            if n > 1 {
                all.insert(1, all[1]);
            }
            let plan = Plan::new(&floats(&all), n, 1, parts.skipped);
            let rest = all.split_off(plan.begin);
            (plan, rest, 0)
        };
        Self {
            plan,
            timesteps,
            runge_kutta_calls,
            ratio,
            cumprod: parts.cumprod,
            final_alpha: parts.final_alpha,
            prediction: parts.prediction,
            history: Vec::new(),
            sum: Vec::new(),
            held: None,
            denoised: Vec::new(),
        }
    }

    fn runge_kutta(&mut self, call: usize, output: &[f32], latents: &mut [f32]) {
        let back = if call.is_multiple_of(2) { self.ratio / 2 } else { 0 };
        let to = self.timesteps[call] as isize - back as isize;
        let from = self.timesteps[call / 4 * 4];
        let mut direction = output.to_vec();
        match call % 4 {
            0 => {
                self.sum = output.iter().map(|o| 1.0 / 6.0 * o).collect();
                self.history.push(output.to_vec());
                self.held = Some(latents.to_vec());
            }
            3 => direction = self.sum.iter().zip(output).map(|(s, o)| s + 1.0 / 6.0 * o).collect(),
            _ => self.sum.iter_mut().zip(output).for_each(|(s, o)| *s += 1.0 / 3.0 * o),
        }
        if let Some(held) = &self.held {
            latents.copy_from_slice(held);
        }
        self.transfer(latents, from, to, &direction);
    }

    fn multistep(&mut self, call: usize, output: &[f32], latents: &mut [f32]) {
        let t = self.timesteps[call];
        let (mut from, mut to) = (t, t as isize - self.ratio as isize);
        if call == 1 {
            (from, to) = ((t + self.ratio).min(self.cumprod.len() - 1), t as isize);
        } else {
            let surplus = self.history.len().saturating_sub(3);
            self.history.drain(..surplus);
            self.history.push(output.to_vec());
        }
        let e: Vec<&[f32]> = self.history.iter().rev().map(Vec::as_slice).collect();
        let direction: Vec<f32> = match (e.len(), call) {
            (1, 0) => {
                self.held = Some(latents.to_vec());
                output.to_vec()
            }
            (1, 1) => {
                if let Some(held) = self.held.take() {
                    latents.copy_from_slice(&held);
                }
                output.iter().zip(e[0]).map(|(o, e)| (o + e) / 2.0).collect()
            }
            (2, _) => e[0].iter().zip(e[1]).map(|(a, b)| (3.0 * a - b) / 2.0).collect(),
            (3, _) => (0..output.len())
                .map(|i| (23.0 * e[0][i] - 16.0 * e[1][i] + 5.0 * e[2][i]) / 12.0)
                .collect(),
            (4, _) => (0..output.len())
                .map(|i| 1.0 / 24.0 * (55.0 * e[0][i] - 59.0 * e[1][i] + 37.0 * e[2][i] - 9.0 * e[3][i]))
                .collect(),
            _ => output.to_vec(),
        };
        self.transfer(latents, from, to, &direction);
    }

    /// Formula (9) of the paper: from timestep `from` to `to` (below 0: the end) along `direction`.
    fn transfer(&mut self, latents: &mut [f32], from: usize, to: isize, direction: &[f32]) {
        let alpha = self.cumprod[from];
        let alpha_to = usize::try_from(to).map_or(self.final_alpha, |t| self.cumprod[t]);
        let (beta, beta_to) = (1.0 - alpha, 1.0 - alpha_to);
        let (signal, sigma) = (alpha.sqrt(), beta.sqrt());
        let sample = (alpha_to / alpha).sqrt();
        let denominator = alpha * beta_to.sqrt() + (alpha * beta * alpha_to).sqrt();
        self.denoised.clear();
        for (x, d) in latents.iter_mut().zip(direction) {
            let epsilon = self.prediction.epsilon_vp(signal, sigma, *d, *x);
            self.denoised.push((*x - sigma * epsilon) / signal);
            *x = sample * *x - (alpha_to - alpha) * epsilon / denominator;
        }
    }
}

impl Scheduler for Pndm {
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
        if call < self.runge_kutta_calls {
            self.runge_kutta(call, model_output, latents);
        } else {
            self.multistep(call, model_output, latents);
        }
    }

    fn add_noise(&self, original: &[f32], noise: &[f32], call: usize) -> Vec<f32> {
        add_noise_vp(&self.cumprod, self.timesteps.get(call).copied(), original, noise)
    }

    fn denoised(&self) -> &[f32] {
        &self.denoised
    }
}

/// Three Runge-Kutta steps of four calls, then PLMS from the fourth timestep on.
fn runge_kutta_timesteps(timesteps: &[usize], ratio: usize) -> Vec<usize> {
    let half = ratio / 2;
    // Ascending pairs (t, t + half) of the four noisiest, without the very last.
    let ascending: Vec<usize> = timesteps[..4]
        .iter()
        .rev()
        .flat_map(|t| [*t, t + half])
        .take(7)
        .collect();
    let doubled: Vec<usize> = ascending.iter().flat_map(|t| [*t, *t]).collect();
    let mut all: Vec<usize> = doubled[1..doubled.len() - 1].iter().rev().copied().collect();
    all.extend(&timesteps[3..]);
    all
}

fn floats(timesteps: &[usize]) -> Vec<f32> {
    timesteps.iter().map(|t| *t as f32).collect()
}
