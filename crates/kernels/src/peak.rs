//! What the processor could do at most: what benches are held against.

use std::hint::black_box;
use std::time::Instant;

use crate::WeightType;
use crate::pool::{parallel_for, threads};
use crate::simd::{Kernel, LANES, Words, dispatch};

/// GFLOP/s of all threads together, doing nothing but multiply-adds at the level in use: on registers in f32; in bf16 by AMX
/// tiles on a few numbers in the first-level cache, by dot products on registers, or as f32 where there are neither. The best of
/// a few tries.
pub fn peak_gflops(kind: WeightType) -> f64 {
    let tries = (0..8).map(|_| {
        let start = Instant::now();
        let done = std::sync::atomic::AtomicU64::new(0);
        parallel_for(threads(), |_| {
            done.fetch_add(one(kind), std::sync::atomic::Ordering::Relaxed);
        });
        done.into_inner() as f64 / start.elapsed().as_secs_f64() / 1e9
    });
    tries.fold(0.0, f64::max)
}

/// Works for some milliseconds and answers the operations done.
fn one(kind: WeightType) -> u64 {
    #[cfg(target_arch = "x86_64")]
    match (kind, crate::isa::isa()) {
        (WeightType::Bf16, crate::isa::Isa::Amx) => return on_tiles(),
        (WeightType::Bf16, crate::isa::Isa::Avx512Bf16) => return dispatch(Dots),
        _ => {}
    }
    let _ = kind;
    dispatch(Registers)
}

/// Chains that keep two units busy, and no more than there are registers for.
const CHAINS: usize = 12;
const ROUNDS: u64 = 1 << 18;

#[cfg(target_arch = "x86_64")]
struct Dots;

#[cfg(target_arch = "x86_64")]
impl Kernel for Dots {
    type Out = u64;
    #[inline(always)]
    fn run<S: Words>(self, s: S) -> u64 {
        let numbers = black_box([half::bf16::ONE; 2 * LANES]);
        // SAFETY: there are sixteen pairs.
        let x = unsafe { s.pairs(numbers.as_ptr()) };
        let mut sums = [s.zero(); CHAINS];
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = s.dot(x, x, *sum);
            }
        }
        black_box(sums.map(|sum| s.sum(sum)));
        ROUNDS * (CHAINS * LANES * 4) as u64
    }
}

struct Registers;

impl Kernel for Registers {
    type Out = u64;
    #[inline(always)]
    fn run<S: Words>(self, s: S) -> u64 {
        let (x, y) = (s.splat(black_box(0.999)), s.splat(black_box(1e-3)));
        let mut sums = [x; CHAINS];
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = s.fma(*sum, x, y);
            }
        }
        let total = sums.into_iter().fold(s.zero(), |a, b| s.add(a, b));
        black_box(s.sum(total));
        ROUNDS * (CHAINS * LANES * 2) as u64
    }
}

#[cfg(target_arch = "x86_64")]
fn on_tiles() -> u64 {
    use crate::amx::{Block, Form, TILE, Tiles};
    use crate::buffer::AlignedVec;
    const STEPS: usize = 8;
    const ROUNDS: u64 = 1 << 14;
    let numbers: AlignedVec<half::bf16> = AlignedVec::zeroed(2 * STEPS * TILE);
    // SAFETY: the level is AMX.
    let tiles = unsafe { Tiles::configure() };
    tiles.zero();
    for _ in 0..ROUNDS {
        let block = Block {
            a: numbers.as_ptr(),
            a_lower: numbers.as_ptr(),
            a_row: 64,
            a_step: 2 * TILE,
            b: numbers.as_ptr(),
            b_row: 128,
            b_step: 4 * TILE,
            steps: STEPS,
            next: numbers.as_ptr(),
        };
        // SAFETY: A is 8 tiles of 1 KiB, B 8 pairs of them; the numbers hold both.
        unsafe { tiles.add(Form::Full, block) };
    }
    ROUNDS * STEPS as u64 * 32 * 32 * 32 * 2
}
