//! A place that tensors are read from by name.

use std::ops::Range;

use candle_core::quantized::GgmlDType;
use half::{bf16, f16};

use super::{Located, WeightsError};

/// How a tensor's numbers are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoredType {
    /// IEEE single.
    F32,
    /// IEEE double.
    F64,
    /// IEEE half.
    F16,
    /// bfloat16.
    Bf16,
    /// 8-bit float, 4 exponent bits.
    F8E4M3,
    /// 8-bit float, 5 exponent bits.
    F8E5M2,
    /// 64-bit integer (position ids in old files).
    I64,
    /// 32-bit integer.
    I32,
    /// A block format of GGUF.
    Ggml(GgmlDType),
    /// A type that no model computes with; its name in the file.
    Other(&'static str),
}

/// One tensor as its file has it: little-endian numbers, row-major.
#[derive(Clone, Debug)]
pub struct RawTensor {
    /// How the numbers are stored.
    pub stored: StoredType,
    /// Shape, outermost first (GGUF's reversed order is already turned round).
    pub shape: Vec<usize>,
    /// The bytes.
    pub bytes: Vec<u8>,
}

/// Room for numbers of a compute type.
#[derive(Debug)]
pub enum NumbersMut<'a> {
    /// IEEE single.
    F32(&'a mut [f32]),
    /// bfloat16.
    Bf16(&'a mut [bf16]),
    /// IEEE half.
    F16(&'a mut [f16]),
}

impl NumbersMut<'_> {
    /// Refuses a tensor of another length than there is room for.
    pub(super) fn check(&self, name: &str, shape: &[usize]) -> Result<(), WeightsError> {
        if self.len() == shape.iter().product::<usize>() {
            return Ok(());
        }
        Err(WeightsError::Shape {
            name: name.to_owned(),
            found: shape.to_vec(),
            expected: vec![self.len()],
        })
    }

    /// How many there is room for.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::F32(numbers) => numbers.len(),
            Self::Bf16(numbers) => numbers.len(),
            Self::F16(numbers) => numbers.len(),
        }
    }
}

/// A source of tensors by name: a safetensors file or a folder's shards, a GGUF file, a single-file checkpoint seen
/// through its key map, or tensors in memory.
///
/// Names are the ones that the model code asks for (diffusers' names); a source with other names inside maps them.
pub trait TensorSource {
    /// Every name it has, in no particular order.
    fn names(&self) -> Vec<String>;

    /// Told before a tensor is asked for by a model that wants this shape. Only sources that make their tensors up care.
    fn expect(&self, _name: &str, _shape: &[usize]) {}

    /// Shape and stored type, without reading the numbers; `None` if there is no such tensor.
    fn describe(&self, name: &str) -> Option<(Vec<usize>, StoredType)>;

    /// Where the tensor, or some rows of it, lie in a file as they are; `None` where they do not.
    ///
    /// # Errors
    /// [`WeightsError::Missing`], or the rows are not there.
    fn locate(&self, _name: &str, _rows: Option<Range<usize>>) -> Result<Option<Located<'_>>, WeightsError> {
        Ok(None)
    }

    /// Reads one tensor, straight from its range into one buffer. To be written by sources that do not locate everything.
    ///
    /// # Errors
    /// [`WeightsError::Missing`], or the reading failed.
    fn read(&self, name: &str) -> Result<RawTensor, WeightsError> {
        match self.locate(name, None)? {
            Some(located) => located.raw(),
            None => Err(WeightsError::Missing { name: name.to_owned() }),
        }
    }

    /// Reads one tensor, or some rows of it, as numbers of a compute type. Files convert piece by piece, so that no copy
    /// of their bytes is made.
    ///
    /// # Errors
    /// As [`TensorSource::read_rows`]; the stored type does not convert, or `into` has another length.
    fn read_numbers(&self, name: &str, rows: Option<Range<usize>>, into: NumbersMut<'_>) -> Result<(), WeightsError> {
        let located = self.locate(name, rows.clone())?;
        if let Some(located) = located.filter(Located::is_plain) {
            return located.read_all(into);
        }
        let raw = match rows {
            Some(rows) => self.read_rows(name, rows)?,
            None => self.read(name)?,
        };
        raw.fill(name, into)
    }

    /// Reads some rows (entries of the first dimension) of one tensor: a part of a fused projection.
    ///
    /// # Errors
    /// As [`TensorSource::read`]; the rows are not there.
    fn read_rows(&self, name: &str, rows: Range<usize>) -> Result<RawTensor, WeightsError> {
        if let Some(located) = self.locate(name, Some(rows.clone()))? {
            return located.raw();
        }
        let whole = self.read(name)?;
        let (shape, range) = row_range(name, &whole.shape, whole.bytes.len(), &rows)?;
        Ok(RawTensor {
            stored: whole.stored,
            shape,
            bytes: whole.bytes[range].to_vec(),
        })
    }
}

/// Shape of `rows` of a tensor, and where they lie in its bytes.
pub(super) fn row_range(
    name: &str,
    shape: &[usize],
    len: usize,
    rows: &Range<usize>,
) -> Result<(Vec<usize>, Range<usize>), WeightsError> {
    let count = shape.first().copied().unwrap_or(0);
    if count == 0 || rows.start > rows.end || rows.end > count || !len.is_multiple_of(count) {
        return Err(WeightsError::Shape {
            name: name.to_owned(),
            found: shape.to_vec(),
            expected: [&[rows.end], shape.get(1..).unwrap_or(&[])].concat(),
        });
    }
    let row = len / count;
    let mut part = shape.to_vec();
    part[0] = rows.len();
    Ok((part, rows.start * row..rows.end * row))
}
