//! DeepCache with a measure: the first residual blocks of the way down tell how far the picture has moved, and while that
//! is little, the last blocks of the way up work on what came from below last time.

use candle_core::{Result, Tensor};

use super::super::{Drift, Plan};

/// What one run remembers between its evaluations. Both halves of a guided batch share one decision.
#[derive(Debug)]
pub struct DeepCache {
    drift: Drift,
    from_below: Option<Tensor>,
}

impl DeepCache {
    /// Reuses while the relative changes of the first blocks' output, summed since the last full evaluation, stay below
    /// `threshold`.
    pub fn new(threshold: f64) -> Self {
        Self {
            drift: Drift::new(threshold),
            from_below: None,
        }
    }

    /// Says how the next evaluations decide.
    pub fn plan(&mut self, plan: Plan) {
        self.drift.plan(plan);
    }

    /// Whether the last evaluation was answered from memory.
    pub fn reused(&self) -> bool {
        self.drift.reused()
    }

    /// What comes from below: of the last full evaluation if `signal` allows it, or `below()`.
    pub(super) fn recall_or(&mut self, signal: &Tensor, below: impl FnOnce() -> Result<Tensor>) -> Result<Tensor> {
        let allowed = self.drift.allows(signal, self.from_below.is_some())?;
        if let Some(kept) = self.from_below.as_ref().filter(|_| allowed) {
            return Ok(kept.clone());
        }
        let done = below()?;
        self.from_below = Some(done.clone());
        Ok(done)
    }
}
