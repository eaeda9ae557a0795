//! The samplers on variance-exploding latents: Euler, LMS, Heun, DPM2, DPM++ SDE.

use super::{Run, doubled_but_first, final_sigma, to_f32};
use crate::schedulers::{
    FinalSigmas, Spacing,
    alphas::{Alphas, ZeroSnr},
    dpm_2::{self, Dpm2},
    dpm_sde::{self, DpmSde},
    euler::Exploding,
    heun::Heun,
    noise_levels::{Spread, Table},
    spacing,
};

impl Run<'_> {
    /// Sigmas and timesteps of the steps of a variance-exploding run, without the final sigma.
    pub(super) fn exploding_steps(&self, table: &Table) -> (Vec<f64>, Vec<f64>) {
        let (spacing, spread) = self.spacing();
        let n = self.options.steps;
        let timesteps = spacing::fractional(spacing, n, self.config.num_train_timesteps, self.config.steps_offset);
        let sigmas: Vec<f64> = timesteps.iter().map(|t| table.sigma(*t)).collect();
        if spread == Spread::Plain {
            return (sigmas, timesteps);
        }
        table.spread(spread, n, (sigmas[n - 1], sigmas[0]), self.config)
    }

    /// A variance-exploding run from the levels and timesteps of its calls.
    pub(super) fn exploding(&self, sigmas: Vec<f32>, timesteps: &[f64], order: usize) -> Exploding {
        let max = sigmas.iter().copied().fold(0.0, f32::max);
        let init_noise_sigma = match self.spacing().0 {
            Spacing::Linspace | Spacing::Trailing => max,
            Spacing::Leading => (max * max + 1.0).sqrt(),
        };
        let calls: Vec<f32> = timesteps.iter().map(|t| *t as f32).collect();
        Exploding {
            plan: self.plan(&calls, order),
            sigmas,
            init_noise_sigma,
            prediction: self.config.prediction_type,
            denoised: Vec::new(),
        }
    }

    pub(super) fn one_call(&self, zero_snr: ZeroSnr, last: FinalSigmas) -> Exploding {
        let table = Table::new(Alphas::new(self.config, zero_snr).sigmas());
        let (sigmas, timesteps) = self.exploding_steps(&table);
        let mut sigmas = to_f32(&sigmas);
        sigmas.push(final_sigma(last, &table));
        self.exploding(sigmas, &timesteps, 1)
    }

    pub(super) fn heun(&self) -> Heun {
        let table = Table::new(Alphas::new(self.config, ZeroSnr::Ignored).sigmas());
        let (sigmas, timesteps) = self.exploding_steps(&table);
        let mut calls = doubled_but_first(&to_f32(&sigmas));
        calls.push(0.0);
        Heun {
            run: self.exploding(calls, &doubled_but_first(&timesteps), 2),
            clip: self.clip(false),
            trial: None,
        }
    }

    pub(super) fn dpm_2(&self, ancestral: bool) -> Dpm2 {
        let table = Table::new(Alphas::new(self.config, ZeroSnr::Ignored).sigmas());
        let (sigmas, mut timesteps) = self.exploding_steps(&table);
        if self.spacing().1 == Spread::Karras {
            timesteps.iter_mut().for_each(|t| *t = t.round_ties_even());
        }
        let mut sigmas = to_f32(&sigmas);
        sigmas.push(0.0);
        let (levels, times) = dpm_2::calls(&sigmas, &timesteps, ancestral, &table);
        let mut run = self.exploding(levels, &times, 2);
        if let (Spacing::Leading, Some(max)) = (self.spacing().0, sigmas.first()) {
            run.init_noise_sigma = (max * max + 1.0).sqrt();
        }
        Dpm2 {
            run,
            ancestral,
            start: None,
        }
    }

    pub(super) fn dpm_sde(&self) -> DpmSde {
        let table = Table::new(Alphas::new(self.config, ZeroSnr::Ignored).sigmas());
        let (sigmas, timesteps) = self.exploding_steps(&table);
        let mut times = doubled_but_first(&timesteps);
        for (i, middle) in dpm_sde::middles(&sigmas).into_iter().enumerate() {
            times[2 * i + 1] = table.timestep(middle);
        }
        let mut calls = doubled_but_first(&to_f32(&sigmas));
        calls.push(0.0);
        DpmSde {
            run: self.exploding(calls, &times, 2),
            first: None,
        }
    }
}
