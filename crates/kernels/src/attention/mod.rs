//! Attention over tokens, `softmax(scale q k^T + mask) v` for each head, tiled over the keys with a running softmax: no score
//! matrix in memory.
//!
//! Keys and values of each head are packed once per call. A task is a few queries of one head; for each block of keys it makes
//! the scores, turns them into weights relative to the largest so far, and adds the weighted values. What has no mask goes
//! through AMX tiles where they are (f32 as two bf16 for each number); other bf16 through dot products where they are; the rest is
//! multiplied as f32.

mod lanes;
#[cfg(target_arch = "x86_64")]
mod tiles;

use crate::error::{KernelError, Result, check_dim, check_len, check_positive, volume};
use crate::gemm::micro::{Dots, Floats};
use crate::isa::{Isa, isa};
use crate::simd::{Element, View, ViewMut};

/// Dimensions of one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionShape {
    pub batch: usize,
    pub queries: usize,
    pub keys: usize,
    pub heads: usize,
    /// Numbers of one head.
    pub width: usize,
}

/// What a query may look at.
#[derive(Debug, Clone, Copy, Default)]
pub enum AttentionMask<'a> {
    /// Every key.
    #[default]
    None,
    /// The keys up to its own place.
    Causal,
    /// Numbers added to the scores: (batch or 1, heads or 1, queries, keys), which of both by the length of `values`.
    Add {
        values: &'a [f32],
        per_batch: bool,
        per_head: bool,
    },
}

impl AttentionMask<'_> {
    /// The row of numbers added to the scores of one query.
    fn row(&self, shape: &AttentionShape, (image, head, query): (usize, usize, usize)) -> Option<&[f32]> {
        let AttentionMask::Add {
            values,
            per_batch,
            per_head,
        } = self
        else {
            return None;
        };
        let heads = if *per_head { shape.heads } else { 1 };
        let image = if *per_batch { image } else { 0 };
        let head = if *per_head { head } else { 0 };
        Some(&values[((image * heads + head) * shape.queries + query) * shape.keys..][..shape.keys])
    }
}

/// `q` is (batch, queries, heads * width), `k` and `v` are (batch, keys, heads * width); so is `out` like `q`. A query whose
/// keys are all hidden gets some average of the values.
///
/// # Errors
/// If a slice does not fit the dimensions, or the scale is not positive.
pub fn attention<T: Element>(
    (q, k, v): (&[T], &[T], &[T]),
    shape: &AttentionShape,
    scale: f32,
    mask: AttentionMask<'_>,
    out: &mut [T],
) -> Result<()> {
    check_positive("heads", shape.heads)?;
    check_positive("head width", shape.width)?;
    check_positive("keys", shape.keys)?;
    if !(scale > 0.0 && scale.is_finite()) {
        return Err(KernelError::Scale(scale));
    }
    let per_query = volume(&[shape.batch, shape.queries, shape.heads, shape.width]);
    let per_key = volume(&[shape.batch, shape.keys, shape.heads, shape.width]);
    check_len("queries", q.len(), per_query)?;
    check_len("keys", k.len(), per_key)?;
    check_len("values", v.len(), per_key)?;
    check_len("output", out.len(), per_query)?;
    match mask {
        AttentionMask::Causal => check_dim("keys of a causal mask", shape.keys, shape.queries)?,
        AttentionMask::Add {
            values,
            per_batch,
            per_head,
        } => {
            let batch = if per_batch { shape.batch } else { 1 };
            let heads = if per_head { shape.heads } else { 1 };
            check_len("mask", values.len(), volume(&[batch, heads, shape.queries, shape.keys]))?;
        }
        AttentionMask::None => {}
    }
    if out.is_empty() {
        return Ok(());
    }
    run(
        (T::view(q), T::view(k), T::view(v)),
        shape,
        scale,
        mask,
        T::view_mut(out),
    );
    Ok(())
}

fn run(
    (q, k, v): (View<'_>, View<'_>, View<'_>),
    shape: &AttentionShape,
    scale: f32,
    mask: AttentionMask<'_>,
    out: ViewMut<'_>,
) {
    match (q, k, v, out) {
        #[cfg(target_arch = "x86_64")]
        (View::Bf16(q), View::Bf16(k), View::Bf16(v), ViewMut::Bf16(out))
            if matches!(mask, AttentionMask::None) && isa() == Isa::Amx =>
        {
            tiles::attention((q, k, v), shape, scale, out);
        }
        #[cfg(target_arch = "x86_64")]
        (View::F32(q), View::F32(k), View::F32(v), ViewMut::F32(out))
            if matches!(mask, AttentionMask::None) && isa() == Isa::Amx =>
        {
            tiles::attention((q, k, v), shape, scale, out);
        }
        (View::Bf16(q), View::Bf16(k), View::Bf16(v), ViewMut::Bf16(out)) if isa() >= Isa::Avx512Bf16 => {
            lanes::attention::<_, _, Dots>((q, k, v), shape, scale, mask, out);
        }
        (View::Bf16(q), View::Bf16(k), View::Bf16(v), ViewMut::Bf16(out)) => {
            lanes::attention::<_, _, Floats>((q, k, v), shape, scale, mask, out);
        }
        (View::F32(q), View::F32(k), View::F32(v), ViewMut::F32(out)) => {
            lanes::attention::<_, _, Floats>((q, k, v), shape, scale, mask, out);
        }
        _ => {}
    }
}
