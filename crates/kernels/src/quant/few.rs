//! Products of a few rows: weights are multiplied as they are decoded, in registers.

use super::QuantWeights;
use super::lanes::{Sink, decode};
use crate::error::Result;
use crate::gemm::{Finish, PANEL, finish_sums};
use crate::pool::{SharedMut, parallel_for};
use crate::simd::{Kernel, LANES, View, ViewMut, Words, dispatch, store_lanes};

/// Rows up to which this is the way.
pub(super) const FEW_ROWS: usize = 4;

/// `out = finish(x w^T)` for at most [`FEW_ROWS`] rows.
pub(super) fn product(
    x: View<'_>,
    rows: usize,
    weights: &QuantWeights<'_>,
    finish: &Finish<'_>,
    out: ViewMut<'_>,
) -> Result<()> {
    // There is code for one row and for four; rows that are missing are zeros.
    let computed = if rows == 1 { 1 } else { FEW_ROWS };
    let mut wide = vec![0f32; computed * weights.inputs];
    match x {
        View::F32(x) => wide[..x.len()].copy_from_slice(x),
        View::Bf16(x) => crate::elementwise::convert(x, &mut wide[..x.len()])?,
    }
    let panels = weights.outputs.div_ceil(PANEL);
    let mut sums = vec![0f32; panels * rows * PANEL];
    let shared = SharedMut::new(&mut sums);
    parallel_for(panels, |panel| {
        // SAFETY: the panels' sums do not overlap.
        let sums = unsafe { shared.piece(panel * rows * PANEL, (panel + 1) * rows * PANEL) };
        for from in (0..PANEL).step_by(LANES) {
            let held = weights.lanes(panel * PANEL + from);
            let (x, sums) = (wide.as_slice(), &mut sums[from..]);
            let kind = weights.kind;
            if rows == 1 {
                dispatch(Dots::<1, 4> {
                    x,
                    kind,
                    held: &held,
                    sums,
                });
            } else {
                dispatch(Dots::<FEW_ROWS, 1> {
                    x,
                    kind,
                    held: &held,
                    sums,
                });
            }
        }
    });
    finish_sums(&sums, (rows, weights.outputs), finish, out);
    Ok(())
}

/// `ROWS` rows with sixteen weight rows, each sum in `CHAINS` parts, so that four multiply-adds at least are under way at once.
struct Dots<'a, const ROWS: usize, const CHAINS: usize> {
    x: &'a [f32],
    kind: super::QuantType,
    held: &'a [u8],
    /// Sixteen sums of each row, 32 numbers apart.
    sums: &'a mut [f32],
}

impl<const ROWS: usize, const CHAINS: usize> Kernel for Dots<'_, ROWS, CHAINS> {
    type Out = ();
    #[inline(always)]
    fn run<S: Words>(self, s: S) {
        let inputs = self.x.len() / ROWS;
        let mut dots = Sums {
            x: std::array::from_fn(|row| self.x[row * inputs..][..inputs].as_chunks().0),
            sums: [[s.zero(); CHAINS]; ROWS],
        };
        decode(s, self.kind, self.held, &mut dots);
        for (sums, to) in dots.sums.into_iter().zip(self.sums.chunks_mut(PANEL)) {
            let total = sums.into_iter().reduce(|a, b| s.add(a, b)).unwrap_or(s.zero());
            if let Some(to) = to.first_chunk_mut() {
                store_lanes(s, to, total);
            }
        }
    }
}

struct Sums<'a, S: Words, const ROWS: usize, const CHAINS: usize> {
    x: [&'a [[f32; 4]]; ROWS],
    sums: [[S::V; CHAINS]; ROWS],
}

impl<S: Words, const ROWS: usize, const CHAINS: usize> Sink<S> for Sums<'_, S, ROWS, CHAINS> {
    #[inline(always)]
    fn put(&mut self, s: S, at: usize, numbers: [S::V; 4]) {
        for (x, sums) in self.x.iter().zip(&mut self.sums) {
            for (i, (&x, w)) in x[at / 4].iter().zip(numbers).enumerate() {
                let sum = &mut sums[i % CHAINS];
                *sum = s.fma(s.splat(x), w, *sum);
            }
        }
    }
}
