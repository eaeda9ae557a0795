//! fp8 weights with a scale beside each (`x.weight` and `x.weight_scale`, which ComfyUI called `x.scale_weight` at first). Numbers are
//! scaled while they are read; who asks for bytes gets them in bf16.

use std::ops::Range;
use std::rc::Rc;

use super::{Located, SafeTensors, StoredType, TensorSource, WeightsError};

/// A source whose scaled fp8 tensors are seen as their true numbers, in bf16.
pub(super) struct ScaledFp8(SafeTensors);

const SCALES: [&str; 2] = [".weight_scale", ".scale_weight"];

/// Wraps `inner` if it has scales.
pub(super) fn with_scales(inner: SafeTensors) -> Rc<dyn TensorSource> {
    if inner
        .names()
        .iter()
        .any(|name| SCALES.iter().any(|scale| name.ends_with(scale)))
    {
        Rc::new(ScaledFp8(inner))
    } else {
        Rc::new(inner)
    }
}

impl ScaledFp8 {
    /// Name of the scale that belongs to a weight stored so, if it has one.
    fn scale_name(&self, name: &str, stored: StoredType) -> Option<String> {
        let layer = name.strip_suffix(".weight").filter(|_| is_fp8(stored))?;
        SCALES
            .iter()
            .map(|scale| format!("{layer}{scale}"))
            .find(|scale| self.0.describe(scale).is_some())
    }

    fn scale(&self, name: &str, stored: StoredType) -> Result<Option<f32>, WeightsError> {
        let Some(scale) = self.scale_name(name, stored) else {
            return Ok(None);
        };
        let numbers = self.0.read(&scale)?.to_f32(&scale)?;
        match numbers.as_slice() {
            [one] => Ok(Some(*one)),
            _ => Err(WeightsError::Shape {
                name: scale,
                found: vec![numbers.len()],
                expected: vec![1],
            }),
        }
    }
}

fn is_fp8(stored: StoredType) -> bool {
    matches!(stored, StoredType::F8E4M3 | StoredType::F8E5M2)
}

impl TensorSource for ScaledFp8 {
    fn names(&self) -> Vec<String> {
        self.0.names()
    }

    fn describe(&self, name: &str) -> Option<(Vec<usize>, StoredType)> {
        let (shape, stored) = self.0.describe(name)?;
        let scaled = self.scale_name(name, stored).is_some();
        Some((shape, if scaled { StoredType::Bf16 } else { stored }))
    }

    fn locate(&self, name: &str, rows: Option<Range<usize>>) -> Result<Option<Located<'_>>, WeightsError> {
        let scale = match self.0.describe(name) {
            Some((_, stored)) => self.scale(name, stored)?,
            None => None,
        };
        // Any 8-bit number is one of every compute type too, so that the product alone is rounded.
        let located = self.0.locate(name, rows)?;
        Ok(match scale {
            Some(scale) => located.map(|located| located.times(scale)),
            None => located,
        })
    }
}
