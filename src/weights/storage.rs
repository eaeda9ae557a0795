//! The bytes that tensors lie in: a file read at positions, or bytes built into the program.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::thread;

use candle_core::quantized::GgmlDType;

use super::convert::{Number, float_width};
use super::{NumbersMut, StoredType, WeightsError};

/// Bytes that are read by position, by several threads at a time.
#[derive(Debug)]
pub struct Storage {
    path: PathBuf,
    bytes: Bytes,
}

#[derive(Debug)]
enum Bytes {
    File { file: File, len: u64 },
    Memory(&'static [u8]),
}

/// A piece that stays in a core's second cache, so that looking for NaN costs no second trip to memory.
const CHUNK: usize = 512 << 10;
/// Below this a second thread costs more than it brings.
const PARALLEL_FROM: usize = 4 << 20;

impl Storage {
    /// Opens a file.
    ///
    /// # Errors
    /// It is not there, is no file, or may not be read.
    pub fn open(path: &Path) -> Result<Self, WeightsError> {
        let io = |source| WeightsError::Io {
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(io)?;
        let meta = file.metadata().map_err(io)?;
        if !meta.is_file() {
            return Err(WeightsError::damaged(path, "this is no file"));
        }
        Ok(Self {
            path: path.to_owned(),
            bytes: Bytes::File { file, len: meta.len() },
        })
    }

    /// Bytes in memory; `name` stands for the path in messages.
    #[must_use]
    pub fn memory(name: &str, bytes: &'static [u8]) -> Self {
        Self {
            path: PathBuf::from(name),
            bytes: Bytes::Memory(bytes),
        }
    }

    /// Where it is, for messages.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Number of bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        match &self.bytes {
            Bytes::File { len, .. } => *len,
            Bytes::Memory(bytes) => bytes.len() as u64,
        }
    }

    /// Fills `buffer` from `offset` on.
    ///
    /// # Errors
    /// The file ends before, or cannot be read.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), WeightsError> {
        match &self.bytes {
            Bytes::File { file, .. } => file.read_exact_at(buffer, offset).map_err(|source| WeightsError::Io {
                path: self.path.clone(),
                source,
            }),
            Bytes::Memory(bytes) => {
                let start = usize::try_from(offset).unwrap_or(usize::MAX);
                let end = start.saturating_add(buffer.len());
                let found = bytes
                    .get(start..end)
                    .ok_or_else(|| WeightsError::damaged(&self.path, "it ends too early"))?;
                buffer.copy_from_slice(found);
                Ok(())
            }
        }
    }

    /// Reads `len` bytes of a tensor, on two threads or more if they are many, and refuses numbers that are not finite.
    ///
    /// # Errors
    /// As [`Storage::read_at`], or [`WeightsError::NotFinite`] with the tensor's `name`.
    pub fn read_tensor(
        &self,
        name: &str,
        stored: StoredType,
        offset: u64,
        len: usize,
    ) -> Result<Vec<u8>, WeightsError> {
        let mut buffer = vec![0_u8; len];
        let threads = if len < PARALLEL_FROM { 1 } else { threads() };
        let share = len.div_ceil(threads).next_multiple_of(chunk_of(stored));
        let failed = Mutex::new(None);
        let part = |index: usize, part: &mut [u8]| {
            let start = offset + (index * share) as u64;
            if let Err(error) = self.read_part(name, stored, start, part)
                && let Ok(mut failed) = failed.lock()
            {
                *failed = Some(error);
            }
        };
        if threads == 1 {
            part(0, &mut buffer);
        } else {
            thread::scope(|scope| {
                for (index, bytes) in buffer.chunks_mut(share).enumerate() {
                    let part = &part;
                    scope.spawn(move || part(index, bytes));
                }
            });
        }
        match failed.into_inner().ok().flatten() {
            Some(error) => Err(error),
            None => Ok(buffer),
        }
    }

    /// Reads numbers of a plain type from `offset` on, converted to the type of `into`.
    ///
    /// # Errors
    /// As [`Storage::read_tensor`]; the type is no plain number type.
    pub(super) fn read_into(
        &self,
        name: &str,
        stored: StoredType,
        offset: u64,
        into: NumbersMut<'_>,
    ) -> Result<(), WeightsError> {
        match into {
            NumbersMut::F32(out) => self.read_numbers(name, stored, offset, out),
            NumbersMut::Bf16(out) => self.read_numbers(name, stored, offset, out),
            NumbersMut::F16(out) => self.read_numbers(name, stored, offset, out),
        }
    }

    /// On two threads or more if they are many; refuses numbers that are not finite.
    fn read_numbers<T: Number>(
        &self,
        name: &str,
        stored: StoredType,
        offset: u64,
        out: &mut [T],
    ) -> Result<(), WeightsError> {
        let width = float_width(stored).ok_or_else(|| WeightsError::Type {
            name: name.to_owned(),
            found: format!("{stored:?}"),
        })?;
        let part = |from: usize, out: &mut [T]| {
            let mut at = offset + (from * width) as u64;
            let mut buffer = vec![0_u8; (out.len() * width).min(CHUNK)];
            for out in out.chunks_mut(CHUNK / width) {
                let bytes = &mut buffer[..out.len() * width];
                self.read_at(at, bytes)?;
                if !all_finite(stored, bytes) {
                    return Err(WeightsError::NotFinite {
                        path: self.path.clone(),
                        name: name.to_owned(),
                    });
                }
                T::convert(stored, bytes, out);
                at += bytes.len() as u64;
            }
            Ok(())
        };
        if out.len() * width < PARALLEL_FROM {
            return part(0, out);
        }
        let share = out.len().div_ceil(threads()).next_multiple_of(CHUNK / width);
        thread::scope(|scope| {
            let running: Vec<_> = out
                .chunks_mut(share)
                .enumerate()
                .map(|(index, out)| scope.spawn(move || part(index * share, out)))
                .collect();
            // A thread that panics passes its panic on when the scope ends.
            running
                .into_iter()
                .try_for_each(|thread| thread.join().unwrap_or(Ok(())))
        })
    }

    fn read_part(&self, name: &str, stored: StoredType, mut offset: u64, part: &mut [u8]) -> Result<(), WeightsError> {
        for chunk in part.chunks_mut(chunk_of(stored)) {
            self.read_at(offset, chunk)?;
            if !all_finite(stored, chunk) {
                return Err(WeightsError::NotFinite {
                    path: self.path.clone(),
                    name: name.to_owned(),
                });
            }
            offset += chunk.len() as u64;
        }
        Ok(())
    }
}

