//! Which rows of a file's layer belong to one layer of the model: fused projections are several layers in one.

use candle_core::{Result, Tensor};

/// Rows of a matrix that has those of all its parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rows {
    /// The first of them.
    pub start: usize,
    /// How many.
    pub count: usize,
    /// How many the whole has.
    pub total: usize,
    /// First and second half of the whole change places first.
    pub halves_swapped: bool,
}

impl Rows {
    /// Whether they are the whole as it is.
    pub fn is_all(&self) -> bool {
        self.count == self.total && !self.halves_swapped
    }

    /// These rows of a matrix that has all of them.
    ///
    /// # Errors
    /// They are not there.
    pub fn of(&self, all: &Tensor) -> Result<Tensor> {
        let rows = if self.halves_swapped {
            let half = self.total / 2;
            Tensor::cat(&[all.narrow(0, half, self.total - half)?, all.narrow(0, 0, half)?], 0)?
        } else {
            all.clone()
        };
        rows.narrow(0, self.start, self.count)?.contiguous()
    }
}
