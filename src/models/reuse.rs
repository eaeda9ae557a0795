//! When the deep part of a denoiser may be left out: a cheap first part, its signal, is computed at each step, and as long
//! as it hardly moves, what the deep part gave last time is used again.

use candle_core::{DType, Result, Tensor};

/// How the next evaluation may use what the last ones left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Plan {
    /// Computes everything, and remembers it.
    Full,
    /// Uses the memory where the signal says so.
    #[default]
    Measure,
    /// Uses the memory if there is any: another evaluation of the same step did.
    Follow,
}

/// Watches a signal over the evaluations of one picture.
#[derive(Debug)]
pub struct Drift {
    threshold: f64,
    plan: Plan,
    last: Option<Tensor>,
    sum: f64,
    reused: bool,
}

impl Drift {
    /// Allows reuse while the relative changes of the signal from each evaluation to the next, summed since the last full
    /// one, stay below `threshold`.
    pub fn new(threshold: f64) -> Self {
        Self {
            threshold,
            plan: Plan::default(),
            last: None,
            sum: 0.0,
            reused: false,
        }
    }

    /// Says how the next evaluations decide.
    pub fn plan(&mut self, plan: Plan) {
        self.plan = plan;
    }

    /// Whether the last evaluation was answered from memory.
    pub fn reused(&self) -> bool {
        self.reused
    }

    /// Takes the signal of this evaluation; whether its deep part may be left out. `remembered`: there is something to use.
    pub(super) fn allows(&mut self, signal: &Tensor, remembered: bool) -> Result<bool> {
        let comparable = remembered && self.last.as_ref().is_some_and(|last| last.dims() == signal.dims());
        self.reused = match (self.plan, &self.last) {
            (Plan::Measure, Some(last)) if comparable => {
                self.sum += relative_change(signal, last)?;
                self.sum < self.threshold
            }
            (Plan::Follow, _) => comparable,
            (Plan::Full | Plan::Measure, _) => false,
        };
        if !self.reused {
            self.sum = 0.0;
        }
        self.last = Some(signal.clone());
        Ok(self.reused)
    }
}

/// Mean absolute difference over mean absolute value; infinite where the old one is zero, and where either is not finite.
fn relative_change(new: &Tensor, old: &Tensor) -> Result<f64> {
    let mean = |x: &Tensor| x.abs()?.mean_all()?.to_scalar::<f32>();
    let (new, old) = (new.to_dtype(DType::F32)?, old.to_dtype(DType::F32)?);
    let change = f64::from(mean(&(&new - &old)?)?) / f64::from(mean(&old)?);
    Ok(if change.is_finite() { change } else { f64::INFINITY })
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn signal(value: f32) -> Tensor {
        Tensor::full(value, (2, 3), &Device::Cpu).unwrap()
    }

    fn allowed(drift: &mut Drift, values: &[f32]) -> Vec<bool> {
        let one = |value: &f32| drift.allows(&signal(*value), true).unwrap();
        values.iter().map(one).collect()
    }

    #[test]
    fn changes_add_up_until_the_threshold_and_begin_anew_after_it() {
        let mut drift = Drift::new(0.25);
        // Each step changes by a tenth or so: two fit, the third is full and the count begins again.
        let found = allowed(&mut drift, &[1.0, 1.1, 1.2, 1.3, 1.4, 1.5]);
        assert_eq!(found, [false, true, true, false, true, true]);
        assert!(drift.reused());
    }

    #[test]
    fn a_threshold_of_zero_never_reuses() {
        assert_eq!(allowed(&mut Drift::new(0.0), &[1.0, 1.0, 1.0]), [false; 3]);
    }

    #[test]
    fn numbers_that_say_nothing_are_no_reason_to_reuse() {
        for value in [0.0, f32::NAN] {
            assert_eq!(allowed(&mut Drift::new(9.0), &[value, value]), [false; 2], "{value}");
        }
        let mut other_batch = Drift::new(9.0);
        other_batch.allows(&signal(1.0), true).unwrap();
        let half = signal(1.0).narrow(0, 0, 1).unwrap();
        assert!(!other_batch.allows(&half, true).unwrap());
    }

    #[test]
    fn a_plan_comes_before_the_measure() {
        let mut drift = Drift::new(9.0);
        drift.plan(Plan::Full);
        assert_eq!(allowed(&mut drift, &[1.0, 1.0]), [false; 2]);
        drift.plan(Plan::Follow);
        assert_eq!(allowed(&mut drift, &[70.0]), [true]);
        assert!(!drift.allows(&signal(70.0), false).unwrap());
    }
}
