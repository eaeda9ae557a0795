//! The training noise: betas and what follows from them.

use super::{BetaSchedule, SchedulerConfig};

/// Cumulative products of `1 - beta`, one per training timestep, in `f32` as torch keeps them.
pub(super) struct Alphas {
    pub cumprod: Vec<f32>,
}

/// What to do with `rescale_betas_zero_snr`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum ZeroSnr {
    /// The sampler's diffusers class does not know it.
    Ignored,
    /// The last product is exactly 0.
    Exact,
    /// The last product is 2^-24, so that the first sigma is finite (4096).
    Floored,
}

impl Alphas {
    pub fn new(config: &SchedulerConfig, zero_snr: ZeroSnr) -> Self {
        let mut betas = betas(config);
        let rescale = config.rescale_betas_zero_snr && zero_snr != ZeroSnr::Ignored;
        if rescale {
            rescale_zero_terminal_snr(&mut betas);
        }
        let mut cumprod = cumprod(&betas);
        if rescale
            && zero_snr == ZeroSnr::Floored
            && let Some(last) = cumprod.last_mut()
        {
            *last = f32::powi(2.0, -24);
        }
        Self { cumprod }
    }

    /// Standard deviation of the noise relative to the signal, per training timestep, ascending.
    pub fn sigmas(&self) -> Vec<f32> {
        self.cumprod.iter().map(|a| ((1.0 - a) / a).sqrt()).collect()
    }
}

fn betas(config: &SchedulerConfig) -> Vec<f32> {
    if let Some(trained) = &config.trained_betas {
        return trained.clone();
    }
    let n = config.num_train_timesteps;
    match config.beta_schedule {
        BetaSchedule::Linear => torch_linspace(config.beta_start, config.beta_end, n),
        BetaSchedule::ScaledLinear => torch_linspace(config.beta_start.sqrt(), config.beta_end.sqrt(), n)
            .into_iter()
            .map(|b| b * b)
            .collect(),
        BetaSchedule::SquaredcosCapV2 => {
            let alpha_bar = |t: f64| ((t + 0.008) / 1.008 * std::f64::consts::PI / 2.0).cos().powi(2);
            (0..n)
                .map(|i| {
                    let (t1, t2) = (i as f64 / n as f64, (i + 1) as f64 / n as f64);
                    (1.0 - alpha_bar(t2) / alpha_bar(t1)).min(0.999) as f32
                })
                .collect()
        }
    }
}

/// `torch.linspace` in `f32`: from both ends to the middle, with a fused multiply-add.
fn torch_linspace(start: f64, end: f64, n: usize) -> Vec<f32> {
    let (start, end) = (start as f32, end as f32);
    let step = (end - start) / (n - 1) as f32;
    (0..n)
        .map(|i| {
            if i < n / 2 {
                step.mul_add(i as f32, start)
            } else {
                (-step).mul_add((n - 1 - i) as f32, end)
            }
        })
        .collect()
}

/// `torch.cumprod(1 - betas)`: accumulated in `f64`, kept in `f32`.
fn cumprod(betas: &[f32]) -> Vec<f32> {
    let mut product = 1.0f64;
    betas
        .iter()
        .map(|b| {
            product *= f64::from(1.0 - b);
            product as f32
        })
        .collect()
}

/// Algorithm 1 of "Common Diffusion Noise Schedules and Sample Steps are Flawed" (arXiv 2305.08891).
fn rescale_zero_terminal_snr(betas: &mut [f32]) {
    let mut roots: Vec<f32> = cumprod(betas).into_iter().map(f32::sqrt).collect();
    let (Some(&first), Some(&last)) = (roots.first(), roots.last()) else {
        return;
    };
    let scale = first / (first - last);
    for root in &mut roots {
        *root = (*root - last) * scale;
        *root *= *root;
    }
    betas[0] = 1.0 - roots[0];
    for (beta, pair) in betas[1..].iter_mut().zip(roots.windows(2)) {
        *beta = 1.0 - pair[1] / pair[0];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_snr_ends_without_signal() {
        let config = SchedulerConfig {
            rescale_betas_zero_snr: true,
            ..SchedulerConfig::stable_diffusion()
        };
        assert_eq!(Alphas::new(&config, ZeroSnr::Exact).cumprod[999], 0.0);
        assert!((Alphas::new(&config, ZeroSnr::Floored).sigmas()[999] - 4096.0).abs() < 0.01);
        assert!(Alphas::new(&config, ZeroSnr::Ignored).sigmas()[999] < 15.0);
    }
}
