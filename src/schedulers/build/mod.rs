//! From names and the model's configuration to a scheduler.

mod discrete;
mod exploding;
mod flow;
mod solvers;
#[cfg(test)]
mod tests;

use super::{
    FinalSigmas, NoiseSource, Scheduler, SchedulerConfig, SchedulerError, Spacing,
    alphas::ZeroSnr,
    euler::Euler,
    lms::Lms,
    noise_levels::{Spread, Table},
    plan::{Plan, skipped_steps},
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

    fn plan(&self, calls: &[f32], order: usize) -> Plan {
        Plan::new(calls, self.options.steps, order, self.skipped)
    }

    fn clip(&self, by_default: bool) -> Option<f32> {
        let clip = self.config.clip_sample.unwrap_or(by_default);
        clip.then_some(self.config.clip_sample_range)
    }
}

/// A source for runs that draw no noise.
impl NoiseSource for () {
    fn fill(&mut self, out: &mut [f32]) {
        out.fill(0.0);
    }
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

fn to_f32(values: &[f64]) -> Vec<f32> {
    values.iter().map(|v| *v as f32).collect()
}
