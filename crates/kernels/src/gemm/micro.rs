//! Register blocks: a few rows of A times a few vectors of columns of B.

use half::bf16;

use super::PANEL;
use crate::simd::{Kernel, LANES, Simd, Words, dispatch};

/// A panel of packed weights, f32 or pairs of bf16.
#[derive(Clone, Copy)]
pub(super) enum PanelPtr {
    F32(*const f32),
    Pairs(*const bf16),
}

/// What is multiplied, one step of the depth at a time.
pub(crate) trait Operands {
    type A: Copy;
    type B: Copy;
    /// Numbers of the depth in a step. B holds those of a column side by side.
    const STEP: usize;

    /// Adds one step's products to the sums.
    ///
    /// # Safety
    /// A must hold MR rows of a step, the given distance apart, B a step of NV vectors of columns.
    unsafe fn step<S: Simd, const MR: usize, const NV: usize>(
        s: S,
        a: (*const Self::A, usize),
        b: *const Self::B,
        sums: &mut [[S::V; NV]; MR],
    );
}

/// f32 times f32.
pub(crate) struct Floats;

impl Operands for Floats {
    type A = f32;
    type B = f32;
    const STEP: usize = 1;

    #[inline(always)]
    unsafe fn step<S: Simd, const MR: usize, const NV: usize>(
        s: S,
        (a, lda): (*const f32, usize),
        b: *const f32,
        sums: &mut [[S::V; NV]; MR],
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            let mut right = [s.zero(); NV];
            for (j, r) in right.iter_mut().enumerate() {
                *r = s.load(b.add(j * LANES));
            }
            for (i, line) in sums.iter_mut().enumerate() {
                let x = s.splat(*a.add(i * lda));
                for (sum, r) in line.iter_mut().zip(right) {
                    *sum = s.fma(x, r, *sum);
                }
            }
        }
    }
}

/// f32 times bf16, which are widened.
pub(crate) struct Widened;

impl Operands for Widened {
    type A = f32;
    type B = bf16;
    const STEP: usize = 2;

    #[inline(always)]
    unsafe fn step<S: Simd, const MR: usize, const NV: usize>(
        s: S,
        (a, lda): (*const f32, usize),
        b: *const bf16,
        sums: &mut [[S::V; NV]; MR],
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            let mut even = [s.zero(); NV];
            let mut odd = [s.zero(); NV];
            for j in 0..NV {
                (even[j], odd[j]) = s.load_pairs(b.add(j * 2 * LANES));
            }
            for (i, line) in sums.iter_mut().enumerate() {
                let (x, y) = (s.splat(*a.add(i * lda)), s.splat(*a.add(i * lda + 1)));
                for (j, sum) in line.iter_mut().enumerate() {
                    *sum = s.fma(y, odd[j], s.fma(x, even[j], *sum));
                }
            }
        }
    }
}

/// Pairs of bf16 times pairs of bf16, for levels with an instruction for it.
pub(crate) struct Dots;

impl Operands for Dots {
    type A = bf16;
    type B = bf16;
    const STEP: usize = 2;

    #[inline(always)]
    unsafe fn step<S: Simd, const MR: usize, const NV: usize>(
        s: S,
        (a, lda): (*const bf16, usize),
        b: *const bf16,
        sums: &mut [[S::V; NV]; MR],
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            let right: [S::Pairs; NV] = std::array::from_fn(|j| s.pairs(b.add(j * 2 * LANES)));
            for (i, line) in sums.iter_mut().enumerate() {
                let x = s.splat_pair(a.add(i * lda));
                for (sum, r) in line.iter_mut().zip(right) {
                    *sum = s.dot(x, r, *sum);
                }
            }
        }
    }
}

/// `c (+)= a b` for rows of A, `lda` apart, and one packed panel. C is contiguous, 32 columns a row. Meanwhile as many bytes from
/// `soon` on as [`soon_bytes`] says are brought near; it may be any pointer.
///
/// # Safety
/// As for [`block`] with two vectors.
pub(super) unsafe fn panel<O: Operands>(
    a: (*const O::A, usize),
    (b, soon): (*const O::B, *const O::B),
    c: *mut f32,
    size: (usize, usize),
    accumulate: bool,
) {
    dispatch(Block::<O> {
        a,
        b: (b, PANEL, 2),
        c: (c, PANEL),
        size,
        accumulate,
        soon: soon.cast(),
    });
}

