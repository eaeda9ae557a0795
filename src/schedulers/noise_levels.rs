//! Noise levels (sigmas) for timesteps, and the Karras and exponential spreads of them.

use super::{SchedulerConfig, spacing::linspace};

/// How the sigmas of a run are spread between the highest and the lowest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spread {
    /// As the timesteps give them.
    Plain,
    Karras,
    Exponential,
}

/// The sigmas of the training timesteps, for lookups both ways.
pub(super) struct Table {
    sigmas: Vec<f32>,
    logs: Vec<f32>,
}

impl Table {
    pub fn new(sigmas: Vec<f32>) -> Self {
        let logs = sigmas.iter().map(|s| s.ln()).collect();
        Self { sigmas, logs }
    }

    /// Lowest and highest sigma of the training.
    pub fn ends(&self) -> (f64, f64) {
        let at = |i: usize| self.sigmas.get(i).copied().map_or(0.0, f64::from);
        (at(0), at(self.sigmas.len().saturating_sub(1)))
    }

    /// The sigma at a fractional timestep (`numpy.interp`).
    pub fn sigma(&self, timestep: f64) -> f64 {
        let last = self.sigmas.len() - 1;
        let low = timestep.max(0.0).floor() as usize;
        if low >= last {
            return f64::from(self.sigmas[last]);
        }
        let (a, b) = (f64::from(self.sigmas[low]), f64::from(self.sigmas[low + 1]));
        (b - a) * (timestep - low as f64) + a
    }

    /// The fractional timestep of a sigma, linear in its logarithm.
    pub fn timestep(&self, sigma: f64) -> f64 {
        let log_sigma = sigma.max(1e-10).ln();
        let above = self.logs.partition_point(|l| f64::from(*l) <= log_sigma);
        let low = above.saturating_sub(1).min(self.logs.len() - 2);
        let (l, h) = (self.logs[low], self.logs[low + 1]);
        let w = ((f64::from(l) - log_sigma) / f64::from(l - h)).clamp(0.0, 1.0);
        (1.0 - w) * low as f64 + w * (low + 1) as f64
    }

    /// Spreads `n` sigmas between the ends of `plain` (descending) and gives their timesteps too.
    pub fn spread(
        &self,
        spread: Spread,
        n: usize,
        (sigma_min, sigma_max): (f64, f64),
        config: &SchedulerConfig,
    ) -> (Vec<f64>, Vec<f64>) {
        let min = config.sigma_min.unwrap_or(sigma_min);
        let max = config.sigma_max.unwrap_or(sigma_max);
        let sigmas = spread_between(spread, n, min, max);
        let timesteps = sigmas.iter().map(|s| self.timestep(*s)).collect();
        (sigmas, timesteps)
    }
}

/// `n` sigmas from `max` to `min`: Karras et al. 2022 with rho 7, or even steps of the logarithm.
pub(super) fn spread_between(spread: Spread, n: usize, min: f64, max: f64) -> Vec<f64> {
    match spread {
        Spread::Plain => linspace(max, min, n),
        Spread::Karras => {
            let rho = 7.0;
            let (low, high) = (min.powf(1.0 / rho), max.powf(1.0 / rho));
            linspace(0.0, 1.0, n)
                .into_iter()
                .map(|ramp| (high + ramp * (low - high)).powf(rho))
                .collect()
        }
        Spread::Exponential => linspace(max.ln(), min.ln(), n).into_iter().map(f64::exp).collect(),
    }
}

/// Makes rounded timesteps strictly descending, as samplers that look alphas up by timestep need them: where the Karras
/// spread is denser than the training timesteps, the later ones keep their place.
pub(super) fn distinct_timesteps(fractional: &[f64], train: usize) -> Vec<usize> {
    let n = fractional.len();
    let mut timesteps: Vec<usize> = fractional
        .iter()
        .map(|t| (t.round_ties_even() as usize).min(train - 1))
        .collect();
    for i in (0..n.saturating_sub(1)).rev() {
        timesteps[i] = timesteps[i].max(timesteps[i + 1] + 1);
    }
    for (i, t) in timesteps.iter_mut().enumerate() {
        *t = (*t).min((train - 1).saturating_sub(i));
    }
    timesteps
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dense_timesteps_are_pushed_apart() {
        assert_eq!(
            distinct_timesteps(&[998.7, 3.2, 2.9, 0.4, 0.1], 1000),
            [999, 4, 3, 1, 0]
        );
        assert_eq!(distinct_timesteps(&[999.0, 998.9, 998.8], 1000), [999, 998, 997]);
    }

    #[test]
    fn timestep_and_sigma_are_inverse() {
        let table = Table::new((0..1000).map(|i| (0.01 * i as f32).exp() * 0.03).collect());
        for t in [0.0, 17.0, 500.0, 999.0] {
            assert!((table.timestep(table.sigma(t)) - t).abs() < 1e-2);
        }
    }
}
