//! Noise levels of flow-matching models: linear, shifted by the model (FLUX schnell: not) and by the picture's size (FLUX
//! dev), in `f32` as diffusers' FLUX pipelines compute them.

use super::{
    SchedulerConfig,
    noise_levels::{Spread, spread_between},
    spacing::linspace,
};
use crate::domain::sampling::Schedule;

/// How levels are moved towards noise.
enum Shift {
    /// `exp(mu)` of the dynamic shift.
    Dynamic(f64),
    Static(f64),
}

/// `mu` for a picture of `tokens` image tokens: linear between the two sizes of the configuration.
pub(super) fn mu(config: &SchedulerConfig, tokens: usize) -> f64 {
    let (base, max) = (config.base_image_seq_len as f64, config.max_image_seq_len as f64);
    let slope = (config.max_shift - config.base_shift) / (max - base);
    tokens as f64 * slope + (config.base_shift - slope * base)
}

impl Shift {
    fn new(config: &SchedulerConfig, tokens: usize) -> Self {
        if config.use_dynamic_shifting {
            Self::Dynamic(mu(config, tokens).exp())
        } else {
            Self::Static(config.flow_shift.unwrap_or(config.shift))
        }
    }

    fn apply(&self, sigma: f32) -> f32 {
        match *self {
            Self::Dynamic(shift) => shift as f32 / (shift as f32 + (1.0 / sigma - 1.0)),
            Self::Static(shift) => shift as f32 * sigma / (1.0 + (shift - 1.0) as f32 * sigma),
        }
    }

    fn apply_f64(&self, sigma: f64) -> f64 {
        let (Self::Dynamic(shift) | Self::Static(shift)) = *self;
        shift * sigma / (1.0 + (shift - 1.0) * sigma)
    }
}

/// Levels of the steps, descending, without the final 0.
pub(super) fn sigmas(config: &SchedulerConfig, schedule: Schedule, n: usize, tokens: usize) -> Vec<f32> {
    let shift = Shift::new(config, tokens);
    let plain: Vec<f32> = match schedule {
        Schedule::Linspace => even(config, &shift, n),
        _ => linspace(1.0, 1.0 / n as f64, n)
            .into_iter()
            .map(|s| shift.apply(s as f32))
            .collect(),
    };
    let plain = stretch(plain, config.shift_terminal);
    let spread = match schedule {
        Schedule::Karras => Spread::Karras,
        Schedule::Exponential => Spread::Exponential,
        Schedule::Default if config.use_karras_sigmas == Some(true) => Spread::Karras,
        Schedule::Default if config.use_exponential_sigmas == Some(true) => Spread::Exponential,
        _ => return plain,
    };
    let at = |i: usize| plain.get(i).copied().map_or(1.0, f64::from);
    spread_between(spread, n, at(n.saturating_sub(1)), at(0))
        .into_iter()
        .map(|s| s as f32)
        .collect()
}

/// Even steps from the first to the last of the training levels (`set_timesteps(n)` without sigmas).
fn even(config: &SchedulerConfig, shift: &Shift, n: usize) -> Vec<f32> {
    let train = config.num_train_timesteps as f64;
    let (mut max, mut min) = (1.0f32, (1.0 / train) as f32);
    if let Shift::Static(_) = shift {
        (max, min) = (shift.apply(max), shift.apply(min));
    }
    linspace(f64::from(max) * train, f64::from(min) * train, n)
        .into_iter()
        .map(|t| shift.apply_f64(t / train) as f32)
        .collect()
}

/// Stretches the levels so that the last one is `terminal`.
fn stretch(sigmas: Vec<f32>, terminal: Option<f64>) -> Vec<f32> {
    let (Some(terminal), Some(last)) = (terminal.filter(|t| *t != 0.0), sigmas.last().copied()) else {
        return sigmas;
    };
    let scale = (1.0 - last) / (1.0 - terminal) as f32;
    sigmas.into_iter().map(|s| 1.0 - (1.0 - s) / scale).collect()
}

/// Levels and timesteps of `DPMSolverMultistepScheduler` with `use_flow_sigmas`: even steps that stop short of pure noise,
/// timesteps truncated to whole ones.
pub(super) fn dpm_sigmas(config: &SchedulerConfig, n: usize, tokens: usize) -> (Vec<f32>, Vec<f32>) {
    let shift = Shift::new(config, tokens);
    let train = config.num_train_timesteps as f64;
    let mut sigmas: Vec<f64> = linspace(1.0, 1.0 / train, n + 1)
        .into_iter()
        .map(|alpha| shift.apply_f64(1.0 - alpha))
        .collect();
    sigmas.reverse();
    sigmas.truncate(n);
    let timesteps = sigmas.iter().map(|s| (s * train).trunc() as f32).collect();
    (sigmas.into_iter().map(|s| s as f32).collect(), timesteps)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mu_of_a_square_megapixel_is_the_largest_shift() {
        assert!((mu(&SchedulerConfig::flux_dev(), 4096) - 1.15).abs() < 1e-12);
        assert!((mu(&SchedulerConfig::flux_dev(), 256) - 0.5).abs() < 1e-12);
    }

    #[test]
    fn schnell_is_not_shifted() {
        let sigmas = sigmas(&SchedulerConfig::flux_schnell(), Schedule::Default, 4, 4096);
        assert_eq!(sigmas, [1.0, 0.75, 0.5, 0.25]);
    }
}