/// Steps of the depth for each cache line that is brought near: the next panel is there after sixteen blocks of rows.
const STEPS_PER_LINE: usize = 8;

/// Bytes that one block of rows brings near.
pub(super) fn soon_bytes<O: Operands>(depth: usize) -> usize {
    (depth / O::STEP).div_ceil(STEPS_PER_LINE) * 64
}

/// Asks for a cache line, without waiting for it.
#[inline(always)]
fn bring_near(line: *const u8) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: a hint, which never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(line.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = line;
}

/// [`block`] at the level in use.
///
/// # Safety
/// As for [`block`].
pub(crate) unsafe fn dispatched<O: Operands>(
    a: (*const O::A, usize),
    b: (*const O::B, usize, usize),
    c: (*mut f32, usize),
    size: (usize, usize),
    accumulate: bool,
) {
    dispatch(Block::<O> {
        a,
        b,
        c,
        size,
        accumulate,
        soon: std::ptr::null(),
    });
}

struct Block<O: Operands> {
    a: (*const O::A, usize),
    b: (*const O::B, usize, usize),
    c: (*mut f32, usize),
    size: (usize, usize),
    accumulate: bool,
    /// What to bring near meanwhile; nothing if null.
    soon: *const u8,
}

impl<O: Operands> Kernel for Block<O> {
    type Out = ();
    #[inline(always)]
    fn run<S: Words>(self, s: S) {
        // SAFETY: made by `dispatched` only, whose caller promises it. The usual distances are named, to be compiled as such.
        unsafe {
            if (self.b.1, self.b.2, self.c.1) == (PANEL, 2, PANEL) {
                let (b, c) = ((self.b.0, PANEL, 2), (self.c.0, PANEL));
                block::<S, O>(s, self.a, b, c, self.size, (self.accumulate, self.soon));
            } else {
                block::<S, O>(s, self.a, self.b, self.c, self.size, (self.accumulate, self.soon));
            }
        }
    }
}

/// `c (+)= a b` for `rows` rows and one or two vectors of columns over `depth` numbers, a multiple of the step. A and C come with
/// the distance between their rows, B with its columns and how many vectors of them to take.
///
/// # Safety
/// A must hold `rows` rows of `depth`, B `depth` rows of the vectors, C `rows` rows of them.
#[inline(always)]
unsafe fn block<S: Simd, O: Operands>(
    s: S,
    (a, lda): (*const O::A, usize),
    (b, ldb, vectors): (*const O::B, usize, usize),
    (c, ldc): (*mut f32, usize),
    (rows, depth): (usize, usize),
    (accumulate, soon): (bool, *const u8),
) {
    let mut row = 0;
    while row < rows {
        // SAFETY: passed on, tile by tile.
        unsafe {
            let left = rows - row;
            let (a, c) = ((a.add(row * lda), lda), (c.add(row * ldc), ldc));
            let steps = depth / O::STEP;
            // The first tile does it for the block.
            let how = (accumulate, if row == 0 { soon } else { std::ptr::null() });
            row += match (S::REGISTERS, vectors) {
                (32, 2) => match left {
                    12.. => tile::<S, O, 12, 2>(s, a, (b, ldb), c, steps, how),
                    8.. => tile::<S, O, 8, 2>(s, a, (b, ldb), c, steps, how),
                    4.. => tile::<S, O, 4, 2>(s, a, (b, ldb), c, steps, how),
                    2.. => tile::<S, O, 2, 2>(s, a, (b, ldb), c, steps, how),
                    _ => tile::<S, O, 1, 2>(s, a, (b, ldb), c, steps, how),
                },
                (32, _) => match left {
                    12.. => tile::<S, O, 12, 1>(s, a, (b, ldb), c, steps, how),
                    8.. => tile::<S, O, 8, 1>(s, a, (b, ldb), c, steps, how),
                    4.. => tile::<S, O, 4, 1>(s, a, (b, ldb), c, steps, how),
                    _ => tile::<S, O, 1, 1>(s, a, (b, ldb), c, steps, how),
                },
                _ => {
                    let alone = (accumulate, std::ptr::null());
                    for j in 1..vectors {
                        let (b, c) = (b.add(j * LANES * O::STEP), c.0.add(j * LANES));
                        match left {
                            6.. => tile::<S, O, 6, 1>(s, a, (b, ldb), (c, ldc), steps, alone),
                            4.. => tile::<S, O, 4, 1>(s, a, (b, ldb), (c, ldc), steps, alone),
                            2.. => tile::<S, O, 2, 1>(s, a, (b, ldb), (c, ldc), steps, alone),
                            _ => tile::<S, O, 1, 1>(s, a, (b, ldb), (c, ldc), steps, alone),
                        };
                    }
                    match left {
                        6.. => tile::<S, O, 6, 1>(s, a, (b, ldb), c, steps, how),
                        4.. => tile::<S, O, 4, 1>(s, a, (b, ldb), c, steps, how),
                        2.. => tile::<S, O, 2, 1>(s, a, (b, ldb), c, steps, how),
                        _ => tile::<S, O, 1, 1>(s, a, (b, ldb), c, steps, how),
                    }
                }
            };
        }
    }
}

