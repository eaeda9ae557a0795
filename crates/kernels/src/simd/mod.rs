//! Sixteen f32 lanes at every instruction level, so that one source makes the kernels of all of them.
//!
//! A value of [`Avx2`] or [`Avx512`] exists only after the features were detected ([`dispatch`] makes it), so its methods are
//! safe. A kernel is a type with [`Kernel::run`], inlined into a function compiled for the level.

mod portable;
mod words;
#[cfg(target_arch = "x86_64")]
mod x86;

pub(crate) use words::Words;

use portable::Portable;

use half::bf16;

/// Lanes of a vector.
pub(crate) const LANES: usize = 16;

/// Operations on sixteen lanes. `*_n` forms touch only the first `n` lanes of memory and read zeros beyond.
#[allow(dead_code)]
pub(crate) trait Simd: Copy {
    type V: Copy;
    /// Sixteen pairs of bf16.
    type Pairs: Copy;
    /// Vector registers of sixteen lanes' worth: how large a register block may be (32 or 8).
    const REGISTERS: usize;
    fn splat(self, x: f32) -> Self::V;
    /// # Safety
    /// 16 floats must be readable at `p` (any alignment).
    unsafe fn load(self, p: *const f32) -> Self::V;
    /// # Safety
    /// `n` floats must be readable at `p`.
    unsafe fn load_n(self, p: *const f32, n: usize) -> Self::V;
    /// # Safety
    /// 16 floats must be writable at `p`.
    unsafe fn store(self, p: *mut f32, v: Self::V);
    /// # Safety
    /// `n` floats must be writable at `p`.
    unsafe fn store_n(self, p: *mut f32, v: Self::V, n: usize);
    /// # Safety
    /// 16 bf16 must be readable at `p`.
    unsafe fn load_bf16(self, p: *const bf16) -> Self::V;
    /// Rounds to nearest even.
    /// # Safety
    /// 16 bf16 must be writable at `p`.
    unsafe fn store_bf16(self, p: *mut bf16, v: Self::V);
    /// [`Self::store_bf16`] of two neighbouring vectors.
    /// # Safety
    /// 32 bf16 must be writable at `p`.
    #[inline(always)]
    unsafe fn store_bf16_pair(self, p: *mut bf16, first: Self::V, second: Self::V) {
        // SAFETY: the caller's promise.
        unsafe {
            self.store_bf16(p, first);
            self.store_bf16(p.add(LANES), second);
        }
    }
    /// The first of each of sixteen pairs of bf16.
    /// # Safety
    /// 32 bf16 must be readable at `p`.
    unsafe fn load_firsts(self, p: *const bf16) -> Self::V;
    /// The second of each of sixteen pairs of bf16.
    /// # Safety
    /// 32 bf16 must be readable at `p`.
    unsafe fn load_seconds(self, p: *const bf16) -> Self::V;
    /// # Safety
    /// 32 bf16 must be readable at `p`.
    unsafe fn pairs(self, p: *const bf16) -> Self::Pairs;
    /// The pair at `p`, sixteen times.
    /// # Safety
    /// 2 bf16 must be readable at `p`.
    unsafe fn splat_pair(self, p: *const bf16) -> Self::Pairs;
    /// `sum` and the products of both numbers of each pair.
    fn dot(self, a: Self::Pairs, b: Self::Pairs, sum: Self::V) -> Self::V;
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    /// 1 / a for a positive, finite a; the last bit may differ.
    fn reciprocal(self, a: Self::V) -> Self::V;
    /// a * b + c, fused where the level has it.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    fn abs(self, a: Self::V) -> Self::V;
    /// |a| with the sign of b.
    fn copysign(self, a: Self::V, b: Self::V) -> Self::V;
    /// Nearest integer.
    fn round(self, a: Self::V) -> Self::V;
    /// a * 2^n for an a between 0.5 and 2 and an integral n in -126..=127; some number as small where that is below 2^-126.
    fn scale2(self, a: Self::V, n: Self::V) -> Self::V;
    /// Swaps neighbours: lanes 1 0 3 2 ...
    fn swap_pairs(self, a: Self::V) -> Self::V;
    fn sum(self, a: Self::V) -> f32;
    fn max_lane(self, a: Self::V) -> f32;

