//! AMX: products of 16x32 and 32x16 bf16 tiles, summed in f32. Written as assembly because Rust has no stable intrinsics for it.
//!
//! Tiles 0 to 3 hold sums, a quarter each of 32 rows by 32 columns; 4 to 7 what is multiplied.
//!
//! No compiled code uses the tile registers, so they keep their contents between the blocks below.

use std::arch::asm;

use half::bf16;

/// Elements of one packed A tile: 16 rows of 32 bf16.
pub(crate) const TILE: usize = 512;

/// Whether the processor has bf16 tiles and the system lets this process use them. Asks for the permission (it holds for the
/// whole process and the threads it makes later; asking again is harmless).
pub(crate) fn available() -> bool {
    const AMX_TILE_AND_BF16: u32 = 1 << 24 | 1 << 22;
    let leaf = std::arch::x86_64::__cpuid_count(7, 0);
    let state = std::arch::x86_64::__cpuid_count(0xd, 0).eax >> 17 & 3;
    leaf.edx & AMX_TILE_AND_BF16 == AMX_TILE_AND_BF16 && state == 3 && permitted()
}

#[cfg(target_os = "linux")]
fn permitted() -> bool {
    const ARCH_PRCTL: i64 = 158;
    const ARCH_REQ_XCOMP_PERM: i64 = 0x1023;
    const XFEATURE_XTILEDATA: i64 = 18;
    let result: i64;
    // SAFETY: the system call reads no memory and changes only which registers the process may use.
    unsafe {
        asm!("syscall", inlateout("rax") ARCH_PRCTL => result, in("rdi") ARCH_REQ_XCOMP_PERM, in("rsi") XFEATURE_XTILEDATA,
             lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    result == 0
}

#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}

#[repr(C, align(64))]
struct TileConfig {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    bytes_per_row: [u16; 16],
    rows: [u8; 16],
}

static FULL_TILES: TileConfig = TileConfig {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    bytes_per_row: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

/// Eight full tiles are configured on this thread while this lives.
pub(crate) struct Tiles(std::marker::PhantomData<*const ()>);

impl Tiles {
    /// # Safety
    /// [`available`] must have answered true.
    pub(crate) unsafe fn configure() -> Self {
        // SAFETY: the configuration is valid and the permission was given.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const FULL_TILES, options(nostack, readonly)) };
        Tiles(std::marker::PhantomData)
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: tiles are configured.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}

/// What one call multiplies. Strides are in bytes.
#[derive(Clone, Copy)]
pub(crate) struct Block {
    /// Upper 16 rows of A: rows `a_row` bytes apart; the next 32 columns `a_step` bytes further.
    pub(crate) a: *const bf16,
    /// Lower 16 rows of A.
    pub(crate) a_lower: *const bf16,
    pub(crate) a_row: usize,
    pub(crate) a_step: usize,
    /// B in pairs of rows: 16 pairs `b_row` bytes apart; the next 32 rows `b_step` bytes further, the right tile 64 bytes on.
    pub(crate) b: *const bf16,
    pub(crate) b_row: usize,
    pub(crate) b_step: usize,
    /// Number of 32-wide steps, at least 1.
    pub(crate) steps: usize,
    /// What will be wanted next: 256 bytes a step are brought into the second-level cache. Any address will do.
    pub(crate) next: *const bf16,
}

/// Which of the four 16x16 tiles of sums are in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// 32 rows, 32 columns.
    Full,
    /// The upper 16 rows.
    Upper,
    /// The left 16 columns.
    Left,
}

/// Sums in memory, f32, rows `row` bytes apart.
#[derive(Clone, Copy)]
pub(crate) struct Sums {
    pub(crate) at: *mut f32,
    pub(crate) row: usize,
}

impl Tiles {
    /// Sets the sums to zero.
    #[inline(always)]
    pub(crate) fn zero(&self) {
        // SAFETY: tiles are configured.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                options(nostack, nomem)
            );
        }
    }

    /// Reads the sums.
    ///
    /// # Safety
    /// The rows and columns of `form` must be readable.
    #[inline(always)]
    pub(crate) unsafe fn load(&self, form: Form, Sums { at, row }: Sums) {
        // SAFETY: the caller's promise.
        unsafe {
            asm!("tileloadd tmm0, [{c} + {cs}*1]", c = in(reg) at, cs = in(reg) row, options(nostack, readonly));
            if form != Form::Left {
                asm!("tileloadd tmm1, [{c} + {cs}*1 + 64]", c = in(reg) at, cs = in(reg) row, options(nostack, readonly));
            }
            let at = at.byte_add(16 * row);
            if form != Form::Upper {
                asm!("tileloadd tmm2, [{c} + {cs}*1]", c = in(reg) at, cs = in(reg) row, options(nostack, readonly));
            }
            if form == Form::Full {
                asm!("tileloadd tmm3, [{c} + {cs}*1 + 64]", c = in(reg) at, cs = in(reg) row, options(nostack, readonly));
            }
        }
    }

    /// Writes the sums.
    ///
    /// # Safety
    /// The rows and columns of `form` must be writable.
    #[inline(always)]
    pub(crate) unsafe fn store(&self, form: Form, Sums { at, row }: Sums) {
        // SAFETY: the caller's promise.
        unsafe {
            asm!("tilestored [{c} + {cs}*1], tmm0", c = in(reg) at, cs = in(reg) row, options(nostack));
            if form != Form::Left {
                asm!("tilestored [{c} + {cs}*1 + 64], tmm1", c = in(reg) at, cs = in(reg) row, options(nostack));
            }
            let at = at.byte_add(16 * row);
            if form != Form::Upper {
                asm!("tilestored [{c} + {cs}*1], tmm2", c = in(reg) at, cs = in(reg) row, options(nostack));
            }
            if form == Form::Full {
                asm!("tilestored [{c} + {cs}*1 + 64], tmm3", c = in(reg) at, cs = in(reg) row, options(nostack));
            }
        }
    }

    /// Adds A B to the sums.
    ///
    /// # Safety
    /// All rows named by the block must be readable, as far as `form` uses them.
    #[inline(always)]
    pub(crate) unsafe fn add(&self, form: Form, p: Block) {
        // SAFETY: the caller's promise.
        unsafe {
            match form {
                Form::Full => asm!(
                    "2:",
                    "tileloadd tmm6, [{b} + {bs}*1]",
                    "tileloadd tmm4, [{a} + {as_}*1]",
                    "prefetcht1 [{next}]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tileloadd tmm5, [{a2} + {as_}*1]",
                    "prefetcht1 [{next} + 64]",
                    "tdpbf16ps tmm2, tmm5, tmm6",
                    "tileloadd tmm7, [{b} + {bs}*1 + 64]",
                    "prefetcht1 [{next} + 128]",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    "prefetcht1 [{next} + 192]",
                    "tdpbf16ps tmm3, tmm5, tmm7",
                    "add {a}, {ak}",
                    "add {a2}, {ak}",
                    "add {b}, {bk}",
                    "add {next}, 256",
                    "dec {n}",
                    "jnz 2b",
                    next = inout(reg) p.next => _,
                    a = inout(reg) p.a => _, a2 = inout(reg) p.a_lower => _, as_ = in(reg) p.a_row, ak = in(reg) p.a_step,
                    b = inout(reg) p.b => _, bs = in(reg) p.b_row, bk = in(reg) p.b_step,
                    n = inout(reg) p.steps => _,
                    options(nostack, readonly),
                ),
                Form::Upper => asm!(
                    "2:",
                    "tileloadd tmm4, [{a} + {as_}*1]",
                    "tileloadd tmm6, [{b} + {bs}*1]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tileloadd tmm7, [{b} + {bs}*1 + 64]",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    "add {a}, {ak}",
                    "add {b}, {bk}",
                    "dec {n}",
                    "jnz 2b",
                    a = inout(reg) p.a => _, as_ = in(reg) p.a_row, ak = in(reg) p.a_step,
                    b = inout(reg) p.b => _, bs = in(reg) p.b_row, bk = in(reg) p.b_step,
                    n = inout(reg) p.steps => _,
                    options(nostack, readonly),
                ),
                Form::Left => asm!(
                    "2:",
                    "tileloadd tmm6, [{b} + {bs}*1]",
                    "tileloadd tmm4, [{a} + {as_}*1]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tileloadd tmm5, [{a2} + {as_}*1]",
                    "tdpbf16ps tmm2, tmm5, tmm6",
                    "add {a}, {ak}",
                    "add {a2}, {ak}",
                    "add {b}, {bk}",
                    "dec {n}",
                    "jnz 2b",
                    a = inout(reg) p.a => _, a2 = inout(reg) p.a_lower => _, as_ = in(reg) p.a_row, ak = in(reg) p.a_step,
                    b = inout(reg) p.b => _, bs = in(reg) p.b_row, bk = in(reg) p.b_step,
                    n = inout(reg) p.steps => _,
                    options(nostack, readonly),
                ),
            }
        }
    }

    /// Adds A B to the sums where both are [split](crate::gemm) in two bf16: the low parts of A lie `a_low` bytes behind the high
    /// ones, those of B 2 KiB behind theirs, in steps of 4 KiB. 512 bytes a step are prefetched.
    ///
    /// # Safety
    /// As [`Tiles::add`], for the low parts too.
    #[inline(always)]
    pub(crate) unsafe fn add_split(&self, form: Form, p: Block, a_low: usize) {
        let (low, low_lower) = (p.a.wrapping_byte_add(a_low), p.a_lower.wrapping_byte_add(a_low));
        // SAFETY: the caller's promise.
        unsafe {
            match form {
                Form::Full => asm!(
                    "2:",
                    "tileloadd tmm6, [{b} + {bs}*1]",
                    "tileloadd tmm4, [{l} + {as_}*1]",
                    "prefetcht1 [{next}]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tileloadd tmm5, [{l2} + {as_}*1]",
                    "prefetcht1 [{next} + 64]",
                    "tdpbf16ps tmm2, tmm5, tmm6",
                    "tileloadd tmm7, [{b} + {bs}*1 + 64]",
                    "prefetcht1 [{next} + 128]",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    "tileloadd tmm4, [{a} + {as_}*1]",
                    "prefetcht1 [{next} + 192]",
                    "tdpbf16ps tmm3, tmm5, tmm7",
                    "tileloadd tmm5, [{a2} + {as_}*1]",
                    "prefetcht1 [{next} + 256]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tdpbf16ps tmm2, tmm5, tmm6",
                    "tileloadd tmm6, [{b} + {bs}*1 + 2048]",
                    "prefetcht1 [{next} + 320]",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    "tdpbf16ps tmm3, tmm5, tmm7",
                    "tileloadd tmm7, [{b} + {bs}*1 + 2112]",
                    "prefetcht1 [{next} + 384]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tdpbf16ps tmm2, tmm5, tmm6",
                    "prefetcht1 [{next} + 448]",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    "tdpbf16ps tmm3, tmm5, tmm7",
                    "add {a}, {ak}",
                    "add {a2}, {ak}",
                    "add {l}, {ak}",
                    "add {l2}, {ak}",
                    "add {b}, 4096",
                    "add {next}, 512",
                    "dec {n}",
                    "jnz 2b",
                    next = inout(reg) p.next => _,
                    a = inout(reg) p.a => _, a2 = inout(reg) p.a_lower => _, as_ = in(reg) p.a_row, ak = in(reg) p.a_step,
                    l = inout(reg) low => _, l2 = inout(reg) low_lower => _,
                    b = inout(reg) p.b => _, bs = in(reg) p.b_row,
                    n = inout(reg) p.steps => _,
                    options(nostack, readonly),
                ),
                Form::Upper => asm!(
                    "2:",
                    "tileloadd tmm4, [{l} + {as_}*1]",
                    "tileloadd tmm6, [{b} + {bs}*1]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tileloadd tmm7, [{b} + {bs}*1 + 64]",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    "tileloadd tmm5, [{a} + {as_}*1]",
                    "tdpbf16ps tmm0, tmm5, tmm6",
                    "tileloadd tmm6, [{b} + {bs}*1 + 2048]",
                    "tdpbf16ps tmm1, tmm5, tmm7",
                    "tileloadd tmm7, [{b} + {bs}*1 + 2112]",
                    "tdpbf16ps tmm0, tmm5, tmm6",
                    "tdpbf16ps tmm1, tmm5, tmm7",
                    "add {a}, {ak}",
                    "add {l}, {ak}",
                    "add {b}, 4096",
                    "dec {n}",
                    "jnz 2b",
                    a = inout(reg) p.a => _, as_ = in(reg) p.a_row, ak = in(reg) p.a_step,
                    l = inout(reg) low => _,
                    b = inout(reg) p.b => _, bs = in(reg) p.b_row,
                    n = inout(reg) p.steps => _,
                    options(nostack, readonly),
                ),
                Form::Left => asm!(
                    "2:",
                    "tileloadd tmm6, [{b} + {bs}*1]",
                    "tileloadd tmm4, [{l} + {as_}*1]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tileloadd tmm5, [{l2} + {as_}*1]",
                    "tdpbf16ps tmm2, tmm5, tmm6",
                    "tileloadd tmm4, [{a} + {as_}*1]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tileloadd tmm5, [{a2} + {as_}*1]",
                    "tdpbf16ps tmm2, tmm5, tmm6",
                    "tileloadd tmm7, [{b} + {bs}*1 + 2048]",
                    "tdpbf16ps tmm0, tmm4, tmm7",
                    "tdpbf16ps tmm2, tmm5, tmm7",
                    "add {a}, {ak}",
                    "add {a2}, {ak}",
                    "add {l}, {ak}",
                    "add {l2}, {ak}",
                    "add {b}, 4096",
                    "dec {n}",
                    "jnz 2b",
                    a = inout(reg) p.a => _, a2 = inout(reg) p.a_lower => _, as_ = in(reg) p.a_row, ak = in(reg) p.a_step,
                    l = inout(reg) low => _, l2 = inout(reg) low_lower => _,
                    b = inout(reg) p.b => _, bs = in(reg) p.b_row,
                    n = inout(reg) p.steps => _,
                    options(nostack, readonly),
                ),
            }
        }
    }
}
