//! The numbers of a file, which are bytes, to numbers that are computed with.

use crate::error::{Result, check_len};
use crate::simd::{Element, Kernel, LANES, Simd, ViewMut, Words, dispatch, inlined, store_lanes};

/// What a file's bytes stand for, the lowest byte first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    F32,
    F16,
    Bf16,
}

impl Stored {
    /// Bytes of a number.
    pub fn width(self) -> usize {
        match self {
            Stored::F32 => 4,
            Stored::F16 | Stored::Bf16 => 2,
        }
    }
}

/// Converts `bytes` to as many numbers, rounded to nearest even, on this thread. Returns whether all of them are finite in the
/// file.
///
/// # Errors
/// If the lengths differ.
pub fn read_stored(stored: Stored, bytes: &[u8], out: ViewMut<'_>) -> Result<bool> {
    check_len("bytes", bytes.len(), out.len() * stored.width())?;
    Ok(match out {
        ViewMut::F32(out) => dispatch(Read { stored, bytes, out }),
        ViewMut::Bf16(out) => dispatch(Read { stored, bytes, out }),
    })
}

struct Read<'a, T> {
    stored: Stored,
    bytes: &'a [u8],
    out: &'a mut [T],
}

impl<T: Element> Kernel for Read<'_, T> {
    type Out = bool;
    #[inline(always)]
    fn run<S: Words>(self, s: S) -> bool {
        match self.stored {
            Stored::F32 => self.each(
                s,
                inlined(
                    #[inline(always)]
                    |from: &[u8; 64]| {
                        // SAFETY: the array holds sixteen numbers.
                        unsafe { s.load(from.as_ptr().cast()) }
                    },
                ),
            ),
            Stored::F16 => self.each(
                s,
                inlined(
                    #[inline(always)]
                    |from: &[u8; 32]| {
                        // SAFETY: as above.
                        s.halves(unsafe { s.load_halves(from.as_ptr()) })
                    },
                ),
            ),
            Stored::Bf16 => self.each(
                s,
                inlined(
                    #[inline(always)]
                    |from: &[u8; 32]| {
                        // SAFETY: as above.
                        unsafe { s.load_bf16(from.as_ptr().cast()) }
                    },
                ),
            ),
        }
    }
}

impl<T: Element> Read<'_, T> {
    /// `load` makes numbers of `BYTES` bytes, sixteen at a time.
    #[inline(always)]
    fn each<S: Simd, const BYTES: usize>(self, s: S, load: impl Fn(&[u8; BYTES]) -> S::V) -> bool {
        let (from, rest) = self.bytes.as_chunks::<BYTES>();
        let (to, rest_to) = self.out.as_chunks_mut::<LANES>();
        // Stays zero but for infinity and NaN, which make it NaN.
        let mut zero = s.zero();
        for (from, to) in from.iter().zip(to) {
            let numbers = load(from);
            zero = s.fma(numbers, s.zero(), zero);
            store_lanes(s, to, numbers);
        }
        let mut last = [0; BYTES];
        last[..rest.len()].copy_from_slice(rest);
        let numbers = load(&last);
        zero = s.fma(numbers, s.zero(), zero);
        let mut last = [T::default(); LANES];
        store_lanes(s, &mut last, numbers);
        rest_to.copy_from_slice(&last[..rest_to.len()]);
        s.sum(zero) == 0.0
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use half::{bf16, f16};

    use super::*;
    use crate::isa::{Isa, set_isa};

    fn bytes(stored: Stored, numbers: &[f32]) -> Vec<u8> {
        let one = |x: &f32| match stored {
            Stored::F32 => x.to_le_bytes().to_vec(),
            Stored::F16 => f16::from_f32(*x).to_le_bytes().to_vec(),
            Stored::Bf16 => bf16::from_f32(*x).to_le_bytes().to_vec(),
        };
        numbers.iter().flat_map(one).collect()
    }

    fn value(stored: Stored, x: f32) -> f32 {
        match stored {
            Stored::F32 => x,
            Stored::F16 => f16::from_f32(x).to_f32(),
            Stored::Bf16 => bf16::from_f32(x).to_f32(),
        }
    }

    #[test]
    fn numbers_are_those_of_the_file_at_every_level() {
        for level in Isa::ALL {
            set_isa(level);
            for stored in [Stored::F32, Stored::F16, Stored::Bf16] {
                for count in [0, 1, 15, 16, 17, 100] {
                    let numbers: Vec<f32> = (0..count).map(|i| (i as f32 - 40.3) * 1.7e-5).collect();
                    // One byte off, as tensors in files may be.
                    let mut file = vec![0];
                    file.extend(bytes(stored, &numbers));
                    let (mut wide, mut narrow) = (vec![1.0; count], vec![bf16::ONE; count]);
                    assert!(read_stored(stored, &file[1..], ViewMut::F32(&mut wide)).unwrap());
                    assert!(read_stored(stored, &file[1..], ViewMut::Bf16(&mut narrow)).unwrap());
                    let wanted: Vec<f32> = numbers.iter().map(|x| value(stored, *x)).collect();
                    assert_eq!(wide, wanted, "{stored:?}");
                    let wanted: Vec<bf16> = wanted.into_iter().map(bf16::from_f32).collect();
                    assert_eq!(narrow, wanted, "{stored:?}");
                }
            }
        }
        set_isa(Isa::Amx);
    }

    #[test]
    fn what_is_not_finite_is_told_and_lengths_are_checked() {
        for stored in [Stored::F32, Stored::F16, Stored::Bf16] {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                for place in [0, 20, 32] {
                    let mut numbers = vec![1.0; 33];
                    numbers[place] = bad;
                    let file = bytes(stored, &numbers);
                    let mut out = vec![0.0; 33];
                    assert!(
                        !read_stored(stored, &file, ViewMut::F32(&mut out)).unwrap(),
                        "{bad} at {place}"
                    );
                    let mut out = vec![bf16::ZERO; 33];
                    assert!(!read_stored(stored, &file, ViewMut::Bf16(&mut out)).unwrap());
                    assert!(read_stored(stored, &file[1..], ViewMut::Bf16(&mut out)).is_err());
                }
            }
        }
        let largest = bytes(Stored::F32, &[f32::MAX, f32::MIN]);
        assert!(read_stored(Stored::F32, &largest, ViewMut::F32(&mut [0.0; 2])).unwrap());
    }
}
