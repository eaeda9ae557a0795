//! The samplers that look alphas up by whole timesteps: DDIM, DDPM, PNDM, LCM.

use super::Run;
use crate::domain::sampling::Schedule;
use crate::schedulers::{
    VarianceType,
    alphas::{Alphas, ZeroSnr},
    ddim::Ddim,
    ddpm::Ddpm,
    lcm::{self, Lcm},
    noise_levels::{Spread, Table, distinct_timesteps},
    pndm::{Pndm, PndmParts},
    spacing,
};

impl Run<'_> {
    /// Whole timesteps for the samplers that look alphas up by timestep, and whether they are spread unevenly.
    pub(super) fn whole_timesteps(&self) -> (Vec<usize>, bool) {
        let (n, train) = (self.options.steps, self.config.num_train_timesteps);
        let (spacing, spread) = self.spacing();
        let even = spacing::whole(spacing, n, train, self.config.steps_offset);
        let (Some(first), Some(last)) = (even.first(), even.last()) else {
            return (even, false);
        };
        if spread == Spread::Plain {
            return (even, false);
        }
        let table = Table::new(Alphas::new(self.config, ZeroSnr::Floored).sigmas());
        let ends = (table.sigma(*last as f64), table.sigma(*first as f64));
        let (_, fractional) = table.spread(spread, n, ends, self.config);
        (distinct_timesteps(&fractional, train), true)
    }

    pub(super) fn ddim(&self) -> Ddim {
        let (timesteps, uneven) = self.whole_timesteps();
        let cumprod = Alphas::new(self.config, ZeroSnr::Exact).cumprod;
        let plan = self.plan(&floats(&timesteps), 1);
        let ratio = self.config.num_train_timesteps / self.options.steps;
        let moves = if uneven {
            next_in_list(&timesteps)
        } else {
            timesteps.iter().map(|t| (*t, t.checked_sub(ratio))).collect()
        };
        Ddim {
            moves: moves[plan.begin..].to_vec(),
            final_alpha: if self.config.set_alpha_to_one.unwrap_or(true) {
                1.0
            } else {
                cumprod[0]
            },
            cumprod,
            plan,
            prediction: self.config.prediction_type,
            clip: self.clip(true),
            eta: self.options.eta,
            denoised: Vec::new(),
        }
    }

    pub(super) fn ddpm(&self) -> Ddpm {
        let (timesteps, _) = self.whole_timesteps();
        let plan = self.plan(&floats(&timesteps), 1);
        Ddpm {
            moves: next_in_list(&timesteps)[plan.begin..].to_vec(),
            cumprod: Alphas::new(self.config, ZeroSnr::Exact).cumprod,
            plan,
            prediction: self.config.prediction_type,
            clip: self.clip(true),
            fixed_large: self.config.variance_type == Some(VarianceType::FixedLarge),
            denoised: Vec::new(),
        }
    }

    pub(super) fn pndm(&self) -> Pndm {
        let cumprod = Alphas::new(self.config, ZeroSnr::Ignored).cumprod;
        Pndm::new(PndmParts {
            timesteps: self.whole_timesteps().0,
            skipped: self.skipped,
            runge_kutta: !self.config.skip_prk_steps,
            train: self.config.num_train_timesteps,
            final_alpha: if self.config.set_alpha_to_one.unwrap_or(false) {
                1.0
            } else {
                cumprod[0]
            },
            cumprod,
            prediction: self.config.prediction_type,
        })
    }

    pub(super) fn lcm(&self) -> Lcm {
        let timesteps = match self.options.schedule {
            Schedule::Default => lcm::distillation_timesteps(
                self.options.steps,
                self.config.original_inference_steps,
                self.config.num_train_timesteps,
            ),
            _ => self.whole_timesteps().0,
        };
        let plan = self.plan(&floats(&timesteps), 1);
        Lcm {
            timesteps: timesteps[plan.begin..].to_vec(),
            plan,
            cumprod: Alphas::new(self.config, ZeroSnr::Exact).cumprod,
            prediction: self.config.prediction_type,
            clip: self.clip(false),
            scaling: self.config.timestep_scaling,
            denoised: Vec::new(),
        }
    }
}

fn next_in_list(timesteps: &[usize]) -> Vec<(usize, Option<usize>)> {
    (0..timesteps.len())
        .map(|i| (timesteps[i], timesteps.get(i + 1).copied()))
        .collect()
}

fn floats(timesteps: &[usize]) -> Vec<f32> {
    timesteps.iter().map(|t| *t as f32).collect()
}
