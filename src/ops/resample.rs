//! Sizes of pictures.

use candle_core::{D, Result, Tensor};

use super::cpu;

/// Every pixel four times: `(B, H, W, C)` to `(B, 2H, 2W, C)`.
///
/// # Errors
/// The device refused.
pub fn upsample_nearest2x(x: &Tensor) -> Result<Tensor> {
    if let Some(doubled) = cpu::upsample_nearest2x(x)? {
        return Ok(doubled);
    }
    let (batch, height, width, channels) = x.dims4()?;
    x.reshape((batch, height, 1, width, 1, channels))?
        .broadcast_as((batch, height, 2, width, 2, channels))?
        .reshape((batch, 2 * height, 2 * width, channels))
}

/// Every pixel as often as it takes to reach exactly `height` x `width`: torch's nearest interpolation to a size, for
/// pictures whose side is not twice the smaller one's.
///
/// # Errors
/// The device refused.
pub fn upsample_nearest(x: &Tensor, height: usize, width: usize) -> Result<Tensor> {
    let (_, from_h, from_w, _) = x.dims4()?;
    if (height, width) == (2 * from_h, 2 * from_w) {
        return upsample_nearest2x(x);
    }
    let picks = |from: usize, to: usize| {
        let picks: Vec<u32> = (0..to).map(|i| (i * from / to) as u32).collect();
        Tensor::from_vec(picks, to, x.device())
    };
    x.index_select(&picks(from_h, height)?, 1)?
        .index_select(&picks(from_w, width)?, 2)
}

/// The channels of `a`, then those of `b`: two pictures of one size to `(B, H, W, Ca + Cb)`.
///
/// # Errors
/// The sizes differ, or the device refused.
pub fn concat(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    match cpu::concat(a, b)? {
        Some(both) => Ok(both),
        None => Tensor::cat(&[a, b], D::Minus1),
    }
}
