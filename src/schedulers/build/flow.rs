//! The samplers of flow-matching models.

use super::{Options, Run, doubled_but_first};
use crate::domain::sampling::{Sampler, Schedule};
use crate::schedulers::{Scheduler, SchedulerError, dpm_multistep::Levels, flow::Flow, flow_sigmas};

impl Run<'_> {
    pub(super) fn flow(&self) -> Result<Box<dyn Scheduler>, SchedulerError> {
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
