//! Which evaluations of a picture may reuse the deep features of earlier ones. The models measure how far the picture has
//! moved (`crate::models::Drift`); here stands what must be computed in full whatever they measure.

use super::denoise::Call;
use crate::domain::request::StepCache;
use crate::models::Plan;

/// The threshold of `auto` for UNets, measured: some 40 dB from the uncached picture (docs/step-cache.md).
pub const AUTO_UNET: f64 = 0.3;
/// The threshold of `auto` for FLUX: the value usual for first-block caches.
pub const AUTO_FLUX: f64 = 0.1;

/// The threshold of a choice, with the family's own for `auto`; `None` for off.
pub fn threshold(choice: StepCache, auto: f64) -> Option<f64> {
    match choice {
        StepCache::Off => None,
        StepCache::Auto => Some(auto),
        StepCache::Threshold(threshold) => Some(f64::from(threshold)),
    }
}

/// What an evaluation is told besides the latents: places of the prompt and, where it is guided, of the negative prompt
/// among the texts of the job.
pub type Told = (usize, Option<usize>);

/// Plans the evaluations of one picture and counts what was saved.
#[derive(Debug, Default)]
pub struct Reuse {
    told: Option<Told>,
    count: u32,
}

impl Reuse {
    /// The plan for `call`. The first and the last step are computed in full, and so is a step that is told something else
    /// than the one before.
    pub fn plan(&mut self, call: Call<'_>, told: Told) -> Plan {
        let edge = call.done == 0 || call.done + 1 >= call.scheduler.steps();
        let changed = self.told.replace(told) != Some(told);
        if edge || changed { Plan::Full } else { Plan::Measure }
    }

    /// Counts an evaluation that was `reused` or not.
    pub fn count(&mut self, reused: bool) {
        self.count += u32::from(reused);
    }

    /// Evaluations that were reused.
    pub fn counted(&self) -> u32 {
        self.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::sampling::Sampler;
    use crate::schedulers::{Options, SchedulerConfig, build};

    #[test]
    fn edges_and_changes_are_computed_in_full() {
        let scheduler = build(&Options::new(Sampler::Euler, 6), &SchedulerConfig::default()).unwrap();
        let mut reuse = Reuse::default();
        let mut plan = |done, told| {
            let scheduler = scheduler.as_ref();
            let number = done;
            reuse.plan(
                Call {
                    scheduler,
                    number,
                    done,
                },
                told,
            )
        };
        let same = (0, Some(0));
        assert_eq!(plan(0, same), Plan::Full);
        assert_eq!(plan(1, same), Plan::Measure);
        assert_eq!(plan(2, (1, Some(0))), Plan::Full);
        assert_eq!(plan(3, (1, Some(0))), Plan::Measure);
        assert_eq!(plan(4, (1, None)), Plan::Full);
        assert_eq!(plan(5, (1, None)), Plan::Full);
    }

    #[test]
    fn auto_is_the_familys_threshold() {
        assert_eq!(threshold(StepCache::Off, 0.3), None);
        assert_eq!(threshold(StepCache::Auto, 0.3), Some(0.3));
        assert_eq!(threshold(StepCache::Threshold(0.5), 0.3), Some(0.5));
    }
}