    #[inline(always)]
    fn zero(self) -> Self::V {
        self.splat(0.0)
    }

    /// e^x, relative error below 2e-7; 0 far below, finite above.
    #[inline(always)]
    fn exp(self, x: Self::V) -> Self::V {
        let x = self.max(self.min(x, self.splat(88.0)), self.splat(-87.3));
        let n = self.round(self.mul(x, self.splat(std::f32::consts::LOG2_E)));
        let r = self.fma(n, self.splat(-0.693_359_4), x);
        let r = self.fma(n, self.splat(2.121_944_4e-4), r);
        let mut p = self.splat(1.987_569_2e-4);
        p = self.fma(p, r, self.splat(1.398_199_9e-3));
        p = self.fma(p, r, self.splat(8.333_452e-3));
        p = self.fma(p, r, self.splat(4.166_579_6e-2));
        p = self.fma(p, r, self.splat(1.666_666_6e-1));
        p = self.fma(p, r, self.splat(0.5));
        p = self.fma(self.mul(r, r), p, self.add(r, self.splat(1.0)));
        self.scale2(p, n)
    }

    /// 2^x for an x of about 0 or less, down to 2^-126. Relative error below 2e-7 with FINE, else below 8e-5, little beside
    /// what rounding to bf16 does.
    #[inline(always)]
    fn exp2<const FINE: bool>(self, x: Self::V) -> Self::V {
        let x = self.max(x, self.splat(-126.0));
        let n = self.round(x);
        let r = self.sub(x, n);
        let terms: &[f32] = if FINE { &FINE_TERMS } else { &COARSE_TERMS };
        let mut p = self.splat(terms[0]);
        for &term in &terms[1..] {
            p = self.fma(p, r, self.splat(term));
        }
        self.scale2(p, n)
    }

    /// 1 / (1 + e^-x).
    #[inline(always)]
    fn sigmoid(self, x: Self::V) -> Self::V {
        let e = self.exp(self.sub(self.zero(), x));
        self.reciprocal(self.add(self.splat(1.0), e))
    }

    #[inline(always)]
    fn tanh(self, x: Self::V) -> Self::V {
        let s = self.sigmoid(self.add(x, x));
        self.fma(s, self.splat(2.0), self.splat(-1.0))
    }

    /// Error function, absolute error below 2e-7 (Abramowitz and Stegun 7.1.26).
    #[inline(always)]
    fn erf(self, x: Self::V) -> Self::V {
        // Beyond 4.5 it is 1 in f32, and the terms below would be too small for normal numbers.
        let a = self.min(self.abs(x), self.splat(4.5));
        let t = self.reciprocal(self.fma(a, self.splat(0.327_591_1), self.splat(1.0)));
        let mut p = self.splat(1.061_405_4);
        p = self.fma(p, t, self.splat(-1.453_152));
        p = self.fma(p, t, self.splat(1.421_413_7));
        p = self.fma(p, t, self.splat(-0.284_496_74));
        p = self.fma(p, t, self.splat(0.254_829_6));
        let e = self.exp(self.sub(self.zero(), self.mul(a, a)));
        let y = self.sub(self.splat(1.0), self.mul(self.mul(p, t), e));
        self.copysign(y, x)
    }
}

/// 2^x between -0.5 and 0.5, highest power first: the polynomials of least relative error.
pub(crate) const FINE_TERMS: [f32; 6] = [
    0.001_327_647_2,
    0.009_675_541,
    0.055_507_13,
    0.240_221_2,
    0.693_146_94,
    1.000_000_1,
];
const COARSE_TERMS: [f32; 4] = [0.055_171_67, 0.242_611_13, 0.693_260_97, 0.999_928_06];

