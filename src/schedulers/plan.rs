//! The model calls of a run and the steps they make up.

/// The calls that remain once img2img has skipped the noisiest steps.
pub(super) struct Plan {
    /// What the model is told at each call of this run.
    pub timesteps: Vec<f32>,
    /// Index of the first call of this run within the full schedule.
    pub begin: usize,
    /// Steps of this run.
    pub steps: usize,
    done: Vec<usize>,
}

impl Plan {
    /// `timesteps`: the calls of the full schedule. `steps` of `order` calls each; `skipped` steps are left out at the
    /// start. Calls beyond `steps * order` count as preparation of the first step.
    pub fn new(timesteps: &[f32], steps: usize, order: usize, skipped: usize) -> Self {
        let begin = if skipped < steps {
            skipped * order
        } else {
            timesteps.len()
        };
        let timesteps = timesteps[begin..].to_vec();
        let steps = steps - skipped.min(steps);
        let warmup = timesteps.len().saturating_sub(steps * order);
        let mut count = 0;
        let done = (0..timesteps.len())
            .map(|i| {
                let ends = i + 1 == timesteps.len() || (i + 1 > warmup && (i + 1).is_multiple_of(order));
                count += usize::from(ends);
                count.min(steps)
            })
            .collect();
        Self {
            timesteps,
            begin,
            steps,
            done,
        }
    }

    /// As [`Plan::new`], with the steps that each call completes given.
    pub fn with_done(timesteps: Vec<f32>, steps: usize, done: Vec<usize>) -> Self {
        Self {
            timesteps,
            begin: 0,
            steps,
            done,
        }
    }

    pub fn steps_done(&self, call: usize) -> usize {
        self.done.get(call).copied().unwrap_or(self.steps)
    }
}

/// Steps that img2img skips at `strength`. Stable Diffusion's pipelines truncate the steps to do, FLUX's the steps to
/// skip, so that 10 steps at 0.75 do 7 and 8: both as diffusers has them.
pub(super) fn skipped_steps(steps: usize, strength: f64, flow: bool) -> usize {
    let todo = (steps as f64 * strength).min(steps as f64);
    if flow {
        (steps as f64 - todo).max(0.0) as usize
    } else {
        steps - todo as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strength_skips_as_the_pipelines_do() {
        assert_eq!(skipped_steps(10, 0.75, false), 3);
        assert_eq!(skipped_steps(10, 0.75, true), 2);
        assert_eq!(skipped_steps(30, 1.0, false), 0);
        assert_eq!(skipped_steps(4, 0.0, false), 4);
        assert_eq!(skipped_steps(4, 0.1, false), 4);
    }

    #[test]
    fn two_calls_make_a_step_but_the_last() {
        let plan = Plan::new(&[9.0, 8.0, 8.0, 7.0, 7.0], 3, 2, 0);
        assert_eq!(plan.done, [0, 1, 1, 2, 3]);
        let plan = Plan::new(&[9.0, 8.0, 8.0, 7.0, 7.0], 3, 2, 1);
        assert_eq!(plan.timesteps, [8.0, 7.0, 7.0]);
        assert_eq!((plan.begin, plan.steps), (2, 2));
        assert_eq!(plan.done, [0, 1, 2]);
    }

    #[test]
    fn a_call_too_many_prepares_the_first_step() {
        let plan = Plan::new(&[9.0, 8.0, 8.0, 7.0], 3, 1, 0);
        assert_eq!(plan.done, [0, 1, 2, 3]);
    }
}
