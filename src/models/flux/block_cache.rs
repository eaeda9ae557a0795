//! First-block caching: between two steps of a run the blocks behind the first change the image's tokens by nearly the
//! same amount whenever the first block does, so that amount can be used again.

use candle_core::{Result, Tensor};

use super::super::{Drift, Plan};

/// What one run of one prompt remembers between its evaluations.
#[derive(Debug)]
pub struct BlockCache {
    drift: Drift,
    rest: Option<Tensor>,
}

impl BlockCache {
    /// Reuses while the relative changes of what the first block adds, summed since the last full evaluation, stay below
    /// `threshold`.
    pub fn new(threshold: f64) -> Self {
        Self {
            drift: Drift::new(threshold),
            rest: None,
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

    /// The image's tokens after all blocks: `after_first` plus what the blocks behind it did last time, or `rest()`.
    pub(super) fn recall_or(
        &mut self,
        before: &Tensor,
        after_first: &Tensor,
        rest: impl FnOnce() -> Result<Tensor>,
    ) -> Result<Tensor> {
        let change = (after_first - before)?;
        let allowed = self.drift.allows(&change, self.rest.is_some())?;
        if let Some(kept) = self.rest.as_ref().filter(|_| allowed) {
            return after_first + kept;
        }
        let done = rest()?;
        self.rest = Some((&done - after_first)?);
        Ok(done)
    }
}
