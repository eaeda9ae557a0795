//! Rows copied next to each other, in the order in which a product reads them.

use half::bf16;

use super::rows::{Piece, Rows};
#[cfg(target_arch = "x86_64")]
use super::split::split;
#[cfg(target_arch = "x86_64")]
use crate::simd::inlined;
use crate::simd::{Element, Kernel, LANES, Simd, View, load_some, store_some};

/// Gathers rows as f32, `lda` apart; with `round`, to the nearest bf16. An odd depth gets a zero behind it.
pub(super) struct GatherF32<'a> {
    pub(super) a: &'a Rows<'a>,
    pub(super) rows: (usize, usize),
    pub(super) columns: (usize, usize),
    pub(super) out: &'a mut [f32],
    pub(super) lda: usize,
    pub(super) round: bool,
}

impl Kernel for GatherF32<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self {
            a,
            rows,
            columns: (k0, k1),
            out,
            lda,
            round,
        } = self;
        a.gather(
            rows,
            (k0, k1),
            #[inline(always)]
            |row, k, piece| match piece {
                Piece::Values(start, length) => {
                    let line = &mut out[row * lda + k..][..length];
                    match a.x {
                        View::F32(x) => copy(s, &x[start..start + length], line),
                        View::Bf16(x) => copy(s, &x[start..start + length], line),
                    }
                    if round && matches!(a.x, View::F32(_)) {
                        for x in line {
                            *x = <bf16 as Element>::from_f32(*x).to_f32();
                        }
                    }
                }
                Piece::Zeros(count) => out[row * lda + k..][..count].fill(0.0),
            },
        );
        if (k1 - k0) % 2 == 1 {
            for row in 0..rows.1 - rows.0 {
                out[row * lda + k1 - k0] = 0.0;
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
/// Where gathered rows go; 32 columns from a multiple of 32 on lie together.
#[derive(Clone, Copy)]
pub(super) enum Order {
    /// Row by row, `lda` apart.
    Rows { lda: usize },
    /// Tiles of 16 rows by 32 columns, `per_tile_row` numbers for 16 rows.
    Tiles { per_tile_row: usize },
}

#[cfg(target_arch = "x86_64")]
impl Order {
    #[inline(always)]
    fn index(self, row: usize, k: usize) -> usize {
        match self {
            Order::Rows { lda } => row * lda + k,
            Order::Tiles { per_tile_row } => row / 16 * per_tile_row + k / 32 * 512 + row % 16 * 32 + k % 32,
        }
    }
}

#[cfg(target_arch = "x86_64")]
/// Gathers rows as bf16; with `SPLIT`, what that rounds away too. The depth is filled up with zeros to a multiple of 32.
pub(super) struct GatherBf16<'a, const SPLIT: bool> {
    pub(super) a: &'a Rows<'a>,
    pub(super) rows: (usize, usize),
    pub(super) columns: (usize, usize),
    pub(super) out: &'a mut [bf16],
    /// As long as `out` with `SPLIT`, else not used.
    pub(super) low: &'a mut [bf16],
    pub(super) order: Order,
}

#[cfg(target_arch = "x86_64")]
impl<const SPLIT: bool> Kernel for GatherBf16<'_, SPLIT> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self {
            a,
            rows,
            columns: (k0, k1),
            out,
            low,
            order,
        } = self;
        let depth = k1 - k0;
        let aligned = a.is_aligned() && k0.is_multiple_of(32);
        let clear = inlined(
            #[inline(always)]
            |index: usize, count: usize, out: &mut [bf16], low: &mut [bf16]| {
                out[index..][..count].fill(bf16::ZERO);
                if SPLIT {
                    low[index..][..count].fill(bf16::ZERO);
                }
            },
        );
        a.gather(
            rows,
            (k0, k1),
            #[inline(always)]
            |row, k, piece| match piece {
                Piece::Values(start, length) if aligned => {
                    for at in (0..length).step_by(32) {
                        let part = (length - at).min(32);
                        let index = order.index(row, k + at);
                        let to = &mut out[index..][..part];
                        match a.x {
                            View::F32(x) if SPLIT => split(s, &x[start + at..][..part], to, &mut low[index..][..part]),
                            View::F32(x) => copy(s, &x[start + at..][..part], to),
                            View::Bf16(x) => match (to.first_chunk_mut::<32>(), x[start + at..].first_chunk::<32>()) {
                                // A copy of known length is two moves, not a call.
                                (Some(to), Some(from)) => *to = *from,
                                _ => to.copy_from_slice(&x[start + at..][..part]),
                            },
                        }
                        if SPLIT && matches!(a.x, View::Bf16(_)) {
                            low[index..][..part].fill(bf16::ZERO);
                        }
                    }
                }
                Piece::Values(start, length) => {
                    for i in 0..length {
                        let x = match a.x {
                            View::F32(x) => x[start + i],
                            View::Bf16(x) => x[start + i].to_f32(),
                        };
                        let rounded = <bf16 as Element>::from_f32(x);
                        let index = order.index(row, k + i);
                        out[index] = rounded;
                        if SPLIT {
                            low[index] = Element::from_f32(x - rounded.to_f32());
                        }
                    }
                }
                Piece::Zeros(count) if aligned => {
                    for at in (0..count).step_by(32) {
                        clear(order.index(row, k + at), (count - at).min(32), out, low);
                    }
                }
                Piece::Zeros(count) => {
                    for k in k..k + count {
                        clear(order.index(row, k), 1, out, low);
                    }
                }
            },
        );
        if !depth.is_multiple_of(32) {
            for row in 0..rows.1 - rows.0 {
                let start = order.index(row, depth / 32 * 32);
                clear(start + depth % 32, 32 - depth % 32, out, low);
            }
        }
    }
}

#[inline(always)]
fn copy<S: Simd, A: Element, B: Element>(s: S, from: &[A], to: &mut [B]) {
    for (to, from) in to.chunks_mut(LANES).zip(from.chunks(LANES)) {
        store_some(s, to, load_some(s, from));
    }
}
