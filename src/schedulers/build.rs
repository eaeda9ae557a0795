//! From names and the model's configuration to a scheduler.

use super::{
    FinalSigmas, NoiseSource, Prediction, Scheduler, SchedulerConfig, SchedulerError, SolverType, Spacing,
    VarianceType,
    alphas::{Alphas, ZeroSnr},
    ddim::Ddim,
    ddpm::Ddpm,
    dpm_2::{self, Dpm2},
    dpm_multistep::{DpmMultistep, Levels},
    dpm_sde::{self, DpmSde},
    euler::{Euler, Exploding},
    flow::Flow,
    flow_sigmas,
    heun::Heun,
    lcm::{self, Lcm},
    lms::Lms,
    noise_levels::{Spread, Table, distinct_timesteps},
    plan::{Plan, skipped_steps},
    pndm::{Pndm, PndmParts},
    spacing,
    unipc::Unipc,
};
use crate::domain::sampling::{Sampler, Schedule};

/// What a run asks of its scheduler.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    pub sampler: Sampler,
    pub schedule: Schedule,
    /// Steps of the full schedule, as the user counts them.
    pub steps: usize,
    /// 1 for txt2img; img2img does this share of the steps, the least noisy ones. An `f32` goes through [`decimal`].
    pub strength: f64,
    /// Share of DDPM's noise that `ddim` adds; other samplers have no such knob.
    pub eta: f32,
    /// Image tokens of a flow-matching model (FLUX: width / 16 * height / 16): what its dynamic shift depends on.
    pub image_tokens: usize,
}

impl Options {
    /// A full txt2img run with the model's own schedule.
    #[must_use]
    pub fn new(sampler: Sampler, steps: usize) -> Self {
        Self {
            sampler,
            schedule: Schedule::Default,
            steps,
            strength: 1.0,
            eta: 0.0,
            image_tokens: 0,
        }
    }
}

/// The decimal number that was written to get `value`: 0.7, where the `f32` itself is a little less and would make 10
/// steps 6.
#[must_use]
pub fn decimal(value: f32) -> f64 {
    value.to_string().parse().unwrap_or_else(|_| f64::from(value))
}

/// Builds the scheduler of one run.
///
/// `Schedule::Default` gives what diffusers' `Class.from_config(model.scheduler.config)` gives; the others override the
/// spacing or the sigmas of that. img2img starts at the step that diffusers' pipelines start at for this strength.
pub fn build(options: &Options, config: &SchedulerConfig) -> Result<Box<dyn Scheduler>, SchedulerError> {
    config.check()?;
    if !(0.0..=1.0).contains(&options.strength) {
        return Err(SchedulerError::Strength(options.strength));
    }
    let flow = config.is_flow();
    let max = match options.sampler {
        Sampler::Lcm if options.schedule == Schedule::Default => config.original_inference_steps,
        _ => config.num_train_timesteps - 1,
    };
    if !(1..=max).contains(&options.steps) {
        return Err(SchedulerError::Steps {
            sampler: options.sampler,
            steps: options.steps,
            max,
        });
    }
    let run = Run {
        options,
        config,
        skipped: skipped_steps(options.steps, options.strength, flow),
    };
    if flow {
        return run.flow();
    }
    options.sampler.check_schedule(options.schedule)?;
    Ok(run.diffusion())
}

/// The inputs of a build.
struct Run<'a> {
    options: &'a Options,
    config: &'a SchedulerConfig,
    skipped: usize,
}

