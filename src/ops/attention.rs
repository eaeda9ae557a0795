//! Attention over tokens.

use candle_core::{D, DType, Result, Tensor};

use super::cpu;

/// What a query may look at.
#[derive(Clone, Copy, Debug, Default)]
pub enum Mask<'a> {
    /// Every key.
    #[default]
    None,
    /// The keys up to its own place.
    Causal,
    /// Numbers added to the scores, `(1 | B, 1 | heads, N, M)`; minus infinity hides a key.
    Add(&'a Tensor),
}

/// Most numbers that the scores of one product may take.
const SCORES_LIMIT: usize = 16 << 20;

/// `softmax(scale * q k^T + mask) v` for each head: `q` is `(B, N, heads * D)`, `k` and `v` are `(B, M, heads * D)`, the
/// result is `(B, N, heads * D)` in the type of `q`. Scores and their sums are `f32`.
///
/// # Errors
/// The shapes do not fit, or the device refused.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, scale: f64, mask: Mask<'_>) -> Result<Tensor> {
    if let Some(attended) = cpu::attention((q, k, v), heads, scale, mask)? {
        return Ok(attended);
    }
    #[cfg(feature = "flash-attn")]
    if let Some(attended) = super::flash::attention((q, k, v), heads, scale, mask)? {
        return Ok(attended);
    }
    let (batch, queries, width) = q.dims3()?;
    let keys = k.dim(1)?;
    let dtype = q.dtype();
    let q = split_heads(&(q.to_dtype(DType::F32)? * scale)?, heads)?;
    let k = split_heads(&k.to_dtype(DType::F32)?, heads)?.transpose(2, 3)?;
    let v = split_heads(&v.to_dtype(DType::F32)?, heads)?;
    let mask = match mask {
        Mask::None => None,
        Mask::Causal => Some(causal(queries, keys, q.device())?),
        Mask::Add(mask) => Some(mask.to_dtype(DType::F32)?),
    };
    let band = (SCORES_LIMIT / (batch * heads * keys).max(1)).clamp(1, queries.max(1));
    let mut bands = Vec::new();
    for first in (0..queries).step_by(band) {
        let rows = band.min(queries - first);
        let mut scores = q.narrow(2, first, rows)?.contiguous()?.matmul(&k)?;
        if let Some(mask) = &mask {
            scores = scores.broadcast_add(&mask.narrow(2, first, rows)?)?;
        }
        bands.push(softmax(&scores)?.matmul(&v)?);
    }
    Tensor::cat(&bands, 2)?
        .transpose(1, 2)?
        .reshape((batch, queries, width))?
        .to_dtype(dtype)
}

/// Softmax over the last dimension, computed as `f32`, in the type of `x`.
///
/// # Errors
/// The device refused.
pub fn softmax(x: &Tensor) -> Result<Tensor> {
    let wide = x.to_dtype(DType::F32)?;
    let powers = wide.broadcast_sub(&wide.max_keepdim(D::Minus1)?)?.exp()?;
    powers
        .broadcast_div(&powers.sum_keepdim(D::Minus1)?)?
        .to_dtype(x.dtype())
}

/// `(B, N, heads * D)` to `(B, heads, N, D)`.
fn split_heads(x: &Tensor, heads: usize) -> Result<Tensor> {
    let (batch, tokens, width) = x.dims3()?;
    if heads == 0 || !width.is_multiple_of(heads) {
        candle_core::bail!("{heads} heads do not divide a width of {width}");
    }
    x.reshape((batch, tokens, heads, width / heads))?
        .transpose(1, 2)?
        .contiguous()
}

fn causal(queries: usize, keys: usize, device: &candle_core::Device) -> Result<Tensor> {
    let numbers = (0..queries * keys)
        .map(|i| if i % keys > i / keys { f32::NEG_INFINITY } else { 0.0 })
        .collect();
    Tensor::from_vec(numbers, (1, 1, queries, keys), device)
}
