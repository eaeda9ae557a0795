//! From a file's bytes to numbers of the compute type, on every core.

use std::borrow::Cow;
use std::sync::LazyLock;
use std::thread;

use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use candle_core::{DType, Device, Tensor};
use half::slice::HalfFloatSliceExt;
use half::vec::HalfBitsVecExt;
use half::{bf16, f16};
use sd_kernels::{Stored, ViewMut, read_stored};

use super::finite::all_finite;
use super::storage::threads;
use super::{NumbersMut, RawTensor, StoredType, WeightsError};

/// Numbers converted at a time: they stay in the first cache.
const CHUNK: usize = 2048;
/// Numbers from which on a second thread is worth its start.
const PARALLEL_FROM: usize = 1 << 20;

impl RawTensor {
    /// Converts to a tensor of `dtype` (`F32`, `BF16` or `F16`) on `device`; `name` is for the error message.
    ///
    /// # Errors
    /// The stored type is no number type, or `dtype` is no compute type.
    pub fn to_tensor(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor, WeightsError> {
        let shape = self.shape.clone();
        let plain = float_width(self.stored).is_some();
        let tensor = match dtype {
            DType::F32 => Tensor::from_vec(self.to_f32(name)?, shape, device)?,
            DType::BF16 if plain => Tensor::from_vec(self.numbers::<bf16>(), shape, device)?,
            DType::F16 if plain => Tensor::from_vec(self.numbers::<f16>(), shape, device)?,
            DType::BF16 | DType::F16 => {
                let wide = Tensor::from_vec(self.to_f32(name)?, shape, &Device::Cpu)?;
                wide.to_dtype(dtype)?.to_device(device)?
            }
            _ => return Err(self.wrong(name)),
        };
        Ok(tensor)
    }

    /// The numbers as `f32`, row-major; quantised blocks are expanded.
    ///
    /// # Errors
    /// The stored type is no number type.
    pub fn to_f32(&self, name: &str) -> Result<Vec<f32>, WeightsError> {
        if let StoredType::Ggml(kind) = self.stored {
            return expand(kind, &self.bytes, &self.shape);
        }
        float_width(self.stored).ok_or_else(|| self.wrong(name))?;
        Ok(self.numbers())
    }

    /// Plain numbers, converted by several threads if they are many.
    fn numbers<T: Number>(&self) -> Vec<T> {
        let count = self.shape.iter().product();
        let mut numbers = T::zeros(count);
        let width = float_width(self.stored).unwrap_or(0);
        if count < PARALLEL_FROM {
            T::convert(self.stored, &self.bytes, &mut numbers);
            return numbers;
        }
        let share = count.div_ceil(threads()).next_multiple_of(CHUNK);
        thread::scope(|scope| {
            for (out, bytes) in numbers.chunks_mut(share).zip(self.bytes.chunks(share * width)) {
                scope.spawn(move || T::convert(self.stored, bytes, out));
            }
        });
        numbers
    }

    /// Writes the numbers into `into`.
    ///
    /// # Errors
    /// The stored type is no number type, or the lengths differ.
    pub(super) fn fill(&self, name: &str, into: NumbersMut<'_>) -> Result<(), WeightsError> {
        let wide = self.to_f32(name)?;
        into.check(name, &self.shape)?;
        match into {
            NumbersMut::F32(out) => out.copy_from_slice(&wide),
            NumbersMut::Bf16(out) => out.convert_from_f32_slice(&wide),
            NumbersMut::F16(out) => out.convert_from_f32_slice(&wide),
        }
        Ok(())
    }

    /// The GGUF blocks as candle's quantised tensor; `None` if it is stored as plain numbers.
    ///
    /// # Errors
    /// The blocks do not fit the shape.
    pub fn to_blocks(&self, device: &Device) -> Result<Option<QTensor>, WeightsError> {
        let StoredType::Ggml(kind) = self.stored else {
            return Ok(None);
        };
        check_blocks(kind, &self.bytes, &self.shape)?;
        let storage = QStorage::from_data(Cow::Borrowed(&self.bytes), device, kind)?;
        Ok(Some(QTensor::new(storage, self.shape.clone())?))
    }

    fn wrong(&self, name: &str) -> WeightsError {
        WeightsError::Type {
            name: name.to_owned(),
            found: format!("{:?}", self.stored),
        }
    }
}

/// A number that models compute with.
pub(super) trait Number: Copy + Send {
    /// So many zeros, in memory that is not touched before it is written to.
    fn zeros(count: usize) -> Vec<Self>;