/// MR rows by NV vectors, in registers from the first step to the last, with a flag whether to add to C and what to bring near.
/// Returns MR.
///
/// # Safety
/// As for [`block`].
#[inline(always)]
unsafe fn tile<S: Simd, O: Operands, const MR: usize, const NV: usize>(
    s: S,
    (a, lda): (*const O::A, usize),
    (b, ldb): (*const O::B, usize),
    (c, ldc): (*mut f32, usize),
    steps: usize,
    (accumulate, soon): (bool, *const u8),
) -> usize {
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
        for line in 0..steps.div_ceil(STEPS_PER_LINE) {
            if !soon.is_null() {
                bring_near(soon.wrapping_add(line * 64));
            }
            for k in line * STEPS_PER_LINE..((line + 1) * STEPS_PER_LINE).min(steps) {
                let (a, b) = (a.add(k * O::STEP), b.add(k * ldb * O::STEP));
                O::step::<S, MR, NV>(s, (a, lda), b, &mut sums);
            }
        }
        for (i, line) in sums.iter().enumerate() {
            for (j, &sum) in line.iter().enumerate() {
                s.store(c.add(i * ldc + j * LANES), sum);
            }
        }
    }
    MR
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::{Isa, detected, set_isa};
    use crate::simd::Element;

    fn number(i: usize) -> f32 {
        (i * 7919 % 509) as f32 / 254.5 - 1.0
    }

    /// Blocks of every height, one and two vectors wide, against sums in f64.
    fn check<O: Operands<A: Element, B: Element>>(level: Isa) {
        let (depth, lda, ldb, ldc) = (10, 13, 48, 50);
        for (rows, vectors) in (1..=26).flat_map(|rows| [(rows, 1), (rows, 2)]) {
            let a: Vec<O::A> = (0..rows * lda).map(|i| O::A::from_f32(number(i))).collect();
            let b: Vec<O::B> = (0..depth * ldb).map(|i| O::B::from_f32(number(i + 77))).collect();
            for accumulate in [false, true] {
                let mut c: Vec<f32> = (0..rows * ldc).map(|i| i as f32 / 100.0).collect();
                let before = c.clone();
                // SAFETY: all rows exist.
                unsafe {
                    let b = (b.as_ptr(), ldb, vectors);
                    dispatched::<O>((a.as_ptr(), lda), b, (c.as_mut_ptr(), ldc), (rows, depth), accumulate);
                }
                for (at, (&got, before)) in c.iter().zip(before).enumerate() {
                    let (row, column) = (at / ldc, at % ldc);
                    let mut want = f64::from(before);
                    if column < vectors * LANES {
                        let product = |k: usize| {
                            let b = b[(k / O::STEP * ldb + column) * O::STEP + k % O::STEP];
                            f64::from(a[row * lda + k].to_f32()) * f64::from(b.to_f32())
                        };
                        want = (0..depth).map(product).sum::<f64>() + if accumulate { want } else { 0.0 };
                    }
                    let off = (f64::from(got) - want).abs();
                    assert!(off < 1e-5, "{level:?} {rows}x{vectors} at {at}: {got} beside {want}");
                }
            }
        }
    }

    #[test]
    fn blocks_are_sums_of_products() {
        for level in Isa::ALL.into_iter().filter(|&level| level <= detected()) {
            set_isa(level);
            check::<Floats>(level);
            check::<Widened>(level);
            check::<Dots>(level);
        }
        set_isa(Isa::Amx);
    }
}
