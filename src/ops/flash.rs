//! Flash attention on CUDA: no score matrix in the GPU's memory. Only with the feature `flash-attn`.

use candle_core::{DType, Result, Tensor};

use super::attention::Mask;

/// Widest head that the kernels know.
const WIDEST: usize = 256;

/// `softmax(scale * q k^T) v` in half precision on a CUDA device, shapes as in [`super::attention::attention`]; `None` where the
/// kernels cannot do it: another device, `f32`, a mask of numbers, or heads that are too wide or no multiple of 8.
///
/// # Errors
/// The device refused.
pub fn attention(
    (q, k, v): (&Tensor, &Tensor, &Tensor),
    heads: usize,
    scale: f64,
    mask: Mask<'_>,
) -> Result<Option<Tensor>> {
    let (batch, queries, width) = q.dims3()?;
    let half = matches!(q.dtype(), DType::F16 | DType::BF16) && k.dtype() == q.dtype() && v.dtype() == q.dtype();
    let causal = match mask {
        Mask::None => false,
        Mask::Causal => true,
        Mask::Add(_) => return Ok(None),
    };
    let head = width / heads.max(1);
    if !q.device().is_cuda() || !half || head > WIDEST || !head.is_multiple_of(8) {
        return Ok(None);
    }
    let split = |x: &Tensor| x.reshape((batch, x.dim(1)?, heads, head));
    let attended = candle_flash_attn::flash_attn(&split(q)?, &split(k)?, &split(v)?, scale as f32, causal)?;
    attended.reshape((batch, queries, width)).map(Some)
}
