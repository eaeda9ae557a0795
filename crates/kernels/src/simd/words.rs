//! Sixteen 32-bit words at every instruction level: what unpacks the bits of quantised weights.

use half::bf16;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use super::portable::{Portable, round_bf16};
#[cfg(target_arch = "x86_64")]
use super::x86::{Avx2, Avx512, narrow8, narrow16, op};
use super::{LANES, Simd};

/// Operations on sixteen words. Shifts are by less than 32.
pub(crate) trait Words: Simd {
    type W: Copy;
    /// Sixteen bytes of each of sixteen rows `stride` bytes apart: word `i` holds bytes `4 i..4 i + 4` of every row.
    /// # Safety
    /// 16 bytes must be readable at `p + row * stride` for all sixteen rows.
    unsafe fn load_rows(self, p: *const u8, stride: usize) -> [Self::W; 4];
    /// Sixteen words of two bytes, filled up with zeros.
    /// # Safety
    /// 32 bytes must be readable at `p`.
    unsafe fn load_halves(self, p: *const u8) -> Self::W;
    /// Two neighbouring numbers of each lane, rounded to bf16: `first` and `second` of lane 0, of lane 1 and so on.
    /// # Safety
    /// 32 bf16 must be writable at `p`.
    unsafe fn store_pairs(self, p: *mut bf16, first: Self::V, second: Self::V);
    fn left(self, w: Self::W, by: u32) -> Self::W;
    /// Fills up with zeros.
    fn right(self, w: Self::W, by: u32) -> Self::W;
    /// Fills up with the sign.
    fn right_signed(self, w: Self::W, by: u32) -> Self::W;
    fn mask(self, w: Self::W, mask: u32) -> Self::W;
    fn or(self, a: Self::W, b: Self::W) -> Self::W;
    /// The signed words as numbers.
    fn to_f32(self, w: Self::W) -> Self::V;
    fn splat_word(self, w: u32) -> Self::W;
    /// The words as the bits of numbers.
    fn as_numbers(self, w: Self::W) -> Self::V;
    /// The number of `table` that the lowest four bits of each word name.
    fn lookup(self, table: Self::V, w: Self::W) -> Self::V;

    /// The lower half of each word, an f16, as f32. The processor's own conversion takes a hundred times as long for numbers below
    /// 2^-14, which scales of blocks often are.
    #[inline(always)]
    fn halves(self, w: Self::W) -> Self::V {
        // The exponent raised as far as an f16's largest, which stands for infinity and NaN, becomes f32's largest.
        let magnitude = self.left(self.mask(w, 0x7fff), 13);
        let raised = self.as_numbers(self.or(magnitude, self.splat_word(224 << 23)));
        let normal = self.mul(raised, self.splat(f32::from_bits((127 - 112) << 23)));
        // Below 2^-14 there is no leading one, and the exponent is one higher than it says: the smaller of the two is right.
        let small = self.sub(self.add(normal, normal), self.splat(f32::from_bits((127 - 14) << 23)));
        self.copysign(self.min(normal, small), self.as_numbers(self.left(w, 16)))
    }
}