impl Run<'_> {
    fn diffusion(&self) -> Box<dyn Scheduler> {
        match self.options.sampler {
            Sampler::Ddim => Box::new(self.ddim()),
            Sampler::Ddpm => Box::new(self.ddpm()),
            Sampler::Pndm => Box::new(self.pndm()),
            Sampler::Lcm => Box::new(self.lcm()),
            Sampler::Lms => Box::new(Lms {
                run: self.one_call(ZeroSnr::Ignored, FinalSigmas::Zero),
                derivatives: Vec::new(),
            }),
            Sampler::Euler => Box::new(Euler {
                run: self.one_call(
                    ZeroSnr::Floored,
                    self.config.final_sigmas_type.unwrap_or(FinalSigmas::Zero),
                ),
                ancestral: false,
            }),
            Sampler::EulerAncestral => Box::new(Euler {
                run: self.one_call(ZeroSnr::Floored, FinalSigmas::Zero),
                ancestral: true,
            }),
            Sampler::Heun => Box::new(self.heun()),
            Sampler::Dpm2 => Box::new(self.dpm_2(false)),
            Sampler::Dpm2Ancestral => Box::new(self.dpm_2(true)),
            Sampler::DpmppSde => Box::new(self.dpm_sde()),
            Sampler::Dpmpp2m => Box::new(self.dpm_multistep(false)),
            Sampler::Dpmpp2mSde => Box::new(self.dpm_multistep(true)),
            Sampler::Unipc => Box::new(self.unipc()),
        }
    }

    /// Spacing of the timesteps, and spread of the sigmas between their ends.
    fn spacing(&self) -> (Spacing, Spread) {
        let own = self.config.timestep_spacing.unwrap_or(match self.options.sampler {
            Sampler::Ddim | Sampler::Ddpm | Sampler::Pndm | Sampler::Lcm => Spacing::Leading,
            _ => Spacing::Linspace,
        });
        // The diffusers classes of these know no such flags.
        let plain = matches!(
            self.options.sampler,
            Sampler::Ddim | Sampler::Ddpm | Sampler::Pndm | Sampler::Lcm | Sampler::EulerAncestral
        );
        match self.options.schedule {
            Schedule::Default if plain => (own, Spread::Plain),
            Schedule::Default if self.config.use_karras_sigmas == Some(true) => (own, Spread::Karras),
            Schedule::Default if self.config.use_exponential_sigmas == Some(true) => (own, Spread::Exponential),
            Schedule::Default => (own, Spread::Plain),
            Schedule::Karras => (own, Spread::Karras),
            Schedule::Exponential => (own, Spread::Exponential),
            Schedule::SgmUniform => (Spacing::Trailing, Spread::Plain),
            Schedule::Linspace => (Spacing::Linspace, Spread::Plain),
            Schedule::DdimUniform => (Spacing::Leading, Spread::Plain),
        }
    }

    /// Whole timesteps for the samplers that look alphas up by timestep, and whether they are spread unevenly.
    fn whole_timesteps(&self) -> (Vec<usize>, bool) {
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

    fn plan(&self, calls: &[f32], order: usize) -> Plan {
        Plan::new(calls, self.options.steps, order, self.skipped)
    }

    fn clip(&self, by_default: bool) -> Option<f32> {
        let clip = self.config.clip_sample.unwrap_or(by_default);
        clip.then_some(self.config.clip_sample_range)
    }

    fn ddim(&self) -> Ddim {
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

    fn ddpm(&self) -> Ddpm {
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

    fn pndm(&self) -> Pndm {
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

    fn lcm(&self) -> Lcm {
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

    /// Sigmas and timesteps of the steps of a variance-exploding run, without the final sigma.
    fn exploding_steps(&self, table: &Table) -> (Vec<f64>, Vec<f64>) {
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
    fn exploding(&self, sigmas: Vec<f32>, timesteps: &[f64], order: usize) -> Exploding {
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

    fn one_call(&self, zero_snr: ZeroSnr, last: FinalSigmas) -> Exploding {
        let table = Table::new(Alphas::new(self.config, zero_snr).sigmas());
        let (sigmas, timesteps) = self.exploding_steps(&table);
        let mut sigmas = to_f32(&sigmas);
        sigmas.push(final_sigma(last, &table));
        self.exploding(sigmas, &timesteps, 1)
    }

    fn heun(&self) -> Heun {
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

    fn dpm_2(&self, ancestral: bool) -> Dpm2 {
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

    fn dpm_sde(&self) -> DpmSde {
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
            && (solver == Solver::Unipc || config.beta_schedule != super::BetaSchedule::SquaredcosCapV2);
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

    fn dpm_multistep(&self, stochastic: bool) -> DpmMultistep {
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

    fn solver(&self, levels: Levels, stochastic: bool) -> DpmMultistep {
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

    fn unipc(&self) -> Unipc {
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

    fn flow(&self) -> Result<Box<dyn Scheduler>, SchedulerError> {
        let Options {
            sampler,
            schedule,
            steps,
            image_tokens,
            ..
        } = *self.options;
        if !sampler.supports_flow() {
            return Err(SchedulerError::FlowSampler { sampler });
        }
        if !Schedule::FLOW.contains(&schedule) {
            return Err(SchedulerError::FlowSchedule { schedule });
        }
        let own_of_dpm = sampler == Sampler::Dpmpp2m && schedule == Schedule::Default;
        let (mut sigmas, times) = if own_of_dpm {
            flow_sigmas::dpm_sigmas(self.config, steps, image_tokens)
        } else {
            let sigmas = flow_sigmas::sigmas(self.config, schedule, steps, image_tokens);
            let train = self.config.num_train_timesteps as f32;
            let times = sigmas.iter().map(|s| s * train).collect();
            (sigmas, times)
        };
        if sampler == Sampler::Dpmpp2m {
            sigmas.push(0.0);
            let levels = Levels {
                plan: self.plan(&times, 1),
                sigmas,
                flow: true,
                init_noise_sigma: 1.0,
            };
            return Ok(Box::new(self.solver(levels, false)));
        }
        let heun = sampler == Sampler::Heun;
        let times = if heun { doubled_but_first(&times) } else { times };
        let mut sigmas = if heun { doubled_but_first(&sigmas) } else { sigmas };
        sigmas.push(0.0);
        Ok(Box::new(Flow {
            plan: self.plan(&times, if heun { 2 } else { 1 }),
            sigmas,
            heun,
            trial: None,
            denoised: Vec::new(),
        }))
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Solver {
    Dpm,
    Unipc,
}

fn final_sigma(last: FinalSigmas, table: &Table) -> f32 {
    match last {
        FinalSigmas::Zero => 0.0,
        FinalSigmas::SigmaMin => table.ends().0 as f32,
    }
}

/// Each value but the first twice: the model calls of two-stage samplers.
fn doubled_but_first<T: Copy>(values: &[T]) -> Vec<T> {
    let first = values.first().copied();
    first
        .into_iter()
        .chain(values.iter().skip(1).flat_map(|v| [*v, *v]))
        .collect()
}

fn next_in_list(timesteps: &[usize]) -> Vec<(usize, Option<usize>)> {
    (0..timesteps.len())
        .map(|i| (timesteps[i], timesteps.get(i + 1).copied()))
        .collect()
}

fn floats(timesteps: &[usize]) -> Vec<f32> {
    timesteps.iter().map(|t| *t as f32).collect()
}

fn to_f32(values: &[f64]) -> Vec<f32> {
    values.iter().map(|v| *v as f32).collect()
}

/// A source for runs that draw no noise.
impl NoiseSource for () {
    fn fill(&mut self, out: &mut [f32]) {
        out.fill(0.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs `sampler` to the end on a picture that the model always predicts exactly.
    fn paint(options: &Options, config: &SchedulerConfig) -> (Vec<f32>, Vec<usize>) {
        let target = [0.5f32, -1.0, 0.25, 2.0];
        let mut scheduler = build(options, config).unwrap();
        let start = [0.3f32, -0.7, 1.1, 0.2];
        let mut latents = scheduler.add_noise(&target, &start, 0);
        let mut done = Vec::new();
        for call in 0..scheduler.timesteps().len() {
            scheduler.step(call, &target, &mut latents, &mut ());
            done.push(scheduler.steps_done(call));
        }
        (latents, done)
    }

    #[test]
    fn every_sampler_and_schedule_ends_at_the_predicted_picture() {
        let config = SchedulerConfig {
            prediction_type: Prediction::Sample,
            set_alpha_to_one: Some(true),
            ..SchedulerConfig::stable_diffusion()
        };
        for &sampler in Sampler::ALL {
            for &schedule in sampler.schedules() {
                for strength in [1.0, 0.5] {
                    let options = Options {
                        schedule,
                        strength,
                        ..Options::new(sampler, 20)
                    };
                    let (latents, done) = paint(&options, &config);
                    // DDPM leaves the model's variance of timestep 0, LCM keeps the boundary's share of the input.
                    let tolerance = 0.02;
                    for (x, expected) in latents.iter().zip([0.5f32, -1.0, 0.25, 2.0]) {
                        assert!(
                            (x - expected).abs() < tolerance,
                            "{sampler} {schedule} {strength}: {latents:?}"
                        );
                    }
                    assert_eq!(done.last(), Some(&((20.0 * strength) as usize)), "{sampler} {schedule}");
                    assert!(done.is_sorted(), "{sampler} {schedule}");
                }
            }
        }
    }

    #[test]
    fn a_single_precision_strength_does_the_steps_its_decimal_says() {
        let options = Options {
            strength: decimal(0.7),
            ..Options::new(Sampler::Euler, 10)
        };
        let scheduler = build(&options, &SchedulerConfig::stable_diffusion()).unwrap();
        assert_eq!(scheduler.steps(), 7);
    }

    #[test]
    fn strength_0_has_nothing_to_do() {
        for &sampler in Sampler::ALL {
            let options = Options {
                strength: 0.0,
                ..Options::new(sampler, 10)
            };
            let scheduler = build(&options, &SchedulerConfig::stable_diffusion()).unwrap();
            assert!(scheduler.timesteps().is_empty(), "{sampler}");
            assert_eq!(
                scheduler.add_noise(&[1.0, 2.0], &[5.0, 5.0], 0),
                [1.0, 2.0],
                "{sampler}"
            );
        }
    }

    #[test]
    fn any_number_of_steps_runs_without_nan() {
        for zero_snr in [false, true] {
            let config = SchedulerConfig {
                rescale_betas_zero_snr: zero_snr,
                prediction_type: Prediction::V,
                ..SchedulerConfig::stable_diffusion()
            };
            for &sampler in Sampler::ALL {
                for &schedule in sampler.schedules() {
                    for steps in [1, 2, 3, 4, 5, 14, 15, 49, 61, 150] {
                        if sampler == Sampler::Lcm && schedule == Schedule::Default && steps > 50 {
                            continue;
                        }
                        let options = Options {
                            schedule,
                            ..Options::new(sampler, steps)
                        };
                        let (latents, done) = paint(&options, &config);
                        let finite = latents.iter().all(|x| x.is_finite());
                        assert!(finite, "{sampler} {schedule} {steps} zero_snr {zero_snr}: {latents:?}");
                        assert_eq!(done.last(), Some(&steps), "{sampler} {schedule}");
                    }
                }
            }
        }
    }

    #[test]
    fn what_does_not_exist_is_refused_with_the_alternatives() {
        let flux = SchedulerConfig::flux_dev();
        let message = |options: &Options, config| build(options, config).err().map(|e| e.to_string());
        assert_eq!(
            message(&Options::new(Sampler::Ddim, 4), &flux).as_deref(),
            Some("sampler ddim does not exist for flow-matching models; allowed: euler, heun, dpmpp_2m")
        );
        let leading = Options {
            schedule: Schedule::DdimUniform,
            ..Options::new(Sampler::Euler, 4)
        };
        assert!(message(&leading, &flux).is_some_and(|m| m.contains("allowed: default, karras")));
        let sd = SchedulerConfig::stable_diffusion();
        assert!(message(&Options::new(Sampler::Lcm, 51), &sd).is_some_and(|m| m.contains("lcm takes 1 to 50")));
        assert!(message(&Options::new(Sampler::Euler, 0), &sd).is_some());
    }

    #[test]
    fn flow_samplers_end_at_the_predicted_picture() {
        for config in [SchedulerConfig::flux_dev(), SchedulerConfig::flux_schnell()] {
            for &sampler in Sampler::FLOW {
                for &schedule in Schedule::FLOW {
                    for steps in [1, 4, 20] {
                        let options = Options {
                            schedule,
                            image_tokens: 1024,
                            ..Options::new(sampler, steps)
                        };
                        let mut scheduler = build(&options, &config).unwrap();
                        let (target, start) = ([0.5f32, -1.0], [0.3f32, 0.9]);
                        let mut latents = start.to_vec();
                        for call in 0..scheduler.timesteps().len() {
                            let velocity: Vec<f32> = start.iter().zip(target).map(|(n, x)| n - x).collect();
                            scheduler.step(call, &velocity, &mut latents, &mut ());
                        }
                        for (x, expected) in latents.iter().zip(target) {
                            assert!((x - expected).abs() < 0.02, "{sampler} {schedule} {steps}: {latents:?}");
                        }
                    }
                }
            }
        }
    }
}
