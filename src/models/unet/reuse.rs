//! Reuse of deep features (after DeepCache): from one step of a run to the next the deep levels of a UNet change little, so
//! that the outermost blocks can run on what the levels below gave a step ago. Here it is decided step by step: the first
//! block always runs, and its output tells how much has changed.

use candle_core::{DType, Result, Tensor};

/// What one run remembers between its evaluations.
#[derive(Debug)]
pub struct FeatureCache {
    threshold: f64,
    /// What the first block did at the last evaluation.
    first: Option<Tensor>,
    /// What came from the levels below at the last full evaluation.
    deep: Option<Tensor>,
    drift: f64,
    reused: usize,
}

impl FeatureCache {
    /// Reuses while the relative changes of the first block's work, summed since the last full evaluation, stay below
    /// `threshold`.
    pub fn new(threshold: f64) -> Self {
        Self {
            threshold,
            first: None,
            deep: None,
            drift: 0.0,
            reused: 0,
        }
    }

    /// Evaluations whose deep levels were not computed.
    pub fn reused(&self) -> usize {
        self.reused
    }

    /// The deep features to go on with, if they are still good: the first block made `after` of `before`.
    pub(super) fn recall(&mut self, before: &Tensor, after: &Tensor) -> Result<Option<Tensor>> {
        let work = if before.dims() == after.dims() {
            (after - before)?
        } else {
            after.clone()
        };
        let known = self.first.replace(work.clone());
        let (Some(known), Some(deep)) = (known, &self.deep) else {
            return Ok(None);
        };
        if known.dims() != work.dims() {
            return Ok(None);
        }
        self.drift += relative_change(&work, &known)?;
        if self.drift >= self.threshold {
            return Ok(None);
        }
        self.reused += 1;
        Ok(Some(deep.clone()))
    }

    /// Remembers the deep features of a full evaluation.
    pub(super) fn store(&mut self, deep: &Tensor) {
        self.deep = Some(deep.clone());
        self.drift = 0.0;
    }
}

/// Mean absolute difference over mean absolute value.
fn relative_change(new: &Tensor, old: &Tensor) -> Result<f64> {
    let mean = |x: Tensor| x.to_dtype(DType::F32)?.abs()?.mean_all()?.to_scalar::<f32>();
    let size = f64::from(mean(old.clone())?);
    if size == 0.0 {
        return Ok(f64::INFINITY);
    }
    Ok(f64::from(mean((new - old)?)?) / size)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn full(value: f32) -> Tensor {
        Tensor::full(value, (1, 2, 2, 3), &Device::Cpu).unwrap()
    }

    #[test]
    fn small_changes_add_up_until_everything_is_computed_again() {
        let mut cache = FeatureCache::new(0.25);
        let zero = full(0.0);
        assert!(cache.recall(&zero, &full(1.0)).unwrap().is_none());
        cache.store(&full(7.0));
        assert!(cache.recall(&zero, &full(1.1)).unwrap().is_some());
        assert!(cache.recall(&zero, &full(1.21)).unwrap().is_some());
        assert!(cache.recall(&zero, &full(1.331)).unwrap().is_none());
        cache.store(&full(8.0));
        assert!(cache.recall(&zero, &full(1.4)).unwrap().is_some());
        assert_eq!(cache.reused(), 3);
    }

    #[test]
    fn another_batch_is_computed_in_full() {
        let mut cache = FeatureCache::new(10.0);
        let two = Tensor::cat(&[full(1.0), full(1.0)], 0).unwrap();
        cache.recall(&two.zeros_like().unwrap(), &two).unwrap();
        cache.store(&two);
        assert!(cache.recall(&full(0.0), &full(1.0)).unwrap().is_none());
    }
}
