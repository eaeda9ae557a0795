//! Register blocks: rows of A against one packed panel.

use half::bf16;

use super::PANEL;
use crate::simd::{Kernel, LANES, Simd, dispatch};

/// A panel of packed weights, f32 or pairs of bf16.
#[derive(Clone, Copy)]
pub(crate) enum PanelPtr {
    F32(*const f32),
    Pairs(*const bf16),
}

/// `c (+)= a b` for `rows` rows of 32 columns. A is f32, `lda` apart; `depth` is even for pairs.
///
/// # Safety
/// A must hold `rows` rows of `depth`, B `depth` rows of 32, C `rows` rows of 32 (contiguous).
pub(super) unsafe fn block_f32(
    a: (*const f32, usize),
    b: PanelPtr,
    c: *mut f32,
    size: (usize, usize),
    accumulate: bool,
) {
    dispatch(BlockF32 {
        a,
        b,
        c,
        size,
        accumulate,
    });
}

struct BlockF32 {
    a: (*const f32, usize),
    b: PanelPtr,
    c: *mut f32,
    size: (usize, usize),
    accumulate: bool,
}

impl Kernel for BlockF32 {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // SAFETY: made by `block_f32` only, whose caller promises it.
        unsafe {
            match self.b {
                PanelPtr::F32(b) => panel::<S, false>(s, self.a, b, self.c, self.size, self.accumulate),
                PanelPtr::Pairs(b) => panel::<S, true>(s, self.a, b.cast(), self.c, self.size, self.accumulate),
            }
        }
    }
}

#[inline(always)]
unsafe fn panel<S: Simd, const PAIRS: bool>(
    s: S,
    (a, lda): (*const f32, usize),
    b: *const f32,
    c: *mut f32,
    (rows, depth): (usize, usize),
    accumulate: bool,
) {
    let mut row = 0;
    // SAFETY: passed on, block by block.
    unsafe {
        let at = |row: usize| ((a.add(row * lda), lda), c.add(row * PANEL));
        if S::REGISTERS == 32 {
            while row < rows {
                let ((a, lda), c) = at(row);
                match rows - row {
                    12.. => {
                        tile::<S, PAIRS, 12, 2>(s, a, lda, b, c, depth, accumulate);
                        row += 12;
                    }
                    6.. => {
                        tile::<S, PAIRS, 6, 2>(s, a, lda, b, c, depth, accumulate);
                        row += 6;
                    }
                    3.. => {
                        tile::<S, PAIRS, 3, 2>(s, a, lda, b, c, depth, accumulate);
                        row += 3;
                    }
                    _ => {
                        tile::<S, PAIRS, 1, 2>(s, a, lda, b, c, depth, accumulate);
                        row += 1;
                    }
                }
            }
            return;
        }
        while row < rows {
            let ((a, lda), c) = at(row);
            // 16 columns on; a row of pairs is as long in floats as a row of f32 columns.
            let (b2, c2) = (b.add(LANES), c.add(LANES));
            if rows - row >= 4 {
                tile::<S, PAIRS, 4, 1>(s, a, lda, b, c, depth, accumulate);
                tile::<S, PAIRS, 4, 1>(s, a, lda, b2, c2, depth, accumulate);
                row += 4;
            } else {
                tile::<S, PAIRS, 1, 1>(s, a, lda, b, c, depth, accumulate);
                tile::<S, PAIRS, 1, 1>(s, a, lda, b2, c2, depth, accumulate);
                row += 1;
            }
        }
    }
}

/// MR rows by NV vectors with rows of 32 columns.
#[inline(always)]
unsafe fn tile<S: Simd, const PAIRS: bool, const MR: usize, const NV: usize>(
    s: S,
    a: *const f32,
    lda: usize,
    b: *const f32,
    c: *mut f32,
    depth: usize,
    accumulate: bool,
) {
    // SAFETY: passed on.
    unsafe { strided_tile::<S, PAIRS, MR, NV>(s, (a, lda), (b, PANEL), (c, PANEL), depth, accumulate) }
}

