//! What the processor could do at most: what benches are held against.

use std::hint::black_box;
use std::time::Instant;

use crate::WeightType;
use crate::pool::{parallel_for, threads};
use crate::simd::{Kernel, Simd, dispatch};

/// GFLOP/s of all threads together, doing nothing but multiply-adds at the level in use: on registers in f32; in bf16 by AMX
/// tiles on a few numbers in the first-level cache, or as f32 where there are none. The best of a few tries.
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
    if kind == WeightType::Bf16 && crate::isa::isa() == crate::isa::Isa::Amx {
        return on_tiles();
    }
    let _ = kind;
    dispatch(Registers)
}

struct Registers;

impl Kernel for Registers {
    type Out = u64;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> u64 {
        const ROUNDS: u64 = 1 << 18;
        // As many chains as keep two units busy, and no more than there are registers for.
        let (x, y) = (s.splat(black_box(0.999)), s.splat(black_box(1e-3)));
        let mut sums = [x; 12];
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = s.fma(*sum, x, y);
            }
        }
        let total = sums.into_iter().fold(s.zero(), |a, b| s.add(a, b));
        black_box(s.sum(total));
        ROUNDS * 12 * 16 * 2
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
