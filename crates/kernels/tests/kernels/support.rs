//! Seeded numbers, comparison with a bound by type, and a run at each instruction level.

use std::sync::{Mutex, PoisonError};

use half::bf16;
use sd_kernels::{Element, Isa, detected, set_isa, set_threads};

/// The level and the number of threads are the process's: tests that set them take turns.
static TURN: Mutex<()> = Mutex::new(());

/// Runs `check` at each level of this machine.
pub fn at_every_level(check: impl Fn(Isa)) {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    for level in Isa::ALL.into_iter().filter(|&level| level <= detected()) {
        assert_eq!(set_isa(level), level);
        check(level);
    }
    set_isa(Isa::Amx);
}

/// Checks that `make` gives the same bits with one, two and three threads, at each level.
pub fn same_for_any_threads<T: Element>(make: impl Fn() -> Vec<T>) {
    at_every_level(|level| {
        set_threads(1);
        let alone = make();
        for threads in [2, 3] {
            set_threads(threads);
            assert!(alone == make(), "{level:?} with {threads} threads differs");
        }
        set_threads(2);
    });
}

/// Whether a check of so many multiply-adds is for this run: Miri, which interprets them one by one, is left the small ones.
pub fn in_reach(work: usize) -> bool {
    !cfg!(miri) || work <= 4_000
}

/// Deterministic numbers, about uniform in -1..1.
pub struct Numbers(u64);

impl Numbers {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> f32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    pub fn vec<T: Element>(&mut self, len: usize) -> Vec<T> {
        (0..len).map(|_| T::from_f32(self.next())).collect()
    }
}

/// Unit roundoff of the type.
pub fn epsilon<T: Element>() -> f64 {
    if size_of::<T>() == 2 {
        1.0 / 256.0
    } else {
        f64::from(f32::EPSILON)
    }
}

pub fn wide<T: Element>(values: &[T]) -> Vec<f64> {
    values.iter().map(|x| f64::from(x.to_f32())).collect()
}

pub fn rounded(values: &[f32]) -> Vec<bf16> {
    values.iter().map(|&x| bf16::from_f32(x)).collect()
}

/// Each element within `bound * (magnitude of the element's terms)` plus rounding of the stored type.
pub fn assert_close<T: Element>(what: &str, got: &[T], want: &[f64], scale: &[f64], bound: f64) {
    assert_eq!(got.len(), want.len(), "{what}: length");
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let got = f64::from(got.to_f32());
        let allowed = bound * scale[i.min(scale.len() - 1)] + epsilon::<T>() * want.abs() + 1e-30;
        assert!(
            (got - want).abs() <= allowed,
            "{what}: element {i} is {got}, want {want} (allowed {allowed:e})"
        );
    }
}
