//! Rotary positions as FLUX has them: neighbouring numbers are a pair.

use candle_core::{DType, Result, Tensor};

use super::cpu;

/// Sine and cosine of every token's angles, each `(N, D / 2)`, `f32`.
#[derive(Clone, Debug)]
pub struct RopeTable {
    /// Cosines.
    pub cos: Tensor,
    /// Sines.
    pub sin: Tensor,
}

/// Turns each pair `(x[2i], x[2i + 1])` of every head by its token's angle `i`: `x` is `(B, N, heads * D)`. Computed as
/// `f32`, in the type of `x`.
///
/// # Errors
/// The shapes do not fit, or the device refused.
pub fn rope(x: &Tensor, heads: usize, table: &RopeTable) -> Result<Tensor> {
    let (batch, tokens, width) = x.dims3()?;
    let half = table.cos.dim(1)?;
    if width != heads * half * 2 {
        candle_core::bail!(
            "angles for heads of {} do not fit {heads} heads in a width of {width}",
            2 * half
        );
    }
    if let Some(turned) = cpu::rope(x, heads, table)? {
        return Ok(turned);
    }
    let pairs = x.to_dtype(DType::F32)?.reshape((batch, tokens, heads, half, 2))?;
    let (first, second) = (
        pairs.narrow(4, 0, 1)?.contiguous()?,
        pairs.narrow(4, 1, 1)?.contiguous()?,
    );
    let cos = table.cos.reshape((1, tokens, 1, half, 1))?;
    let sin = table.sin.reshape((1, tokens, 1, half, 1))?;
    let turned_first = (first.broadcast_mul(&cos)? - second.broadcast_mul(&sin)?)?;
    let turned_second = (first.broadcast_mul(&sin)? + second.broadcast_mul(&cos)?)?;
    Tensor::cat(&[turned_first, turned_second], 4)?
        .reshape((batch, tokens, width))?
        .to_dtype(x.dtype())
}
