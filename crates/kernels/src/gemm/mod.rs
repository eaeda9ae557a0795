//! Products of activations with weights: packed once, multiplied in cache blocks, finished in registers.
//!
//! `out[m, n] = finish(sum_k a[m, k] * w[n, k])`. Weights are (out, in) as models store them, packed into panels of 32 output
//! columns. Activations are read where they lie or gathered block by block ([`rows::Rows`]), so a convolution is the same
//! product without an im2col matrix. What follows the sum ([`Epilogue`]) is applied while the block is in cache.
//!
//! With bf16 weights the activations are rounded to bf16 and products summed in f32, at every instruction level. [Split](split)
//! weights are f32 for machines whose tiles multiply bf16 alone.

mod driver;
mod epilogue;
mod gather;
pub(crate) mod micro;
mod order;
mod pack;
pub(crate) mod rows;
mod split;
#[cfg(target_arch = "x86_64")]
mod tiles;
mod turn;

pub(crate) use driver::{multiply, multiply_columns};
pub(crate) use epilogue::Finish;
pub use epilogue::{Activation, Epilogue};
pub use pack::{Columns, PackedWeights, WeightSource, WeightType};

use crate::error::{Result, check_dim, check_len, volume};
use crate::simd::{Element, ViewMut};

/// Columns of one packed panel.
pub(crate) const PANEL: usize = 32;

/// `out = epilogue(a w^T)`: `a` is (rows, in), `out` is (rows, out) (half as wide for gated weights).
///
/// # Errors
/// If a slice does not fit the dimensions.
pub fn linear<A: Element, O: Element>(
    a: &[A],
    rows: usize,
    weights: &PackedWeights,
    epilogue: &Epilogue<'_, O>,
    out: &mut [O],
) -> Result<()> {
    check_len("activations", a.len(), volume(&[rows, weights.inputs()]))?;
    multiply(
        &rows::Rows::dense(A::view(a), rows, weights.inputs()),
        weights,
        &epilogue.finish(),
        O::view_mut(out),
    )
}

/// `out = scale * a b^T` for two activation matrices: `a` is (rows, inner), `b` is (columns, inner). `b` is packed on the way.
///
/// # Errors
/// If a slice does not fit the dimensions.
pub fn matmul_nt<A: Element, O: Element>(
    a: &[A],
    b: &[A],
    (rows, columns, inner): (usize, usize, usize),
    scale: f32,
    out: &mut [O],
) -> Result<()> {
    check_len("left matrix", a.len(), volume(&[rows, inner]))?;
    let kind = if A::IS_BF16 { WeightType::Bf16 } else { WeightType::F32 };
    let packed = PackedWeights::pack(WeightSource::of(A::view(b)), (columns, inner), kind, Columns::Plain)?;
    check_dim("inner dimension", packed.inputs(), inner)?;
    linear(
        a,
        rows,
        &packed,
        &Epilogue {
            scale,
            ..Epilogue::default()
        },
        out,
    )
}

/// Finishes sums that were made elsewhere, `[panel][rows][32]`, into an output of (rows, columns) that was checked.
pub(crate) fn finish_sums(sums: &[f32], (rows, columns): (usize, usize), finish: &Finish<'_>, out: ViewMut<'_>) {
    debug_assert_eq!(sums.len(), columns.div_ceil(PANEL) * rows * PANEL);
    debug_assert_eq!(out.len(), rows * columns);
    let target = epilogue::Target::new(out, columns, false);
    for panel in 0..columns.div_ceil(PANEL) {
        let sums = sums[panel * rows * PANEL..][..rows * PANEL].as_ptr();
        // SAFETY: the sums hold these rows, the output has them, and one thread writes.
        unsafe {
            let place = rows::Place {
                row: 0,
                count: rows,
                step: 1,
            };
            target.finish(finish, sums, place, panel);
        };
    }
}