impl Words for Portable {
    type W = [u32; LANES];
    #[inline(always)]
    unsafe fn load_rows(self, p: *const u8, stride: usize) -> [Self::W; 4] {
        let mut words = [[0; LANES]; 4];
        for row in 0..LANES {
            // SAFETY: the caller's promise.
            let bytes = unsafe { p.add(row * stride).cast::<[[u8; 4]; 4]>().read() };
            for (word, bytes) in words.iter_mut().zip(bytes) {
                word[row] = u32::from_le_bytes(bytes);
            }
        }
        words
    }
    #[inline(always)]
    unsafe fn load_halves(self, p: *const u8) -> Self::W {
        // SAFETY: the caller's promise; unaligned read of plain bytes.
        let halves = unsafe { p.cast::<[[u8; 2]; LANES]>().read_unaligned() };
        halves.map(|bytes| u32::from(u16::from_le_bytes(bytes)))
    }
    #[inline(always)]
    unsafe fn store_pairs(self, p: *mut bf16, first: Self::V, second: Self::V) {
        let pairs: [[u16; 2]; LANES] = std::array::from_fn(|i| [round_bf16(first[i]), round_bf16(second[i])]);
        // SAFETY: the caller's promise.
        unsafe { p.cast::<[[u16; 2]; LANES]>().write_unaligned(pairs) }
    }
    #[inline(always)]
    fn left(self, w: Self::W, by: u32) -> Self::W {
        w.map(|w| w << by)
    }
    #[inline(always)]
    fn right(self, w: Self::W, by: u32) -> Self::W {
        w.map(|w| w >> by)
    }
    #[inline(always)]
    fn right_signed(self, w: Self::W, by: u32) -> Self::W {
        w.map(|w| (w as i32 >> by) as u32)
    }
    #[inline(always)]
    fn mask(self, w: Self::W, mask: u32) -> Self::W {
        w.map(|w| w & mask)
    }
    #[inline(always)]
    fn or(self, a: Self::W, b: Self::W) -> Self::W {
        std::array::from_fn(|i| a[i] | b[i])
    }
    #[inline(always)]
    fn to_f32(self, w: Self::W) -> Self::V {
        w.map(|w| w as i32 as f32)
    }
    #[inline(always)]
    fn splat_word(self, w: u32) -> Self::W {
        [w; LANES]
    }
    #[inline(always)]
    fn as_numbers(self, w: Self::W) -> Self::V {
        w.map(f32::from_bits)
    }
    #[inline(always)]
    fn lookup(self, table: Self::V, w: Self::W) -> Self::V {
        w.map(|w| table[(w & 15) as usize])
    }
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn each(w: (__m256i, __m256i), f: impl Fn(__m256i) -> __m256i) -> (__m256i, __m256i) {
    (f(w.0), f(w.1))
}

/// Four words of eight rows.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn eight_rows(p: *const u8, stride: usize) -> [__m256i; 4] {
    op!({
        let (a, b) = (two_rows(p, stride), two_rows(p.add(stride), stride));
        let (c, d) = (two_rows(p.add(2 * stride), stride), two_rows(p.add(3 * stride), stride));
        let (ab, cd) = (_mm256_unpacklo_epi32(a, b), _mm256_unpacklo_epi32(c, d));
        let (ab_up, cd_up) = (_mm256_unpackhi_epi32(a, b), _mm256_unpackhi_epi32(c, d));
        [
            _mm256_unpacklo_epi64(ab, cd),
            _mm256_unpackhi_epi64(ab, cd),
            _mm256_unpacklo_epi64(ab_up, cd_up),
            _mm256_unpackhi_epi64(ab_up, cd_up),
        ]
    })
}

/// Sixteen bytes of rows 0 and 4.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn two_rows(p: *const u8, stride: usize) -> __m256i {
    op!({
        let row = _mm256_castsi128_si256(_mm_loadu_si128(p.cast()));
        _mm256_inserti128_si256(row, _mm_loadu_si128(p.add(4 * stride).cast()), 1)
    })
}

/// Sixteen bytes of rows 0, 4, 8 and 12.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn four_rows(p: *const u8, stride: usize) -> __m512i {
    op!({
        let rows = _mm512_castsi128_si512(_mm_loadu_si128(p.cast()));
        let rows = _mm512_inserti32x4(rows, _mm_loadu_si128(p.add(4 * stride).cast()), 1);
        let rows = _mm512_inserti32x4(rows, _mm_loadu_si128(p.add(8 * stride).cast()), 2);
        _mm512_inserti32x4(rows, _mm_loadu_si128(p.add(12 * stride).cast()), 3)
    })
}

