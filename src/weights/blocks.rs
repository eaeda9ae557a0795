//! GGUF's blocks, read straight to where products find them.

use std::borrow::Cow;

use candle_core::quantized::{GgmlDType, QStorage, QTensor, QuantizedType};
use candle_core::{CpuStorage, Result};
use half::f16;
use sd_kernels::AlignedBytes;

use super::{Located, WeightsError};

/// The blocks of one tensor in the CPU's memory. Our kernels read them in place; candle's own storage could only be made by
/// copying them. What candle computes with them (when kernels are turned off, and when a LoRA wants plain numbers) it
/// computes with such a copy, which is dropped again.
pub(super) struct Blocks {
    format: GgmlDType,
    bytes: AlignedBytes,
}

impl Blocks {
    /// All blocks of a tensor of `count` numbers, read by every core.
    ///
    /// # Errors
    /// The file cannot be read, holds scales that are not finite, or another number of blocks.
    pub(super) fn read(
        located: &Located<'_>,
        format: GgmlDType,
        count: usize,
    ) -> std::result::Result<QStorage, WeightsError> {
        let bytes = located.byte_count();
        if count / format.block_size() * format.type_size() != bytes {
            return Err(WeightsError::Type {
                name: located.name().to_owned(),
                found: format!("{bytes} bytes of {format:?} for {count} numbers"),
            });
        }
        let mut bytes = AlignedBytes::zeroed(bytes);
        located.read_bytes(&mut bytes)?;
        Ok(QStorage::Cpu(Box::new(Self { format, bytes })))
    }

    /// Takes over blocks that candle made from a copy of these.
    fn take(&mut self, made: Box<dyn QuantizedType>) {
        let count = self.bytes.len() / self.format.type_size() * self.format.block_size();
        // Neither fails: the blocks are as many as before, and in the CPU's memory.
        if let Ok(made) = QTensor::new(QStorage::Cpu(made), count)
            && let Ok(bytes) = made.data()
        {
            self.bytes.copy_from_slice(&bytes);
        }
    }

    fn copied(&self) -> Box<dyn QuantizedType> {
        self.format.from_data(Cow::Borrowed(&self.bytes))
    }
}

impl QuantizedType for Blocks {
    fn dtype(&self) -> GgmlDType {
        self.format
    }

    fn matmul_t(&self, mkn: (usize, usize, usize), lhs: &[f32], dst: &mut [f32]) -> Result<()> {
        self.copied().matmul_t(mkn, lhs, dst)
    }

    fn matmul_t_f16(&self, mkn: (usize, usize, usize), lhs: &[f16], dst: &mut [f16]) -> Result<()> {
        self.copied().matmul_t_f16(mkn, lhs, dst)
    }

    fn embedding(&self, ids: &[u32], rows: usize, hidden: usize) -> Result<CpuStorage> {
        self.copied().embedding(ids, rows, hidden)
    }

    fn dequantize(&self, elem_count: usize) -> Result<CpuStorage> {
        self.copied().dequantize(elem_count)
    }

    fn storage_size_in_bytes(&self) -> usize {
        self.bytes.len()
    }

    fn as_ptr(&self) -> *const u8 {
        self.bytes.as_ptr()
    }

    fn block_size(&self) -> usize {
        self.format.block_size()
    }

    fn from_float(&mut self, numbers: &[f32]) {
        let mut made = self.copied();
        made.from_float(numbers);
        self.take(made);
    }

    fn from_float_imatrix(&mut self, numbers: &[f32], imatrix_weights: &[f32], n_per_row: usize) {
        let mut made = self.copied();
        made.from_float_imatrix(numbers, imatrix_weights, n_per_row);
        self.take(made);
    }

    fn size(&self) -> usize {
        self.bytes.len()
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::*;

    #[test]
    fn they_compute_like_the_blocks_of_candle() {
        let numbers: Vec<f32> = (0..8 * 64).map(|i| (i as f32 * 0.7).sin()).collect();
        let dense = Tensor::from_vec(numbers.clone(), (8, 64), &Device::Cpu).unwrap();
        let x = Tensor::from_vec(numbers[..3 * 64].to_vec(), (3, 64), &Device::Cpu).unwrap();
        for format in [GgmlDType::Q4_0, GgmlDType::Q8_0] {
            let theirs = QTensor::quantize(&dense, format).unwrap();
            let mut bytes = AlignedBytes::zeroed(theirs.data().unwrap().len());
            bytes.copy_from_slice(&theirs.data().unwrap());
            let ours = Blocks { format, bytes };
            let ours = QTensor::new(QStorage::Cpu(Box::new(ours)), (8, 64)).unwrap();
            assert_eq!(ours.data().unwrap(), theirs.data().unwrap());
            let plain = |blocks: &QTensor| blocks.dequantize(&Device::Cpu).unwrap().to_vec2::<f32>().unwrap();
            assert_eq!(plain(&ours), plain(&theirs));
            let product = |blocks: &QTensor| x.apply_op1_no_bwd(blocks).unwrap().to_vec2::<f32>().unwrap();
            assert_eq!(product(&ours), product(&theirs));
        }
    }

    #[test]
    fn they_can_be_made_anew() {
        let numbers: Vec<f32> = (0..64).map(|i| i as f32).collect();
        let mut blocks = Blocks {
            format: GgmlDType::Q8_0,
            bytes: AlignedBytes::zeroed(2 * 34),
        };
        blocks.from_float(&numbers);
        let CpuStorage::F32(made) = blocks.dequantize(64).unwrap() else {
            panic!("not f32")
        };
        assert!(made.iter().zip(&numbers).all(|(a, b)| (a - b).abs() < 0.3));
    }
}
