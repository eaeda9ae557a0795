//! Register blocks: a few rows of A times a few vectors of columns of B.

use half::bf16;

use super::PANEL;
use crate::simd::{Kernel, LANES, Simd, Words, dispatch, inlined};

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
            multiply_add(s, (a, lda), right, sums);
        }
    }
}

/// Adds the products of a column of A and a row of B.
///
/// # Safety
/// A must hold MR numbers, the given distance apart.
#[inline(always)]
unsafe fn multiply_add<S: Simd, const MR: usize, const NV: usize>(
    s: S,
    (a, lda): (*const f32, usize),
    right: [S::V; NV],
    sums: &mut [[S::V; NV]; MR],
) {
    for (i, line) in sums.iter_mut().enumerate() {
        // SAFETY: the caller's promise.
        let x = s.splat(unsafe { *a.add(i * lda) });
        for (sum, r) in line.iter_mut().zip(right) {
            *sum = s.fma(x, r, *sum);
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
            let mut right = [s.zero(); NV];
            for (j, r) in right.iter_mut().enumerate() {
                *r = s.load_firsts(b.add(j * 2 * LANES));
            }
            multiply_add(s, (a, lda), right, sums);
            for (j, r) in right.iter_mut().enumerate() {
                *r = s.load_seconds(b.add(j * 2 * LANES));
            }
            multiply_add(s, (a.add(1), lda), right, sums);
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
            let mut right = [s.pairs(b); NV];
            for (j, r) in right.iter_mut().enumerate() {
                *r = s.pairs(b.add(j * 2 * LANES));
            }
            for (i, line) in sums.iter_mut().enumerate() {
                let x = s.splat_pair(a.add(i * lda));
                for (sum, r) in line.iter_mut().zip(right) {
                    *sum = s.dot(x, r, *sum);
                }
            }
        }
    }
}

/// `c (+)= a b` for rows of A, `lda` apart, and one packed panel. C is contiguous, 32 columns a row. Meanwhile what `soon` names is
/// brought near.
///
/// # Safety
/// As for [`block`] with two vectors.
pub(super) unsafe fn panel<O: Operands>(
    a: (*const O::A, usize),
    (b, soon): (*const O::B, Soon),
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
        soon,
    });
}

/// Steps of the depth between two requests for memory.
const STEPS_PER_REQUEST: usize = 16;
/// Bytes of a cache line.
const LINE: usize = 64;

/// Memory that will be read soon: a product asks for it line by line while it multiplies.
#[derive(Clone, Copy)]
pub(super) struct Soon {
    /// Any pointer; nothing is asked for if null.
    from: *const u8,
    /// Cache lines of a request.
    lines: usize,
}

impl Soon {
    pub(super) fn nothing() -> Self {
        Self {
            from: std::ptr::null(),
            lines: 0,
        }
    }

    /// The share of the packed panel at `panel` that block `index` of `blocks` asks for, when each multiplies `depth` numbers.
    pub(super) fn share<O: Operands>(panel: *const O::B, depth: usize, (index, blocks): (usize, usize)) -> Self {
        let steps = depth / O::STEP;
        let bytes = steps * PANEL * size_of::<O::B>() * O::STEP;
        let requests = steps / STEPS_PER_REQUEST;
        let lines = bytes.div_ceil(LINE).div_ceil(requests.max(1) * blocks);
        let start = index * requests * lines * LINE;
        if start >= bytes {
            return Self::nothing();
        }
        Self {
            from: panel.cast::<u8>().wrapping_add(start),
            lines,
        }
    }

    #[inline(always)]
    fn request(self, index: usize) {
        if !self.from.is_null() {
            for line in 0..self.lines {
                bring_near(self.from.wrapping_add((index * self.lines + line) * LINE));
            }
        }
    }
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
        soon: Soon::nothing(),
    });
}

struct Block<O: Operands> {
    a: (*const O::A, usize),
    b: (*const O::B, usize, usize),
    c: (*mut f32, usize),
    size: (usize, usize),
    accumulate: bool,
    /// What to bring near meanwhile.
    soon: Soon,
}

impl<O: Operands> Kernel for Block<O> {
    type Out = ();
    #[inline(always)]
    fn run<S: Words>(self, s: S) {
        // SAFETY: made by `dispatched` only, whose caller promises it. The usual distances are named, to be compiled as such.
        unsafe {
            if (self.b.1, self.b.2, self.c.1) == (PANEL, 2, PANEL) {
                let (b, c) = ((self.b.0, PANEL, 2), (self.c.0, PANEL));
                if O::STEP == 1 || S::REGISTERS == 32 {
                    block::<S, O, 4>(s, self.a, b, c, self.size, (self.accumulate, self.soon));
                } else {
                    // Laid out further, it would not fit the registers.
                    block::<S, O, 1>(s, self.a, b, c, self.size, (self.accumulate, self.soon));
                }
            } else {
                block::<S, O, 1>(s, self.a, self.b, self.c, self.size, (self.accumulate, Soon::nothing()));
            }
        }
    }
}

