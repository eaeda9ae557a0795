//! UniPC (arXiv 2302.04867): a multistep predictor, and a corrector that improves the latents with the model's output at
//! the new level before going on. One model call a step.

use super::{
    NoiseSource, Prediction, Scheduler,
    dpm_multistep::{Levels, levels},
};

pub(super) struct Unipc {
    pub levels: Levels,
    pub prediction: Prediction,
    pub order: usize,
    /// `solver_type: bh1` instead of `bh2`.
    pub bh1: bool,
    pub lower_order_final: bool,
    pub disable_corrector: Vec<usize>,
    /// Predictions of clean latents, latest first.
    pub outputs: Vec<Vec<f32>>,
    /// Latents before the last predictor, and its order.
    pub last: Option<(Vec<f32>, usize)>,
}

/// The coefficients of one update from `from` to `from + 1`.
struct Update {
    keep: f32,
    /// Weight of the latest prediction.
    w0: f32,
    /// Weight of the sum of differences.
    scale: f32,
    rks: Vec<f32>,
    b: Vec<f32>,
}

impl Unipc {
    fn update(&self, from: usize, order: usize) -> Update {
        let (alpha_t, sigma_t) = self.levels.alpha_sigma(from + 1);
        let (_, sigma_s) = self.levels.alpha_sigma(from);
        let lambda_s = self.levels.lambda(from);
        let h = self.levels.lambda(from + 1) - lambda_s;
        let mut rks: Vec<f32> = (1..order)
            .map(|i| (self.levels.lambda(from - i) - lambda_s) / h)
            .collect();
        rks.push(1.0);
        let hh = -h;
        let phi_1 = hh.exp_m1();
        let b_h = if self.bh1 { hh } else { phi_1 };
        let mut phi_k = phi_1 / hh - 1.0;
        let mut factorial = 1.0;
        let mut b = Vec::with_capacity(order);
        for i in 1..=order {
            b.push(phi_k * factorial / b_h);
            factorial *= (i + 1) as f32;
            phi_k = phi_k / hh - 1.0 / factorial;
        }
        Update {
            keep: sigma_t / sigma_s,
            w0: -(alpha_t * phi_1),
            scale: alpha_t * b_h,
            rks,
            b,
        }
    }

    /// UniC: the latents at `index`, from those before the last predictor and the prediction made at them.
    fn correct(&self, index: usize, last: &[f32], order: usize, prediction: &[f32], latents: &mut [f32]) {
        let update = self.update(index - 1, order);
        let rhos = if order == 1 {
            vec![0.5]
        } else {
            solve(&update.rks, &update.b)
        };
        let m0 = &self.outputs[0];
        for (i, x) in latents.iter_mut().enumerate() {
            let differences: f32 = (1..order)
                .map(|k| rhos[k - 1] * ((self.outputs[k][i] - m0[i]) / update.rks[k - 1]))
                .sum();
            let newest = rhos[order - 1] * (prediction[i] - m0[i]);
            *x = update.keep * last[i] + update.w0 * m0[i] - update.scale * (differences + newest);
        }
    }

    /// UniP: from the latents at `index` to the next level.
    fn predict(&self, index: usize, order: usize, latents: &mut [f32]) {
        let update = self.update(index, order);
        let rhos = match order {
            1 => Vec::new(),
            2 => vec![0.5],
            _ => solve(&update.rks[..order - 1], &update.b[..order - 1]),
        };
        let m0 = &self.outputs[0];
        for (i, x) in latents.iter_mut().enumerate() {
            *x = update.keep * *x + update.w0 * m0[i];
            if order > 1 {
                let differences: f32 = (1..order)
                    .map(|k| rhos[k - 1] * ((self.outputs[k][i] - m0[i]) / update.rks[k - 1]))
                    .sum();
                *x -= update.scale * differences;
            }
        }
    }
}

/// Solves `sum_j rks[j]^i * rho[j] = b[i]` (a Vandermonde system of at most 3 unknowns), in `f64`.
fn solve(rks: &[f32], b: &[f32]) -> Vec<f32> {
    let n = b.len();
    let mut rows: Vec<Vec<f64>> = (0..n)
        .map(|i| {
            let powers = rks.iter().map(|r| f64::from(*r).powi(i as i32));
            powers.chain([f64::from(b[i])]).collect()
        })
        .collect();
    for i in 0..n {
        let pivot = (i..n)
            .max_by(|p, q| rows[*p][i].abs().total_cmp(&rows[*q][i].abs()))
            .unwrap_or(i);
        rows.swap(i, pivot);
        let pivot = rows[i].clone();
        for (_, row) in rows.iter_mut().enumerate().filter(|(k, _)| *k != i) {
            let factor = row[i] / pivot[i];
            row.iter_mut().zip(&pivot).for_each(|(x, p)| *x -= factor * p);
        }
    }
    (0..n).map(|i| (rows[i][n] / rows[i][i]) as f32).collect()
}

impl Scheduler for Unipc {
    levels!();

    fn step(&mut self, call: usize, model_output: &[f32], latents: &mut [f32], _noise: &mut dyn NoiseSource) {
        let index = self.levels.plan.begin + call;
        let (alpha, sigma) = self.levels.alpha_sigma(index);
        let mut prediction = Vec::with_capacity(latents.len());
        self.prediction
            .denoise_vp(alpha, sigma, model_output, latents, &mut prediction);
        if let Some((last, order)) = self.last.take()
            && !self.disable_corrector.contains(&(index - 1))
        {
            self.correct(index, &last, order, &prediction, latents);
        }
        self.outputs.insert(0, prediction);
        self.outputs.truncate(self.order);
        let left = self.levels.len() - index;
        let at_zero = left == 1 && self.levels.sigmas.last() == Some(&0.0);
        let cap = if self.lower_order_final || at_zero {
            self.order.min(left)
        } else {
            self.order
        };
        let order = cap.min(self.outputs.len());
        self.last = Some((latents.to_vec(), order));
        self.predict(index, order, latents);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn solves_a_vandermonde_system() {
        let rho = solve(&[-1.0, -2.0, 1.0], &[6.0, -2.0, 12.0]);
        let expected = |i: i32| (-1.0f32).powi(i) * rho[0] + (-2.0f32).powi(i) * rho[1] + rho[2];
        for (i, b) in [6.0, -2.0, 12.0].into_iter().enumerate() {
            assert!((expected(i as i32) - b).abs() < 1e-5);
        }
    }
}
