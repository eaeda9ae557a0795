//! The multistep solvers on variance-preserving latents: DPM-Solver++ and UniPC.

use super::{Run, final_sigma, to_f32};
use crate::schedulers::{
    BetaSchedule, FinalSigmas, Prediction, SolverType,
    alphas::{Alphas, ZeroSnr},
    dpm_multistep::{DpmMultistep, Levels},
    noise_levels::{Spread, Table},
    spacing,
    unipc::Unipc,
};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Solver {
    Dpm,
    Unipc,
}

impl Run<'_> {
    /// Levels and timesteps of DPM-Solver (`usable` training timesteps) and UniPC.
    fn levels(&self, table: &Table, usable: usize, solver: Solver) -> Levels {
        let (spacing, spread) = self.spacing();
        let (n, config) = (self.options.steps, self.config);
        let (sigmas, timesteps) = if spread == Spread::Plain {
            let whole = spacing::multistep(spacing, n, config.num_train_timesteps, usable, config.steps_offset);
            let timesteps: Vec<f64> = whole.iter().map(|t| *t as f64).collect();
            (timesteps.iter().map(|t| table.sigma(*t)).collect(), timesteps)
        } else {
            table.spread(spread, n, table.ends(), config)
        };
        // Cast to integers; diffusers rounds the Karras ones first (DPM-Solver: not with the cosine betas).
        let rounds = spread == Spread::Karras
            && (solver == Solver::Unipc || config.beta_schedule != BetaSchedule::SquaredcosCapV2);
        let calls: Vec<f32> = timesteps
            .iter()
            .map(|t| if rounds { t.round_ties_even() } else { t.trunc() } as f32)
            .collect();
        let mut sigmas = to_f32(&sigmas);
        let last = config.final_sigmas_type.unwrap_or(FinalSigmas::Zero);
        let lowest = sigmas.last().copied().unwrap_or(0.0);
        sigmas.push(match (solver, last) {
            (Solver::Unipc, FinalSigmas::SigmaMin) if spread != Spread::Plain => lowest,
            _ => final_sigma(last, table),
        });
        Levels {
            plan: self.plan(&calls, 1),
            sigmas,
            flow: false,
            init_noise_sigma: 1.0,
        }
    }

    pub(super) fn dpm_multistep(&self, stochastic: bool) -> DpmMultistep {
        let table = Table::new(Alphas::new(self.config, ZeroSnr::Floored).sigmas());
        let train = self.config.num_train_timesteps;
        let usable = self.config.lambda_min_clipped.map_or(train, |min| {
            // lambda = -ln(sigma) falls with the timestep; those below the limit are not used.
            (0..train)
                .take_while(|t| -table.sigma(*t as f64).ln() >= min)
                .count()
                .max(2)
        });
        self.solver(self.levels(&table, usable, Solver::Dpm), stochastic)
    }

    pub(super) fn solver(&self, levels: Levels, stochastic: bool) -> DpmMultistep {
        let config = self.config;
        let to_zero = levels.sigmas.last() == Some(&0.0);
        DpmMultistep {
            prediction: if levels.flow {
                Prediction::Flow
            } else {
                config.prediction_type
            },
            levels,
            stochastic,
            order: config.solver_order,
            heun: config.solver_type == Some(SolverType::Heun),
            lower_order_final: config.lower_order_final,
            euler_at_final: config.euler_at_final || to_zero,
            outputs: Vec::new(),
        }
    }

    pub(super) fn unipc(&self) -> Unipc {
        let config = self.config;
        let table = Table::new(Alphas::new(config, ZeroSnr::Floored).sigmas());
        Unipc {
            levels: self.levels(&table, config.num_train_timesteps, Solver::Unipc),
            prediction: config.prediction_type,
            order: config.solver_order,
            bh1: config.solver_type == Some(SolverType::Bh1),
            lower_order_final: config.lower_order_final,
            disable_corrector: config.disable_corrector.clone(),
            outputs: Vec::new(),
            last: None,
        }
    }
}
