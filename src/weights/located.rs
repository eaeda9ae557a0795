//! Where a tensor's numbers lie in a file: what can be read by several threads at once, straight to where it is needed.

use std::cell::RefCell;
use std::ops::Range;
use std::thread;

use half::bf16;

use super::convert::{Number, float_width};
use super::finite::all_finite;
use super::source::row_range;
use super::storage::{Storage, threads};
use super::{NumbersMut, RawTensor, StoredType, WeightsError};

/// A tensor, or some rows of one, in a file. Numbers that are not finite are refused when they are read.
#[derive(Debug)]
pub struct Located<'a> {
    storage: &'a Storage,
    name: String,
    stored: StoredType,
    shape: Vec<usize>,
    offset: u64,
    len: usize,
    scale: Option<f32>,
}

/// Bytes read at a time: they stay in a core's second cache, so that looking for NaN and converting cost no second trip to
/// memory.
const CHUNK: usize = 128 << 10;
/// Bytes from which on a second thread is worth its start.
const PARALLEL_FROM: usize = 4 << 20;

thread_local! {
    static BYTES: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl<'a> Located<'a> {
    /// `rows` (all if `None`) of a tensor whose `len` bytes begin at `offset`.
    ///
    /// # Errors
    /// The rows are not there, or blocks reach over them.
    pub(super) fn new(
        storage: &'a Storage,
        name: &str,
        (stored, shape): (StoredType, &[usize]),
        (offset, len): (u64, usize),
        rows: Option<Range<usize>>,
    ) -> Result<Self, WeightsError> {
        let (shape, range) = match rows {
            Some(rows) => row_range(name, shape, len, &rows)?,
            None => (shape.to_vec(), 0..len),
        };
        if let StoredType::Ggml(kind) = stored
            && (range.start % kind.type_size() != 0 || range.len() % kind.type_size() != 0)
        {
            return Err(WeightsError::Type {
                name: name.to_owned(),
                found: format!("{kind:?} blocks that reach over rows"),
            });
        }
        Ok(Self {
            storage,
            name: name.to_owned(),
            stored,
            shape,
            offset: offset + range.start as u64,
            len: range.len(),
            scale: None,
        })
    }

    /// The same plain numbers times `scale`; as bytes they are in bf16.
    #[must_use]
    pub(super) fn times(self, scale: f32) -> Self {
        Self {
            scale: Some(scale),
            ..self
        }
    }

    /// Whether it holds plain numbers, which [`Located::read_numbers`] converts.
    pub fn is_plain(&self) -> bool {
        float_width(self.stored).is_some()
    }

    /// Name in the file.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Number of bytes.
    pub fn byte_count(&self) -> usize {
        self.len
    }

    /// The bytes as they are.
    ///
    /// # Errors
    /// The file cannot be read, or holds numbers that are not finite.
    pub fn raw(&self) -> Result<RawTensor, WeightsError> {
        if self.scale.is_some() {
            let mut numbers = bf16::zeros(self.shape.iter().product());
            self.read_all_as(&mut numbers)?;
            return Ok(RawTensor {
                stored: StoredType::Bf16,
                shape: self.shape.clone(),
                bytes: numbers.into_iter().flat_map(bf16::to_le_bytes).collect(),
            });
        }
        let mut bytes = vec![0_u8; self.len];
        self.read_bytes(&mut bytes)?;
        Ok(RawTensor {
            stored: self.stored,
            shape: self.shape.clone(),
            bytes,
        })
    }

    /// Fills `out`, which is as long as this, on every core if it is long.
    ///
    /// # Errors
    /// As [`Located::raw`].
    pub fn read_bytes(&self, out: &mut [u8]) -> Result<(), WeightsError> {
        let chunk = match self.stored {
            StoredType::Ggml(kind) => CHUNK / kind.type_size() * kind.type_size(),
            _ => CHUNK,
        };
        self.shared(out, chunk, 1, |mut at, part| {
            for bytes in part.chunks_mut(chunk) {
                self.read_checked(at, bytes)?;
                at += bytes.len() as u64;
            }
            Ok(())
        })
    }

    /// All its numbers, converted to the type of `into`, on every core if they are many.
    ///
    /// # Errors
    /// As [`Located::raw`]; the stored type is no plain number type, or `into` has another length.
    pub fn read_all(&self, into: NumbersMut<'_>) -> Result<(), WeightsError> {
        into.check(&self.name, &self.shape)?;
        match into {
            NumbersMut::F32(out) => self.read_all_as(out),
            NumbersMut::Bf16(out) => self.read_all_as(out),
            NumbersMut::F16(out) => self.read_all_as(out),
        }
    }

    fn read_all_as<T: Number>(&self, out: &mut [T]) -> Result<(), WeightsError> {
        let width = self.width()?;
        self.shared(out, CHUNK / width, width, |at, part| self.convert(at, part, width))
    }

    /// Its numbers from `first` on, converted to the type of `into`, on this thread.
    ///
    /// # Errors
    /// As [`Located::raw`]; the stored type is no plain number type, or there are fewer numbers.
    pub fn read_numbers(&self, first: usize, into: NumbersMut<'_>) -> Result<(), WeightsError> {
        let width = self.width()?;
        let count = into.len();
        if first.saturating_add(count).saturating_mul(width) > self.len {
            return Err(WeightsError::Shape {
                name: self.name.clone(),
                found: self.shape.clone(),
                expected: vec![first.saturating_add(count)],
            });
        }
        let at = self.offset + (first * width) as u64;
        match into {
            NumbersMut::F32(out) => self.convert(at, out, width),
            NumbersMut::Bf16(out) => self.convert(at, out, width),
            NumbersMut::F16(out) => self.convert(at, out, width),
        }
    }

    fn width(&self) -> Result<usize, WeightsError> {
        float_width(self.stored).ok_or_else(|| WeightsError::Type {
            name: self.name.clone(),
            found: format!("{:?}", self.stored),
        })
    }

    fn convert<T: Number>(&self, mut at: u64, out: &mut [T], width: usize) -> Result<(), WeightsError> {
        BYTES.with_borrow_mut(|buffer| {
            buffer.resize(CHUNK, 0);
            for out in out.chunks_mut(CHUNK / width) {
                let bytes = &mut buffer[..out.len() * width];
                self.storage.read_at(at, bytes)?;
                if !T::convert(self.stored, bytes, out) {
                    return Err(self.not_finite());
                }
                if let Some(scale) = self.scale {
                    out.iter_mut().for_each(|number| *number = number.times(scale));
                }
                at += bytes.len() as u64;
            }
            Ok(())
        })
    }

    fn read_checked(&self, at: u64, bytes: &mut [u8]) -> Result<(), WeightsError> {
        self.storage.read_at(at, bytes)?;
        if all_finite(self.stored, bytes) {
            return Ok(());
        }
        Err(self.not_finite())
    }

    fn not_finite(&self) -> WeightsError {
        WeightsError::NotFinite {
            path: self.storage.path().to_owned(),
            name: self.name.clone(),
        }
    }

    /// Gives parts of `out`, whole multiples of `unit` of `width` bytes in the file, to the threads: `work(offset, part)`.
    fn shared<T: Send>(
        &self,
        out: &mut [T],
        unit: usize,
        width: usize,
        work: impl Fn(u64, &mut [T]) -> Result<(), WeightsError> + Sync,
    ) -> Result<(), WeightsError> {
        if out.len() * width < PARALLEL_FROM {
            return work(self.offset, out);
        }
        let share = out.len().div_ceil(threads()).next_multiple_of(unit);
        let work = &work;
        thread::scope(|scope| {
            let running: Vec<_> = out
                .chunks_mut(share)
                .enumerate()
                .map(|(index, part)| {
                    let at = self.offset + (index * share * width) as u64;
                    scope.spawn(move || work(at, part))
                })
                .collect();
            // A thread that panics passes its panic on when the scope ends.
            running
                .into_iter()
                .try_for_each(|thread| thread.join().unwrap_or(Ok(())))
        })
    }
}