#[cfg(target_arch = "x86_64")]
impl Words for Avx2 {
    type W = (__m256i, __m256i);
    #[inline(always)]
    unsafe fn load_rows(self, p: *const u8, stride: usize) -> [Self::W; 4] {
        // SAFETY: the caller's promise.
        let (first, second) = unsafe { (eight_rows(p, stride), eight_rows(p.add(8 * stride), stride)) };
        [
            (first[0], second[0]),
            (first[1], second[1]),
            (first[2], second[2]),
            (first[3], second[3]),
        ]
    }
    #[inline(always)]
    unsafe fn load_halves(self, p: *const u8) -> Self::W {
        op!((
            _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast())),
            _mm256_cvtepu16_epi32(_mm_loadu_si128(p.add(16).cast()))
        ))
    }
    #[inline(always)]
    unsafe fn store_pairs(self, p: *mut bf16, first: Self::V, second: Self::V) {
        op!({
            let pairs = |first, second| _mm256_or_si256(narrow8(first), _mm256_slli_epi32(narrow8(second), 16));
            _mm256_storeu_si256(p.cast(), pairs(first.0, second.0));
            _mm256_storeu_si256(p.add(LANES).cast(), pairs(first.1, second.1));
        });
    }
    #[inline(always)]
    fn left(self, w: Self::W, by: u32) -> Self::W {
        each(w, |w| op!(_mm256_sll_epi32(w, _mm_cvtsi32_si128(by as i32))))
    }
    #[inline(always)]
    fn right(self, w: Self::W, by: u32) -> Self::W {
        each(w, |w| op!(_mm256_srl_epi32(w, _mm_cvtsi32_si128(by as i32))))
    }
    #[inline(always)]
    fn right_signed(self, w: Self::W, by: u32) -> Self::W {
        each(w, |w| op!(_mm256_sra_epi32(w, _mm_cvtsi32_si128(by as i32))))
    }
    #[inline(always)]
    fn mask(self, w: Self::W, mask: u32) -> Self::W {
        each(w, |w| op!(_mm256_and_si256(w, _mm256_set1_epi32(mask as i32))))
    }
    #[inline(always)]
    fn or(self, a: Self::W, b: Self::W) -> Self::W {
        op!((_mm256_or_si256(a.0, b.0), _mm256_or_si256(a.1, b.1)))
    }
    #[inline(always)]
    fn to_f32(self, w: Self::W) -> Self::V {
        op!((_mm256_cvtepi32_ps(w.0), _mm256_cvtepi32_ps(w.1)))
    }
    #[inline(always)]
    fn splat_word(self, w: u32) -> Self::W {
        op!((_mm256_set1_epi32(w as i32), _mm256_set1_epi32(w as i32)))
    }
    #[inline(always)]
    fn as_numbers(self, w: Self::W) -> Self::V {
        op!((_mm256_castsi256_ps(w.0), _mm256_castsi256_ps(w.1)))
    }
    #[inline(always)]
    fn lookup(self, table: Self::V, w: Self::W) -> Self::V {
        let of = |w: __m256i| {
            op!({
                let (low, up) = (
                    _mm256_permutevar8x32_ps(table.0, w),
                    _mm256_permutevar8x32_ps(table.1, w),
                );
                _mm256_blendv_ps(low, up, _mm256_castsi256_ps(_mm256_slli_epi32(w, 28)))
            })
        };
        (of(w.0), of(w.1))
    }
}