/// MR rows by NV vectors; each matrix with its distance between rows. With PAIRS, `b` points to pairs of bf16.
///
/// # Safety
/// A must hold MR rows of `depth`, B `depth` rows of NV * 16 (half as many rows of pairs), C MR rows of NV * 16.
#[inline(always)]
pub(crate) unsafe fn strided_tile<S: Simd, const PAIRS: bool, const MR: usize, const NV: usize>(
    s: S,
    (a, lda): (*const f32, usize),
    (b, ldb): (*const f32, usize),
    (c, ldc): (*mut f32, usize),
    depth: usize,
    accumulate: bool,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums = [[s.zero(); NV]; MR];
        if accumulate {
            for (i, line) in sums.iter_mut().enumerate() {
                for (j, sum) in line.iter_mut().enumerate() {
                    *sum = s.load(c.add(i * ldc + j * LANES));
                }
            }
        }
        if PAIRS {
            for k in 0..depth / 2 {
                let mut even = [s.zero(); NV];
                let mut odd = [s.zero(); NV];
                for j in 0..NV {
                    (even[j], odd[j]) = s.load_pairs(b.add(k * ldb + j * LANES).cast());
                }
                for (i, line) in sums.iter_mut().enumerate() {
                    let (x, y) = (s.splat(*a.add(i * lda + 2 * k)), s.splat(*a.add(i * lda + 2 * k + 1)));
                    for (j, sum) in line.iter_mut().enumerate() {
                        *sum = s.fma(y, odd[j], s.fma(x, even[j], *sum));
                    }
                }
            }
        } else {
            for k in 0..depth {
                let mut right = [s.zero(); NV];
                for (j, r) in right.iter_mut().enumerate() {
                    *r = s.load(b.add(k * ldb + j * LANES));
                }
                for (i, line) in sums.iter_mut().enumerate() {
                    let x = s.splat(*a.add(i * lda + k));
                    for (j, sum) in line.iter_mut().enumerate() {
                        *sum = s.fma(x, right[j], *sum);
                    }
                }
            }
        }
        for (i, line) in sums.iter().enumerate() {
            for (j, &sum) in line.iter().enumerate() {
                s.store(c.add(i * ldc + j * LANES), sum);
            }
        }
    }
}

/// `c (+)= a b` with AVX512-BF16 dot products; A is bf16, rows `lda` apart, `depth` even.
///
/// # Safety
/// As for [`block_f32`], and the machine must have AVX512-BF16.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(super) unsafe fn block_dot(
    (a, lda): (*const bf16, usize),
    b: *const bf16,
    c: *mut f32,
    (rows, depth): (usize, usize),
    accumulate: bool,
) {
    let mut row = 0;
    // SAFETY: passed on, block by block.
    unsafe {
        while row < rows {
            let (a, c) = (a.add(row * lda), c.add(row * PANEL));
            match rows - row {
                12.. => {
                    dot_tile::<12>(a, lda, b, c, depth, accumulate);
                    row += 12;
                }
                4.. => {
                    dot_tile::<4>(a, lda, b, c, depth, accumulate);
                    row += 4;
                }
                _ => {
                    dot_tile::<1>(a, lda, b, c, depth, accumulate);
                    row += 1;
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
#[inline]
unsafe fn dot_tile<const MR: usize>(
    a: *const bf16,
    lda: usize,
    b: *const bf16,
    c: *mut f32,
    depth: usize,
    accumulate: bool,
) {
    use std::arch::x86_64::*;
    // SAFETY: the caller's promise; a vector of 32 bf16 is 64 plain bytes.
    unsafe {
        let as_bf16 = |v: __m512i| std::mem::transmute::<__m512i, __m512bh>(v);
        let mut sums = [[_mm512_setzero_ps(); 2]; MR];
        if accumulate {
            for (i, line) in sums.iter_mut().enumerate() {
                *line = [
                    _mm512_loadu_ps(c.add(i * PANEL)),
                    _mm512_loadu_ps(c.add(i * PANEL + LANES)),
                ];
            }
        }
        for k in 0..depth / 2 {
            let left = as_bf16(_mm512_loadu_si512(b.add(k * 2 * PANEL).cast()));
            let right = as_bf16(_mm512_loadu_si512(b.add(k * 2 * PANEL + 2 * LANES).cast()));
            for (i, line) in sums.iter_mut().enumerate() {
                let x = as_bf16(_mm512_set1_epi32(a.add(i * lda + 2 * k).cast::<i32>().read_unaligned()));
                line[0] = _mm512_dpbf16_ps(line[0], x, left);
                line[1] = _mm512_dpbf16_ps(line[1], x, right);
            }
        }
        for (i, line) in sums.iter().enumerate() {
            _mm512_storeu_ps(c.add(i * PANEL), line[0]);
            _mm512_storeu_ps(c.add(i * PANEL + LANES), line[1]);
        }
    }
}
