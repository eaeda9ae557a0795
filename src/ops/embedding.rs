//! Rows of a table by number.

use std::borrow::Cow;

use candle_core::quantized::{QStorage, QTensor};
use candle_core::{DType, Result, Tensor};

use crate::weights::{LoadResult, StoredType, Weights};

#[derive(Debug)]
enum Table {
    Dense(Tensor),
    Quantised(QTensor, DType),
}

/// A table of vectors, dense or quantised.
#[derive(Debug)]
pub struct Embedding {
    table: Table,
}

impl Embedding {
    /// Reads `weight` `(rows, width)`.
    ///
    /// # Errors
    /// It is missing or does not fit.
    pub fn load(weights: &Weights, rows: usize, width: usize) -> LoadResult<Self> {
        let raw = weights.raw("weight", &[rows, width])?;
        let table = match raw.stored {
            StoredType::Ggml(format) if width.is_multiple_of(format.block_size()) && format.block_size() > 1 => {
                let storage = QStorage::from_data(Cow::Borrowed(&raw.bytes), weights.device(), format)?;
                Table::Quantised(QTensor::new(storage, (rows, width))?, weights.dtype())
            }
            _ => Table::Dense(raw.to_tensor(&weights.path("weight"), weights.dtype(), weights.device())?),
        };
        Ok(Self { table })
    }

    /// Row numbers of any shape (`U32`) to that shape with the table's width behind, in the compute type.
    ///
    /// # Errors
    /// A number is past the table's end, or the device refused.
    pub fn forward(&self, rows: &Tensor) -> Result<Tensor> {
        match &self.table {
            Table::Dense(table) => {
                let mut shape = rows.dims().to_vec();
                shape.push(table.dim(1)?);
                table.index_select(&rows.flatten_all()?, 0)?.reshape(shape)
            }
            Table::Quantised(table, dtype) => table.embedding(rows)?.to_dtype(*dtype),
        }
    }
}