/// A slice of either element type. The kernels take these, so that they are compiled once, in this crate.
#[derive(Debug, Clone, Copy)]
pub enum View<'a> {
    F32(&'a [f32]),
    Bf16(&'a [bf16]),
}

/// A mutable slice of either element type.
#[derive(Debug)]
pub enum ViewMut<'a> {
    F32(&'a mut [f32]),
    Bf16(&'a mut [bf16]),
}

impl View<'_> {
    pub(crate) fn len(&self) -> usize {
        match self {
            View::F32(v) => v.len(),
            View::Bf16(v) => v.len(),
        }
    }
}

impl ViewMut<'_> {
    /// The same slice for a shorter time.
    pub(crate) fn again(&mut self) -> ViewMut<'_> {
        match self {
            ViewMut::F32(v) => ViewMut::F32(v),
            ViewMut::Bf16(v) => ViewMut::Bf16(v),
        }
    }

    pub(crate) fn len(&self) -> usize {
        match self {
            ViewMut::F32(v) => v.len(),
            ViewMut::Bf16(v) => v.len(),
        }
    }
}

/// What activations may be stored as: f32 or bf16.
pub trait Element: Copy + Default + Send + Sync + std::fmt::Debug + PartialEq + 'static + private::Lanes {
    /// A slice with its type as a value.
    fn view(values: &[Self]) -> View<'_>;
    /// A mutable slice with its type as a value.
    fn view_mut(values: &mut [Self]) -> ViewMut<'_>;
    /// Its value.
    fn to_f32(self) -> f32;
    /// The nearest value of this type.
    fn from_f32(x: f32) -> Self;
}

pub(crate) mod private {
    use super::{LANES, Simd};

    /// Vector access to slices of an element type; sealed.
    pub trait Lanes: Sized {
        const IS_BF16: bool;
        /// # Safety
        /// 16 elements must be readable at `p`.
        #[allow(private_interfaces, private_bounds)]
        unsafe fn load_at<S: Simd>(s: S, p: *const Self) -> S::V;
        /// # Safety
        /// 16 elements must be writable at `p`.
        #[allow(private_interfaces, private_bounds)]
        unsafe fn store_at<S: Simd>(s: S, p: *mut Self, v: S::V);

        #[inline(always)]
        #[allow(private_interfaces, private_bounds)]
        fn load<S: Simd>(s: S, chunk: &[Self; LANES]) -> S::V {
            // SAFETY: the array holds 16 elements.
            unsafe { Self::load_at(s, chunk.as_ptr()) }
        }
        #[inline(always)]
        #[allow(private_interfaces, private_bounds)]
        fn store<S: Simd>(s: S, chunk: &mut [Self; LANES], v: S::V) {
            // SAFETY: the array holds 16 elements.
            unsafe { Self::store_at(s, chunk.as_mut_ptr(), v) }
        }
    }
}

impl private::Lanes for f32 {
    const IS_BF16: bool = false;
    #[inline(always)]
    #[allow(private_interfaces, private_bounds)]
    unsafe fn load_at<S: Simd>(s: S, p: *const f32) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { s.load(p) }
    }
    #[inline(always)]
    #[allow(private_interfaces, private_bounds)]
    unsafe fn store_at<S: Simd>(s: S, p: *mut f32, v: S::V) {
        // SAFETY: the caller's promise.
        unsafe { s.store(p, v) }
    }
}

impl private::Lanes for bf16 {
    const IS_BF16: bool = true;
    #[inline(always)]
    #[allow(private_interfaces, private_bounds)]
    unsafe fn load_at<S: Simd>(s: S, p: *const bf16) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { s.load_bf16(p) }
    }
    #[inline(always)]
    #[allow(private_interfaces, private_bounds)]
    unsafe fn store_at<S: Simd>(s: S, p: *mut bf16, v: S::V) {
        // SAFETY: the caller's promise.
        unsafe { s.store_bf16(p, v) }
    }
}

