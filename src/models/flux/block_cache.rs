//! First-block caching: between two steps of a run the blocks behind the first change the image's tokens by nearly the
//! same amount whenever the first block does, so that amount can be used again.

use candle_core::{DType, Result, Tensor};

/// What one run of one prompt remembers between its evaluations.
#[derive(Debug)]
pub struct BlockCache {
    threshold: f64,
    first: Option<Tensor>,
    rest: Option<Tensor>,
    drift: f64,
    reused: usize,
}

impl BlockCache {
    /// Reuses while the relative changes of the first block's output, summed since the last full evaluation, stay below
    /// `threshold`.
    pub fn new(threshold: f64) -> Self {
        Self {
            threshold,
            first: None,
            rest: None,
            drift: 0.0,
            reused: 0,
        }
    }

    /// Evaluations that were answered from memory.
    pub fn reused(&self) -> usize {
        self.reused
    }

    /// The image's tokens after all blocks: `after_first` plus what the blocks behind it did last time, or `rest()`.
    pub(super) fn recall_or(
        &mut self,
        before: &Tensor,
        after_first: &Tensor,
        rest: impl FnOnce() -> Result<Tensor>,
    ) -> Result<Tensor> {
        let change = (after_first - before)?;
        if let (Some(last), Some(kept)) = (&self.first, &self.rest)
            && last.dims() == change.dims()
        {
            self.drift += relative_change(&change, last)?;
            if self.drift < self.threshold {
                self.reused += 1;
                self.first = Some(change);
                return after_first + kept;
            }
        }
        let done = rest()?;
        self.rest = Some((&done - after_first)?);
        self.first = Some(change);
        self.drift = 0.0;
        Ok(done)
    }
}

/// Mean absolute difference over mean absolute value.
fn relative_change(new: &Tensor, old: &Tensor) -> Result<f64> {
    let mean = |x: Tensor| x.to_dtype(DType::F32)?.abs()?.mean_all()?.to_scalar::<f32>();
    let size = f64::from(mean(old.clone())?);
    if size == 0.0 {
        Ok(f64::INFINITY)
    } else {
        Ok(f64::from(mean((new - old)?)?) / size)
    }
}