/// `c (+)= a b` for `rows` rows and one or two vectors of columns over `depth` numbers, a multiple of the step. A and C come with
/// the distance between their rows, B with its columns and how many vectors of them to take. `STEPS` of the depth are taken at a
/// time.
///
/// # Safety
/// A must hold `rows` rows of `depth`, B `depth` rows of the vectors, C `rows` rows of them.
#[inline(always)]
unsafe fn block<S: Simd, O: Operands, const STEPS: usize>(
    s: S,
    (a, lda): (*const O::A, usize),
    (b, ldb, vectors): (*const O::B, usize, usize),
    (c, ldc): (*mut f32, usize),
    (rows, depth): (usize, usize),
    (accumulate, soon): (bool, Soon),
) {
    let mut row = 0;
    while row < rows {
        // SAFETY: passed on, tile by tile.
        unsafe {
            let left = rows - row;
            let (a, c) = ((a.add(row * lda), lda), (c.add(row * ldc), ldc));
            let steps = depth / O::STEP;
            // The first tile does it for the block.
            let how = (accumulate, if row == 0 { soon } else { Soon::nothing() });
            row += match (S::REGISTERS, vectors) {
                (32, 2) => match left {
                    12.. => tile::<S, O, 12, 2, STEPS>(s, a, (b, ldb), c, steps, how),
                    8.. => tile::<S, O, 8, 2, STEPS>(s, a, (b, ldb), c, steps, how),
                    4.. => tile::<S, O, 4, 2, STEPS>(s, a, (b, ldb), c, steps, how),
                    2.. => tile::<S, O, 2, 2, STEPS>(s, a, (b, ldb), c, steps, how),
                    _ => tile::<S, O, 1, 2, STEPS>(s, a, (b, ldb), c, steps, how),
                },
                (32, _) => match left {
                    12.. => tile::<S, O, 12, 1, STEPS>(s, a, (b, ldb), c, steps, how),
                    8.. => tile::<S, O, 8, 1, STEPS>(s, a, (b, ldb), c, steps, how),
                    4.. => tile::<S, O, 4, 1, STEPS>(s, a, (b, ldb), c, steps, how),
                    _ => tile::<S, O, 1, 1, STEPS>(s, a, (b, ldb), c, steps, how),
                },
                _ => {
                    let alone = (accumulate, Soon::nothing());
                    for j in 1..vectors {
                        let (b, c) = (b.add(j * LANES * O::STEP), c.0.add(j * LANES));
                        match left {
                            8 => tile::<S, O, 4, 1, STEPS>(s, a, (b, ldb), (c, ldc), steps, alone),
                            6.. => tile::<S, O, 6, 1, STEPS>(s, a, (b, ldb), (c, ldc), steps, alone),
                            4.. => tile::<S, O, 4, 1, STEPS>(s, a, (b, ldb), (c, ldc), steps, alone),
                            2.. => tile::<S, O, 2, 1, STEPS>(s, a, (b, ldb), (c, ldc), steps, alone),
                            _ => tile::<S, O, 1, 1, STEPS>(s, a, (b, ldb), (c, ldc), steps, alone),
                        };
                    }
                    match left {
                        // Two of four: two rows do not keep the units busy.
                        8 => tile::<S, O, 4, 1, STEPS>(s, a, (b, ldb), c, steps, how),
                        6.. => tile::<S, O, 6, 1, STEPS>(s, a, (b, ldb), c, steps, how),
                        4.. => tile::<S, O, 4, 1, STEPS>(s, a, (b, ldb), c, steps, how),
                        2.. => tile::<S, O, 2, 1, STEPS>(s, a, (b, ldb), c, steps, how),
                        _ => tile::<S, O, 1, 1, STEPS>(s, a, (b, ldb), c, steps, how),
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
unsafe fn tile<S: Simd, O: Operands, const MR: usize, const NV: usize, const STEPS: usize>(
    s: S,
    (a, lda): (*const O::A, usize),
    (b, ldb): (*const O::B, usize),
    (c, ldc): (*mut f32, usize),
    steps: usize,
    (accumulate, soon): (bool, Soon),
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
        let mut step = inlined(
            #[inline(always)]
            |k: usize| {
                let (a, b) = (a.add(k * O::STEP), b.add(k * ldb * O::STEP));
                O::step::<S, MR, NV>(s, (a, lda), b, &mut sums);
            },
        );
        let mut from = 0;
        while from < steps {
            let to = (from + STEPS_PER_REQUEST).min(steps);
            soon.request(from / STEPS_PER_REQUEST);
            let whole = from + (to - from) / STEPS * STEPS;
            for k in (from..whole).step_by(STEPS) {
                // Of a known number, so that they are laid out one after the other.
                for i in 0..STEPS {
                    step(k + i);
                }
            }
            for k in whole..to {
                step(k);
            }
            from = to;
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
