//! The lengths that DoRA gives the rows or the columns of a changed weight.

use candle_core::{Result, Tensor};

use super::rows::Rows;

/// Lengths as a file has them.
#[derive(Clone, Debug)]
pub(super) enum Lengths {
    /// One for each row `(out)`.
    Rows(Tensor),
    /// One for each input channel `(in)`, over all outputs and kernel places.
    Columns {
        /// What they become.
        wanted: Tensor,
        /// Squares of what they are, where the weight is a part of a fused layer: its columns run through all the parts.
        squares: Option<Tensor>,
    },
}

impl Lengths {
    /// Lengths for a weight of so many rows. LyCORIS' `(1, in, ...)` are those of columns, and so are as many lengths as do
    /// not fit the rows; PEFT has rows only, in any shape (`always_rows`).
    pub fn new(all: &Tensor, rows: usize, always_rows: bool) -> Result<Self> {
        let of_columns = all.rank() > 1 && all.dim(0)? == 1 && rows > 1 && !always_rows;
        let flat = all.flatten_all()?;
        Ok(if flat.elem_count() == rows && !of_columns {
            Self::Rows(flat)
        } else {
            Self::Columns {
                wanted: flat,
                squares: None,
            }
        })
    }

    /// Those of some rows.
    pub fn part(&self, rows: &Rows) -> Result<Self> {
        match self {
            Self::Rows(all) => rows.of(all).map(Self::Rows),
            Self::Columns { .. } => Ok(self.clone()),
        }
    }

    /// `changed (out, in)` with these lengths.
    pub fn given_to(&self, changed: &Tensor) -> Result<Tensor> {
        let (rows, columns) = changed.dims2()?;
        let factor = match self {
            Self::Rows(wanted) => {
                let wanted = wanted.to_device(changed.device())?.reshape((rows, 1))?;
                wanted.div(&changed.sqr()?.sum_keepdim(1)?.sqrt()?)?
            }
            Self::Columns { wanted, squares } => {
                let squares = match squares {
                    Some(squares) => squares.clone(),
                    None => column_squares(changed, wanted.elem_count())?,
                };
                let factor = wanted.to_device(changed.device())?.div(&squares.sqrt()?)?;
                let inputs = factor.elem_count();
                let places = columns / inputs.max(1);
                factor
                    .reshape((1, inputs, 1))?
                    .broadcast_as((1, inputs, places))?
                    .reshape((1, columns))?
            }
        };
        changed.broadcast_mul(&factor)
    }
}

/// Squares of the lengths of each input channel of `weight (out, in * places)`.
pub(super) fn column_squares(weight: &Tensor, inputs: usize) -> Result<Tensor> {
    let (rows, columns) = weight.dims2()?;
    if inputs == 0 || !columns.is_multiple_of(inputs) {
        candle_core::bail!("{inputs} magnitudes do not fit a weight of {rows} by {columns}");
    }
    weight.sqr()?.sum(0)?.reshape((inputs, columns / inputs))?.sum(1)
}