    /// Converts as many numbers as `out` has room for, and returns whether all of them are finite; nothing if `stored` is no plain
    /// number type.
    fn convert(stored: StoredType, bytes: &[u8], out: &mut [Self]) -> bool;

    /// The product with `scale`, rounded once.
    fn times(self, scale: f32) -> Self;
}

impl Number for f32 {
    fn zeros(count: usize) -> Vec<Self> {
        vec![0.0; count]
    }

    fn convert(stored: StoredType, bytes: &[u8], out: &mut [Self]) -> bool {
        widen(stored, bytes, out)
    }

    fn times(self, scale: f32) -> Self {
        self * scale
    }
}

impl Number for bf16 {
    fn zeros(count: usize) -> Vec<Self> {
        vec![0_u16; count].reinterpret_into()
    }

    fn convert(stored: StoredType, bytes: &[u8], out: &mut [Self]) -> bool {
        match kernel_type(stored) {
            Some(kind) => read_stored(kind, bytes, ViewMut::Bf16(out)).unwrap_or(false),
            None => narrow(stored, bytes, out, Self::from_f32),
        }
    }

    fn times(self, scale: f32) -> Self {
        Self::from_f32(self.to_f32() * scale)
    }
}

impl Number for f16 {
    fn zeros(count: usize) -> Vec<Self> {
        vec![0_u16; count].reinterpret_into()
    }

    fn convert(stored: StoredType, bytes: &[u8], out: &mut [Self]) -> bool {
        if stored == StoredType::F16 {
            copy(bytes, out, Self::from_le_bytes);
            return all_finite(stored, bytes);
        }
        narrow(stored, bytes, out, Self::from_f32)
    }

