//! Which instructions the kernels may use: found once at run time, lowered on request.
//!
//! `SD_KERNELS_ISA=portable|avx2|avx512|avx512bf16|amx` caps the level for the whole process; [`set_isa`] does so from code
//! (tests run every kernel at every level the machine has). A level above what the machine has is ignored.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

/// An instruction level; each includes the ones before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Isa {
    /// Plain Rust, whatever the target's baseline is.
    Portable = 1,
    /// AVX2 with FMA and F16C.
    Avx2 = 2,
    /// AVX-512 F, BW, DQ, VL.
    Avx512 = 3,
    /// AVX512-BF16 dot products.
    Avx512Bf16 = 4,
    /// AMX tiles with bf16.
    Amx = 5,
}

impl Isa {
    /// Every level, lowest first.
    pub const ALL: [Isa; 5] = [Isa::Portable, Isa::Avx2, Isa::Avx512, Isa::Avx512Bf16, Isa::Amx];

    /// Its name in `SD_KERNELS_ISA`.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
            Isa::Avx512Bf16 => "avx512bf16",
            Isa::Amx => "amx",
        }
    }

    fn from_name(name: &str) -> Option<Isa> {
        Isa::ALL
            .into_iter()
            .find(|isa| isa.name().eq_ignore_ascii_case(name.trim()))
    }

    fn from_code(code: u8) -> Option<Isa> {
        Isa::ALL.into_iter().find(|isa| *isa as u8 == code)
    }
}

/// 0 while nothing was chosen.
static CURRENT: AtomicU8 = AtomicU8::new(0);

/// The highest level of this machine.
pub fn detected() -> Isa {
    static DETECTED: OnceLock<Isa> = OnceLock::new();
    *DETECTED.get_or_init(detect)
}

/// The level in use.
pub fn isa() -> Isa {
    Isa::from_code(CURRENT.load(Ordering::Relaxed)).unwrap_or_else(|| {
        let wanted = std::env::var("SD_KERNELS_ISA")
            .ok()
            .and_then(|name| Isa::from_name(&name));
        set_isa(wanted.unwrap_or(Isa::Amx))
    })
}

/// Caps the level for the whole process and returns what is now in use. Packed weights keep working: their layout does not
/// depend on the level.
pub fn set_isa(wanted: Isa) -> Isa {
    let level = wanted.min(detected());
    CURRENT.store(level as u8, Ordering::Relaxed);
    level
}

#[cfg(target_arch = "x86_64")]
fn detect() -> Isa {
    use std::arch::is_x86_feature_detected as has;
    if !(has!("avx2") && has!("fma") && has!("f16c")) {
        return Isa::Portable;
    }
    if !(has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl")) {
        return Isa::Avx2;
    }
    if !has!("avx512bf16") {
        return Isa::Avx512;
    }
    if crate::amx::available() {
        Isa::Amx
    } else {
        Isa::Avx512Bf16
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn detect() -> Isa {
    Isa::Portable
}