/// Bytes read at a time: whole numbers or whole blocks.
fn chunk_of(stored: StoredType) -> usize {
    match stored {
        StoredType::Ggml(kind) => CHUNK / kind.type_size() * kind.type_size(),
        _ => CHUNK,
    }
}

/// Threads worth using for reading and converting.
pub(super) fn threads() -> usize {
    thread::available_parallelism().map_or(1, usize::from).min(8)
}

/// Whether no number is infinite or NaN. Integers are taken as they are.
fn all_finite(stored: StoredType, bytes: &[u8]) -> bool {
    let below16 = |limit: u16| {
        bytes
            .as_chunks::<2>()
            .0
            .iter()
            .fold(0, |m, b| (u16::from_le_bytes(*b) & 0x7fff).max(m))
            < limit
    };
    match stored {
        StoredType::F32 => {
            let most = bytes
                .as_chunks::<4>()
                .0
                .iter()
                .fold(0, |m, b| (u32::from_le_bytes(*b) & 0x7fff_ffff).max(m));
            most < 0x7f80_0000
        }
        StoredType::F64 => bytes
            .as_chunks::<8>()
            .0
            .iter()
            .all(|b| f64::from_le_bytes(*b).is_finite()),
        StoredType::F16 => below16(0x7c00),
        StoredType::Bf16 => below16(0x7f80),
        StoredType::F8E4M3 => bytes.iter().all(|b| b & 0x7f != 0x7f),
        StoredType::F8E5M2 => bytes.iter().all(|b| b & 0x7f < 0x7c),
        StoredType::Ggml(kind) => scales_finite(kind, bytes),
        StoredType::I64 | StoredType::I32 | StoredType::Other(_) => true,
    }
}

/// Whether every block's scale and minimum are finite.
fn scales_finite(kind: GgmlDType, bytes: &[u8]) -> bool {
    let halves: &[usize] = match kind {
        GgmlDType::Q4_0 | GgmlDType::Q5_0 | GgmlDType::Q8_0 => &[0],
        GgmlDType::Q4_1 | GgmlDType::Q5_1 | GgmlDType::Q4K | GgmlDType::Q5K => &[0, 2],
        GgmlDType::Q2K => &[80, 82],
        GgmlDType::Q3K => &[108],
        GgmlDType::Q6K => &[208],
        _ => &[],
    };
    bytes.chunks_exact(kind.type_size()).all(|block| {
        halves
            .iter()
            .all(|&at| u16::from_le_bytes([block[at], block[at + 1]]) & 0x7c00 != 0x7c00)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sees_nan_and_infinity_in_every_float_type() {
        let bad: &[(StoredType, &[u8])] = &[
            (StoredType::F32, &f32::NAN.to_le_bytes()),
            (StoredType::F32, &f32::NEG_INFINITY.to_le_bytes()),
            (StoredType::F64, &f64::NAN.to_le_bytes()),
            (StoredType::F16, &half::f16::NAN.to_le_bytes()),
            (StoredType::F16, &half::f16::INFINITY.to_le_bytes()),
            (StoredType::Bf16, &half::bf16::NAN.to_le_bytes()),
            (StoredType::F8E4M3, &[0xff]),
            (StoredType::F8E5M2, &[0x7d]),
        ];
        for (stored, bytes) in bad {
            assert!(!all_finite(*stored, bytes), "{stored:?}");
        }
        let mut block = vec![0; GgmlDType::Q6K.type_size() * 2];
        assert!(all_finite(StoredType::Ggml(GgmlDType::Q6K), &block));
        let last = block.len() - 1;
        block[last] = 0x7c;
        assert!(!all_finite(StoredType::Ggml(GgmlDType::Q6K), &block));
        assert!(all_finite(StoredType::F16, &half::f16::MAX.to_le_bytes()));
        assert!(all_finite(StoredType::Bf16, &half::bf16::MIN.to_le_bytes()));
        assert!(all_finite(StoredType::F8E4M3, &[0xfe, 0x7e]));
    }
}
