//! The level that needs nothing: arrays of sixteen floats, left to the compiler's vectoriser.

use half::bf16;

use super::{LANES, Simd};

/// Plain Rust.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Portable;

type V = [f32; LANES];

#[inline(always)]
fn map(a: V, f: impl Fn(f32) -> f32) -> V {
    let mut out = a;
    for x in &mut out {
        *x = f(*x);
    }
    out
}

#[inline(always)]
fn zip(a: V, b: V, f: impl Fn(f32, f32) -> f32) -> V {
    let mut out = a;
    for (x, y) in out.iter_mut().zip(b) {
        *x = f(*x, y);
    }
    out
}

/// Bits of the bf16 nearest to `x`, ties to even; NaN stays NaN.
#[inline(always)]
pub(crate) fn round_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    let nan = (bits >> 16) | 0x40;
    (if x.is_nan() { nan } else { rounded }) as u16
}

#[inline(always)]
fn widen(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

impl Simd for Portable {
    type V = V;
    type Pairs = [[bf16; 2]; LANES];
    const REGISTERS: usize = 8;
    #[inline(always)]
    fn splat(self, x: f32) -> V {
        [x; LANES]
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> V {
        // SAFETY: the caller's promise; unaligned read of plain floats.
        unsafe { p.cast::<V>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn load_n(self, p: *const f32, n: usize) -> V {
        let mut v = [0.0; LANES];
        // SAFETY: the caller's promise.
        let src = unsafe { std::slice::from_raw_parts(p, n.min(LANES)) };
        v[..src.len()].copy_from_slice(src);
        v
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: V) {
        // SAFETY: the caller's promise.
        unsafe { p.cast::<V>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn store_n(self, p: *mut f32, v: V, n: usize) {
        for (i, x) in v.into_iter().enumerate().take(n) {
            // SAFETY: the caller's promise.
            unsafe { p.add(i).write(x) }
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, p: *const bf16) -> V {
        // SAFETY: the caller's promise.
        let bits = unsafe { p.cast::<[u16; LANES]>().read_unaligned() };
        let mut v = [0.0; LANES];
        for (x, b) in v.iter_mut().zip(bits) {
            *x = widen(b);
        }
        v
    }
    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut bf16, v: V) {
        let mut bits = [0u16; LANES];
        for (b, x) in bits.iter_mut().zip(v) {
            *b = round_bf16(x);
        }
        // SAFETY: the caller's promise.
        unsafe { p.cast::<[u16; LANES]>().write_unaligned(bits) }
    }
    #[inline(always)]
    unsafe fn load_firsts(self, p: *const bf16) -> V {
        // SAFETY: the caller's promise.
        unsafe { p.cast::<[[u16; 2]; LANES]>().read_unaligned() }.map(|[first, _]| widen(first))
    }
    #[inline(always)]
    unsafe fn load_seconds(self, p: *const bf16) -> V {
        // SAFETY: the caller's promise.
        unsafe { p.cast::<[[u16; 2]; LANES]>().read_unaligned() }.map(|[_, second]| widen(second))
    }
    #[inline(always)]
    unsafe fn pairs(self, p: *const bf16) -> Self::Pairs {
        // SAFETY: the caller's promise; unaligned read of plain numbers.
        unsafe { p.cast::<Self::Pairs>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn splat_pair(self, p: *const bf16) -> Self::Pairs {
        // SAFETY: as above.
        [unsafe { p.cast::<[bf16; 2]>().read_unaligned() }; LANES]
    }
    #[inline(always)]
    fn dot(self, a: Self::Pairs, b: Self::Pairs, sum: V) -> V {
        let mut sum = sum;
        for (sum, (a, b)) in sum.iter_mut().zip(a.into_iter().zip(b)) {
            for (a, b) in a.into_iter().zip(b) {
                *sum += widen(a.to_bits()) * widen(b.to_bits());
            }
        }
        sum
    }
    #[inline(always)]
    fn add(self, a: V, b: V) -> V {
        zip(a, b, |x, y| x + y)
    }
    #[inline(always)]
    fn sub(self, a: V, b: V) -> V {
        zip(a, b, |x, y| x - y)
    }
    #[inline(always)]
    fn mul(self, a: V, b: V) -> V {
        zip(a, b, |x, y| x * y)
    }
    #[inline(always)]
    fn reciprocal(self, a: V) -> V {
        map(a, |x| 1.0 / x)
    }
    #[inline(always)]
    fn fma(self, a: V, b: V, c: V) -> V {
        self.add(self.mul(a, b), c)
    }
    #[inline(always)]
    fn max(self, a: V, b: V) -> V {
        zip(a, b, |x, y| if x > y { x } else { y })
    }
    #[inline(always)]
    fn min(self, a: V, b: V) -> V {
        zip(a, b, |x, y| if x < y { x } else { y })
    }
    #[inline(always)]
    fn abs(self, a: V) -> V {
        map(a, f32::abs)
    }
    #[inline(always)]
    fn copysign(self, a: V, b: V) -> V {
        zip(a, b, f32::copysign)
    }
    #[inline(always)]
    fn round(self, a: V) -> V {
        // Adding and taking away 1.5 * 2^23 rounds to nearest even for |x| < 2^22, which is all that `exp` needs.
        map(a, |x| (x + 12_582_912.0) - 12_582_912.0)
    }
    #[inline(always)]
    fn scale2(self, a: V, n: V) -> V {
        zip(a, n, |x, n| x * f32::from_bits((((n as i32) + 127) << 23) as u32))
    }
    #[inline(always)]
    fn swap_pairs(self, a: V) -> V {
        let mut out = a;
        for pair in out.as_chunks_mut::<2>().0 {
            pair.swap(0, 1);
        }
        out
    }
    #[inline(always)]
    fn sum(self, a: V) -> f32 {
        let mut half = [0.0; 8];
        for (i, h) in half.iter_mut().enumerate() {
            *h = a[i] + a[i + 8];
        }
        let quarter = [
            half[0] + half[4],
            half[1] + half[5],
            half[2] + half[6],
            half[3] + half[7],
        ];
        (quarter[0] + quarter[2]) + (quarter[1] + quarter[3])
    }
    #[inline(always)]
    fn max_lane(self, a: V) -> f32 {
        a.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }
}