impl Element for f32 {
    fn view(values: &[f32]) -> View<'_> {
        View::F32(values)
    }
    fn view_mut(values: &mut [f32]) -> ViewMut<'_> {
        ViewMut::F32(values)
    }
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
    #[inline(always)]
    fn from_f32(x: f32) -> f32 {
        x
    }
}

impl Element for bf16 {
    fn view(values: &[bf16]) -> View<'_> {
        View::Bf16(values)
    }
    fn view_mut(values: &mut [bf16]) -> ViewMut<'_> {
        ViewMut::Bf16(values)
    }
    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
    #[inline(always)]
    fn from_f32(x: f32) -> bf16 {
        bf16::from_bits(portable::round_bf16(x))
    }
}

/// Loads 16 elements.
#[inline(always)]
pub(crate) fn load_lanes<S: Simd, T: Element>(s: S, chunk: &[T; LANES]) -> S::V {
    T::load(s, chunk)
}

/// Stores 16 elements.
#[inline(always)]
pub(crate) fn store_lanes<S: Simd, T: Element>(s: S, chunk: &mut [T; LANES], v: S::V) {
    T::store(s, chunk, v);
}

/// Stores two neighbouring numbers of each lane.
#[inline(always)]
pub(crate) fn store_pairs<S: Words>(s: S, chunk: &mut [bf16; 2 * LANES], first: S::V, second: S::V) {
    // SAFETY: the array holds 32 elements.
    unsafe { s.store_pairs(chunk.as_mut_ptr(), first, second) }
}

/// Loads up to 16 elements of a slice; zeros beyond.
#[inline(always)]
pub(crate) fn load_some<S: Simd, T: Element>(s: S, src: &[T]) -> S::V {
    if let Some(chunk) = src.first_chunk::<LANES>() {
        return T::load(s, chunk);
    }
    let mut chunk = [T::default(); LANES];
    chunk[..src.len()].copy_from_slice(src);
    T::load(s, &chunk)
}

/// Stores up to 16 lanes, as many as the slice holds.
#[inline(always)]
pub(crate) fn store_some<S: Simd, T: Element>(s: S, dst: &mut [T], v: S::V) {
    if let Some(chunk) = dst.first_chunk_mut::<LANES>() {
        return T::store(s, chunk, v);
    }
    let mut chunk = [T::default(); LANES];
    T::store(s, &mut chunk, v);
    let n = dst.len();
    dst.copy_from_slice(&chunk[..n]);
}

/// Names a closure that is marked `#[inline(always)]` (the attribute is allowed on arguments only). A closure that is not
/// inlined into its kernel would be compiled without the level's instructions.
#[inline(always)]
pub(crate) fn inlined<F>(closure: F) -> F {
    closure
}

/// A computation that is compiled once for each level.
pub(crate) trait Kernel {
    type Out;
    /// Must be `#[inline(always)]`.
    fn run<S: Words>(self, s: S) -> Self::Out;
}

/// Runs a kernel at the level in use.
#[inline]
pub(crate) fn dispatch<K: Kernel>(kernel: K) -> K::Out {
    #[cfg(target_arch = "x86_64")]
    {
        use crate::isa::{Isa, isa};
        let level = isa();
        if level >= Isa::Avx512Bf16 {
            // SAFETY: the level is never above what was detected.
            return unsafe { x86::run_avx512_bf16(kernel) };
        }
        if level == Isa::Avx512 {
            // SAFETY: as above.
            return unsafe { x86::run_avx512(kernel) };
        }
        if level == Isa::Avx2 {
            // SAFETY: as above.
            return unsafe { x86::run_avx2(kernel) };
        }
    }
    kernel.run(Portable)
}
