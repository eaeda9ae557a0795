//! The x86 levels: sixteen lanes as two AVX2 registers or one AVX-512 register.

use std::arch::x86_64::*;

use half::bf16;

use super::{Kernel, LANES, Simd};

/// Exists only where AVX2, FMA and F16C were detected.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

/// Exists only where AVX-512 F, BW, DQ and VL were detected, and with `BF16` its bf16 instructions too.
#[derive(Clone, Copy)]
pub(crate) struct Avx512<const BF16: bool>(());

/// # Safety
/// The machine must have AVX2, FMA and F16C.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn run_avx2<K: Kernel>(kernel: K) -> K::Out {
    kernel.run(Avx2(()))
}

/// # Safety
/// The machine must have AVX-512 F, BW, DQ and VL (and what comes before them).
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) unsafe fn run_avx512<K: Kernel>(kernel: K) -> K::Out {
    kernel.run(Avx512::<false>(()))
}

/// # Safety
/// As for [`run_avx512`], and AVX512-BF16.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(super) unsafe fn run_avx512_bf16<K: Kernel>(kernel: K) -> K::Out {
    kernel.run(Avx512::<true>(()))
}

type W = (__m256, __m256);

/// One instruction, or a few, of the level whose token is at hand.
macro_rules! op {
    ($e:expr) => {{
        // SAFETY: a value of this type exists only where the features were detected; memory is the caller's promise.
        unsafe { $e }
    }};
}
pub(super) use op;

#[inline(always)]
fn both(a: W, b: W, f: impl Fn(__m256, __m256) -> __m256) -> W {
    (f(a.0, b.0), f(a.1, b.1))
}

/// Lane masks for the first `n` of eight.
#[inline(always)]
unsafe fn mask8(n: usize) -> __m256i {
    op!(_mm256_cmpgt_epi32(
        _mm256_set1_epi32(n as i32),
        _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)
    ))
}

/// Each number rounded to bf16, as a word.
#[inline(always)]
pub(super) unsafe fn narrow8(v: __m256) -> __m256i {
    op!({
        let bits = _mm256_castps_si256(v);
        let odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
        let rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
        let nan = _mm256_or_si256(bits, _mm256_set1_epi32(0x40_0000));
        let is_nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
        _mm256_srli_epi32(_mm256_blendv_epi8(rounded, nan, is_nan), 16)
    })
}

/// The first and the second number of eight pairs.
#[inline(always)]
unsafe fn widen8(pairs: __m256i) -> (__m256, __m256) {
    op!((
        _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)),
        _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(-0x1_0000)))
    ))
}