#[cfg(target_arch = "x86_64")]
impl<const BF16: bool> Words for Avx512<BF16> {
    type W = __m512i;
    #[inline(always)]
    unsafe fn load_rows(self, p: *const u8, stride: usize) -> [Self::W; 4] {
        op!({
            let (a, b) = (four_rows(p, stride), four_rows(p.add(stride), stride));
            let (c, d) = (
                four_rows(p.add(2 * stride), stride),
                four_rows(p.add(3 * stride), stride),
            );
            let (ab, cd) = (_mm512_unpacklo_epi32(a, b), _mm512_unpacklo_epi32(c, d));
            let (ab_up, cd_up) = (_mm512_unpackhi_epi32(a, b), _mm512_unpackhi_epi32(c, d));
            [
                _mm512_unpacklo_epi64(ab, cd),
                _mm512_unpackhi_epi64(ab, cd),
                _mm512_unpacklo_epi64(ab_up, cd_up),
                _mm512_unpackhi_epi64(ab_up, cd_up),
            ]
        })
    }
    #[inline(always)]
    unsafe fn load_halves(self, p: *const u8) -> Self::W {
        op!(_mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast())))
    }
    #[inline(always)]
    unsafe fn store_pairs(self, p: *mut bf16, first: Self::V, second: Self::V) {
        if BF16 {
            op!({
                let both = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(second, first));
                // Words 0, 16, 1, 17 ...
                let first = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
                let second = _mm512_add_epi32(first, _mm512_set1_epi32(16));
                let order = _mm512_or_si512(first, _mm512_slli_epi32(second, 16));
                _mm512_storeu_si512(p.cast(), _mm512_permutexvar_epi16(order, both));
            });
            return;
        }
        op!({
            let pairs = _mm512_or_si512(narrow16(first), _mm512_slli_epi32(narrow16(second), 16));
            _mm512_storeu_si512(p.cast(), pairs);
        });
    }
    #[inline(always)]
    fn left(self, w: Self::W, by: u32) -> Self::W {
        op!(_mm512_sll_epi32(w, _mm_cvtsi32_si128(by as i32)))
    }
    #[inline(always)]
    fn right(self, w: Self::W, by: u32) -> Self::W {
        op!(_mm512_srl_epi32(w, _mm_cvtsi32_si128(by as i32)))
    }
    #[inline(always)]
    fn right_signed(self, w: Self::W, by: u32) -> Self::W {
        op!(_mm512_sra_epi32(w, _mm_cvtsi32_si128(by as i32)))
    }
    #[inline(always)]
    fn mask(self, w: Self::W, mask: u32) -> Self::W {
        op!(_mm512_and_si512(w, _mm512_set1_epi32(mask as i32)))
    }
    #[inline(always)]
    fn or(self, a: Self::W, b: Self::W) -> Self::W {
        op!(_mm512_or_si512(a, b))
    }
    #[inline(always)]
    fn to_f32(self, w: Self::W) -> Self::V {
        op!(_mm512_cvtepi32_ps(w))
    }
    #[inline(always)]
    fn splat_word(self, w: u32) -> Self::W {
        op!(_mm512_set1_epi32(w as i32))
    }
    #[inline(always)]
    fn as_numbers(self, w: Self::W) -> Self::V {
        op!(_mm512_castsi512_ps(w))
    }
    #[inline(always)]
    fn lookup(self, table: Self::V, w: Self::W) -> Self::V {
        op!(_mm512_permutexvar_ps(w, table))
    }
}

#[cfg(test)]
mod tests {
    use half::f16;

    use crate::isa::{Isa, set_isa};
    use crate::simd::{Kernel, LANES, Words, dispatch, store_lanes};

    struct Halves([u32; LANES]);

    impl Kernel for Halves {
        type Out = [f32; LANES];
        #[inline(always)]
        fn run<S: Words>(self, s: S) -> [f32; LANES] {
            // SAFETY: sixteen rows of four words are readable.
            let words = unsafe { s.load_rows(self.0.map(|w| [w; 4]).as_ptr().cast(), 16) };
            let mut out = [0.0; LANES];
            store_lanes(s, &mut out, s.halves(words[0]));
            out
        }
    }

    #[test]
    fn halves_are_exact_at_every_level() {
        for level in Isa::ALL {
            set_isa(level);
            check_halves();
        }
        set_isa(Isa::Amx);
    }

    fn check_halves() {
        for first in (0..=u16::MAX).step_by(LANES) {
            let halves: [u16; LANES] = std::array::from_fn(|i| first + i as u16);
            // What lies above is not looked at.
            let got = dispatch(Halves(halves.map(|h| u32::from(h) | 0xabcd_0000)));
            for (half, got) in halves.into_iter().zip(got) {
                let want = f16::from_bits(half).to_f32();
                assert!(
                    got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan(),
                    "{half:x}: {got}"
                );
            }
        }
    }
}