    fn times(self, scale: f32) -> Self {
        Self::from_f32(self.to_f32() * scale)
    }
}

fn narrow<T>(stored: StoredType, bytes: &[u8], out: &mut [T], write: impl Fn(f32) -> T) -> bool {
    let Some(width) = float_width(stored) else {
        return true;
    };
    let mut buffer = [0_f32; CHUNK];
    let mut finite = true;
    for (bytes, out) in bytes.chunks(CHUNK * width).zip(out.chunks_mut(CHUNK)) {
        let buffer = &mut buffer[..out.len()];
        finite &= widen(stored, bytes, buffer);
        for (out, number) in out.iter_mut().zip(buffer) {
            *out = write(*number);
        }
    }
    finite
}

fn copy<const N: usize, T>(bytes: &[u8], out: &mut [T], read: impl Fn([u8; N]) -> T) {
    let (numbers, _) = bytes.as_chunks::<N>();
    for (out, number) in out.iter_mut().zip(numbers) {
        *out = read(*number);
    }
}

/// The types that the kernels read.
fn kernel_type(stored: StoredType) -> Option<Stored> {
    match stored {
        StoredType::F32 => Some(Stored::F32),
        StoredType::F16 => Some(Stored::F16),
        StoredType::Bf16 => Some(Stored::Bf16),
        _ => None,
    }
}

/// Bytes of one number, for the types that [`widen`] knows.
pub(super) fn float_width(stored: StoredType) -> Option<usize> {
    match stored {
        StoredType::F64 => Some(8),
        StoredType::F32 => Some(4),
        StoredType::F16 | StoredType::Bf16 => Some(2),
        StoredType::F8E4M3 | StoredType::F8E5M2 => Some(1),
        StoredType::I64 | StoredType::I32 | StoredType::Ggml(_) | StoredType::Other(_) => None,
    }
}

fn widen(stored: StoredType, bytes: &[u8], out: &mut [f32]) -> bool {
    if let Some(kind) = kernel_type(stored) {
        return read_stored(kind, bytes, ViewMut::F32(out)).unwrap_or(false);
    }
    match stored {
        StoredType::F64 => copy(bytes, out, |b| f64::from_le_bytes(b) as f32),
        StoredType::F8E4M3 => look_up(&E4M3, bytes, out),
        StoredType::F8E5M2 => look_up(&E5M2, bytes, out),
        _ => return true,
    }
    all_finite(stored, bytes)
}

fn look_up(table: &[f32; 256], bytes: &[u8], out: &mut [f32]) {
    for (out, byte) in out.iter_mut().zip(bytes) {
        *out = table[usize::from(*byte)];
    }
}

/// float8_e4m3fn: bias 7, no infinity, all ones is NaN.
static E4M3: LazyLock<[f32; 256]> = LazyLock::new(|| {
    std::array::from_fn(|bits| {
        let (sign, exponent, mantissa) = (bits >> 7, (bits >> 3) & 15, (bits & 7) as f32);
        let size = match (exponent, bits & 7) {
            (15, 7) => f32::NAN,
            (0, _) => mantissa / 8.0 * 2_f32.powi(-6),
            _ => (1.0 + mantissa / 8.0) * 2_f32.powi(exponent as i32 - 7),
        };
        if sign == 1 { -size } else { size }
    })
});

/// float8_e5m2: the upper half of an IEEE half.
static E5M2: LazyLock<[f32; 256]> =
    LazyLock::new(|| std::array::from_fn(|bits| f16::from_bits((bits as u16) << 8).to_f32()));

fn check_blocks(kind: GgmlDType, bytes: &[u8], shape: &[usize]) -> Result<(), WeightsError> {
    let count: usize = shape.iter().product();
    let fits = count.is_multiple_of(kind.block_size()) && bytes.len() == count / kind.block_size() * kind.type_size();
    if fits {
        return Ok(());
    }
    Err(WeightsError::Type {
        name: format!("{kind:?} of shape {shape:?}"),
        found: format!("{} bytes", bytes.len()),
    })
}

fn expand(kind: GgmlDType, bytes: &[u8], shape: &[usize]) -> Result<Vec<f32>, WeightsError> {
    check_blocks(kind, bytes, shape)?;
    let storage = QStorage::from_data(Cow::Borrowed(bytes), &Device::Cpu, kind)?;
    // Flat: the last dimension of a convolution's weight is no multiple of a block.
    let count: usize = shape.iter().product();
    Ok(QTensor::new(storage, count)?.dequantize(&Device::Cpu)?.to_vec1()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(stored: StoredType, shape: &[usize], bytes: Vec<u8>) -> RawTensor {
        RawTensor {
            stored,
            shape: shape.to_vec(),
            bytes,
        }
    }

    #[test]
    fn float8_tables_hold_the_known_values() {
        // torch.tensor(bits, dtype=torch.uint8).view(torch.float8_e4m3fn).float() and the same for float8_e5m2.
        assert_eq!(
            [0x00, 0x01, 0x08, 0x38, 0x7e, 0xb8].map(|b: usize| E4M3[b]),
            [0.0, 0.001953125, 0.015625, 1.0, 448.0, -1.0]
        );
        assert!(E4M3[0x7f].is_nan());
        assert_eq!(
            [0x01, 0x3c, 0x7b, 0xc2].map(|b: usize| E5M2[b]),
            [1.5258789e-05, 1.0, 57344.0, -3.0]
        );
    }

    #[test]
    fn long_tensors_come_out_like_short_ones() {
        let count = PARALLEL_FROM + 12345;
        let numbers: Vec<f32> = (0..count).map(|i| (i as f32 - 500_000.0) * 1.0e-3).collect();
        let bytes: Vec<u8> = numbers.iter().flat_map(|f| f16::from_f32(*f).to_le_bytes()).collect();
        let tensor = raw(StoredType::F16, &[count], bytes);
        let wide = tensor.to_f32("x").unwrap();
        assert!(wide.iter().zip(&numbers).all(|(a, b)| *a == f16::from_f32(*b).to_f32()));
        let narrow = tensor
            .to_tensor("x", DType::BF16, &Device::Cpu)
            .unwrap()
            .to_vec1::<bf16>()
            .unwrap();
        assert!(narrow.iter().zip(&wide).all(|(a, b)| *a == bf16::from_f32(*b)));
        let same = tensor
            .to_tensor("x", DType::F16, &Device::Cpu)
            .unwrap()
            .to_vec1::<f16>()
            .unwrap();
        assert!(same.iter().zip(&wide).all(|(a, b)| a.to_f32() == *b));
    }

    #[test]
    fn integers_and_misfit_blocks_are_refused() {
        let ints = raw(StoredType::I64, &[1], vec![0; 8]);
        assert!(matches!(
            ints.to_tensor("ids", DType::F32, &Device::Cpu),
            Err(WeightsError::Type { .. })
        ));
        assert!(matches!(
            ints.to_tensor("ids", DType::BF16, &Device::Cpu),
            Err(WeightsError::Type { .. })
        ));
        let blocks = raw(StoredType::Ggml(GgmlDType::Q4_0), &[2, 32], vec![0; 18]);
        assert!(blocks.to_f32("x").is_err() && blocks.to_blocks(&Device::Cpu).is_err());
    }
}