impl Simd for Avx2 {
    type V = W;
    type Pairs = (__m256i, __m256i);
    const REGISTERS: usize = 8;
    #[inline(always)]
    fn splat(self, x: f32) -> W {
        op!((_mm256_set1_ps(x), _mm256_set1_ps(x)))
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> W {
        op!((_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))))
    }
    #[inline(always)]
    unsafe fn load_n(self, p: *const f32, n: usize) -> W {
        op!((
            _mm256_maskload_ps(p, mask8(n)),
            if n > 8 {
                _mm256_maskload_ps(p.add(8), mask8(n - 8))
            } else {
                _mm256_setzero_ps()
            }
        ))
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: W) {
        op!({
            _mm256_storeu_ps(p, v.0);
            _mm256_storeu_ps(p.add(8), v.1);
        });
    }
    #[inline(always)]
    unsafe fn store_n(self, p: *mut f32, v: W, n: usize) {
        op!({
            _mm256_maskstore_ps(p, mask8(n), v.0);
            if n > 8 {
                _mm256_maskstore_ps(p.add(8), mask8(n - 8), v.1);
            }
        });
    }
    #[inline(always)]
    unsafe fn load_bf16(self, p: *const bf16) -> W {
        op!({
            let wide = |q: *const bf16| {
                let half = _mm_loadu_si128(q.cast());
                _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16))
            };
            (wide(p), wide(p.add(8)))
        })
    }
    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut bf16, v: W) {
        op!({
            let packed = _mm256_packus_epi32(narrow8(v.0), narrow8(v.1));
            _mm256_storeu_si256(p.cast(), _mm256_permute4x64_epi64(packed, 0b11_01_10_00));
        });
    }
    #[inline(always)]
    unsafe fn load_firsts(self, p: *const bf16) -> W {
        op!({
            let (a, b) = self.pairs(p);
            (widen8(a).0, widen8(b).0)
        })
    }
    #[inline(always)]
    unsafe fn load_seconds(self, p: *const bf16) -> W {
        op!({
            // Read once more: with the pairs kept from `load_firsts`, a full block of sums would not fit the sixteen registers.
            let mut p = p;
            std::arch::asm!("/* {0} */", inout(reg) p, options(pure, readonly, nostack, preserves_flags));
            let (a, b) = self.pairs(p);
            (widen8(a).1, widen8(b).1)
        })
    }
    #[inline(always)]
    unsafe fn pairs(self, p: *const bf16) -> Self::Pairs {
        op!((_mm256_loadu_si256(p.cast()), _mm256_loadu_si256(p.add(16).cast())))
    }
    #[inline(always)]
    unsafe fn splat_pair(self, p: *const bf16) -> Self::Pairs {
        let pair = op!(_mm256_set1_epi32(p.cast::<i32>().read_unaligned()));
        (pair, pair)
    }
    #[inline(always)]
    fn dot(self, a: Self::Pairs, b: Self::Pairs, sum: W) -> W {
        let eight = |a, b, sum| {
            op!({
                let ((a_first, a_second), (b_first, b_second)) = (widen8(a), widen8(b));
                _mm256_fmadd_ps(a_second, b_second, _mm256_fmadd_ps(a_first, b_first, sum))
            })
        };
        (eight(a.0, b.0, sum.0), eight(a.1, b.1, sum.1))
    }
    #[inline(always)]
    fn add(self, a: W, b: W) -> W {
        both(a, b, |x, y| op!(_mm256_add_ps(x, y)))
    }
    #[inline(always)]
    fn sub(self, a: W, b: W) -> W {
        both(a, b, |x, y| op!(_mm256_sub_ps(x, y)))
    }
    #[inline(always)]
    fn mul(self, a: W, b: W) -> W {
        both(a, b, |x, y| op!(_mm256_mul_ps(x, y)))
    }
    #[inline(always)]
    fn reciprocal(self, a: W) -> W {
        both(a, a, |x, _| op!(_mm256_div_ps(_mm256_set1_ps(1.0), x)))
    }
    #[inline(always)]
    fn fma(self, a: W, b: W, c: W) -> W {
        op!((_mm256_fmadd_ps(a.0, b.0, c.0), _mm256_fmadd_ps(a.1, b.1, c.1)))
    }
    #[inline(always)]
    fn max(self, a: W, b: W) -> W {
        both(a, b, |x, y| op!(_mm256_max_ps(x, y)))
    }
    #[inline(always)]
    fn min(self, a: W, b: W) -> W {
        both(a, b, |x, y| op!(_mm256_min_ps(x, y)))
    }
    #[inline(always)]
    fn abs(self, a: W) -> W {
        both(a, a, |x, _| op!(_mm256_andnot_ps(_mm256_set1_ps(-0.0), x)))
    }
    #[inline(always)]
    fn copysign(self, a: W, b: W) -> W {
        both(self.abs(a), b, |x, y| {
            op!(_mm256_or_ps(x, _mm256_and_ps(_mm256_set1_ps(-0.0), y)))
        })
    }
    #[inline(always)]
    fn round(self, a: W) -> W {
        both(a, a, |x, _| {
            op!(_mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC))
        })
    }
    #[inline(always)]
    fn scale2(self, a: W, n: W) -> W {
        both(a, n, |x, n| {
            op!({
                let power = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
                _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x), power))
            })
        })
    }
    #[inline(always)]
    fn swap_pairs(self, a: W) -> W {
        both(a, a, |x, _| op!(_mm256_permute_ps(x, 0b10_11_00_01)))
    }
    #[inline(always)]
    fn sum(self, a: W) -> f32 {
        op!({
            let eight = _mm256_add_ps(a.0, a.1);
            let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)))
        })
    }
    #[inline(always)]
    fn max_lane(self, a: W) -> f32 {
        op!({
            let eight = _mm256_max_ps(a.0, a.1);
            let four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps(two, two, 1)))
        })
    }
}

/// As [`narrow8`].
#[inline(always)]
pub(super) unsafe fn narrow16(v: __m512) -> __m512i {
    op!({
        let bits = _mm512_castps_si512(v);
        let odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
        let rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
        let nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
        let kept = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x40_0000));
        _mm512_srli_epi32(kept, 16)
    })
}

#[inline(always)]
fn mask16(n: usize) -> __mmask16 {
    if n >= LANES { !0 } else { (1u16 << n) - 1 }
}

/// As [`widen8`].
#[inline(always)]
unsafe fn widen16(pairs: __m512i) -> (__m512, __m512) {
    op!((
        _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)),
        _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(-0x1_0000)))
    ))
}

impl<const BF16: bool> Simd for Avx512<BF16> {
    type V = __m512;
    type Pairs = __m512i;
    const REGISTERS: usize = 32;
    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        op!(_mm512_set1_ps(x))
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> __m512 {
        op!(_mm512_loadu_ps(p))
    }
    #[inline(always)]
    unsafe fn load_n(self, p: *const f32, n: usize) -> __m512 {
        op!(_mm512_maskz_loadu_ps(mask16(n), p))
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: __m512) {
        op!(_mm512_storeu_ps(p, v));
    }
    #[inline(always)]
    unsafe fn store_n(self, p: *mut f32, v: __m512, n: usize) {
        op!(_mm512_mask_storeu_ps(p, mask16(n), v));
    }
    #[inline(always)]
    unsafe fn load_bf16(self, p: *const bf16) -> __m512 {
        op!(_mm512_castsi512_ps(_mm512_slli_epi32(
            _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast())),
            16
        )))
    }
    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut bf16, v: __m512) {
        if BF16 {
            op!(_mm256_storeu_si256(
                p.cast(),
                std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(v))
            ));
            return;
        }
        op!(_mm256_storeu_si256(p.cast(), _mm512_cvtepi32_epi16(narrow16(v))));
    }
    #[inline(always)]
    unsafe fn store_bf16_pair(self, p: *mut bf16, first: __m512, second: __m512) {
        if BF16 {
            op!(_mm512_storeu_si512(
                p.cast(),
                std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(second, first))
            ));
            return;
        }
        // SAFETY: the caller's promise.
        unsafe {
            self.store_bf16(p, first);
            self.store_bf16(p.add(LANES), second);
        }
    }
    #[inline(always)]
    unsafe fn load_firsts(self, p: *const bf16) -> __m512 {
        op!(widen16(self.pairs(p)).0)
    }
    #[inline(always)]
    unsafe fn load_seconds(self, p: *const bf16) -> __m512 {
        op!(widen16(self.pairs(p)).1)
    }
    #[inline(always)]
    unsafe fn pairs(self, p: *const bf16) -> __m512i {
        op!(_mm512_loadu_si512(p.cast()))
    }
    #[inline(always)]
    unsafe fn splat_pair(self, p: *const bf16) -> __m512i {
        op!(_mm512_set1_epi32(p.cast::<i32>().read_unaligned()))
    }
    #[inline(always)]
    fn dot(self, a: __m512i, b: __m512i, sum: __m512) -> __m512 {
        op!({
            if BF16 {
                let numbers = |v| std::mem::transmute::<__m512i, __m512bh>(v);
                return _mm512_dpbf16_ps(sum, numbers(a), numbers(b));
            }
            let ((a_first, a_second), (b_first, b_second)) = (widen16(a), widen16(b));
            _mm512_fmadd_ps(a_second, b_second, _mm512_fmadd_ps(a_first, b_first, sum))
        })
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_mul_ps(a, b))
    }
    #[inline(always)]
    fn reciprocal(self, a: __m512) -> __m512 {
        // Fourteen bits, then a step of Newton's: a division takes several times as long.
        op!({
            let near = _mm512_rcp14_ps(a);
            _mm512_fmadd_ps(near, _mm512_fnmadd_ps(a, near, _mm512_set1_ps(1.0)), near)
        })
    }
    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        op!(_mm512_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_max_ps(a, b))
    }
    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_min_ps(a, b))
    }
    #[inline(always)]
    fn abs(self, a: __m512) -> __m512 {
        op!(_mm512_abs_ps(a))
    }
    #[inline(always)]
    fn copysign(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_or_ps(_mm512_abs_ps(a), _mm512_and_ps(_mm512_set1_ps(-0.0), b)))
    }
    #[inline(always)]
    fn round(self, a: __m512) -> __m512 {
        op!(_mm512_roundscale_ps(a, 0))
    }
    #[inline(always)]
    fn scale2(self, a: __m512, n: __m512) -> __m512 {
        op!(_mm512_scalef_ps(a, n))
    }
    #[inline(always)]
    fn swap_pairs(self, a: __m512) -> __m512 {
        op!(_mm512_permute_ps(a, 0b10_11_00_01))
    }
    #[inline(always)]
    fn sum(self, a: __m512) -> f32 {
        op!(_mm512_reduce_add_ps(a))
    }
    #[inline(always)]
    fn max_lane(self, a: __m512) -> f32 {
        op!(_mm512_reduce_max_ps(a))
    }
}
