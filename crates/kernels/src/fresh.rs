//! The kernels with a new vector for the result, whose memory is not cleared first.

use crate::attention::{AttentionMask, AttentionShape};
use crate::conv::ConvShape;
use crate::error::{Result, volume};
use crate::gemm::{Activation, Epilogue, PackedWeights};
use crate::norm::NormAffine;
use crate::quant::QuantWeights;
use crate::simd::Element;

/// A vector of `len` elements, every one of which `fill` writes before it returns `Ok`.
///
/// # Safety
/// `fill` must write every element before it returns `Ok`, and read none before that.
unsafe fn fresh<T: Element>(len: usize, fill: impl FnOnce(&mut [T]) -> Result<()>) -> Result<Vec<T>> {
    let mut out: Vec<T> = Vec::with_capacity(len);
    // SAFETY: the memory is there; the elements are plain numbers that are only written until all of them are.
    fill(unsafe { std::slice::from_raw_parts_mut(out.as_mut_ptr(), len) })?;
    // SAFETY: all were written.
    unsafe { out.set_len(len) };
    Ok(out)
}

/// Makes the form of a kernel that returns its result.
macro_rules! fresh {
    ($(#[$doc:meta])* $name:ident, ($($arg:ident: $type:ty),*), $out:ty, $len:expr, $call:path) => {
        $(#[$doc])*
        ///
        /// # Errors
        /// If a slice does not fit the dimensions.
        pub fn $name<T: Element>($($arg: $type),*) -> Result<Vec<$out>> {
            let len = $len;
            // SAFETY: the kernel checks the lengths, then writes the whole output.
            unsafe { fresh(len, |out| $call($($arg,)* out)) }
        }
    };
}

fresh!(
    /// [`crate::linear`].
    linear, (a: &[T], rows: usize, weights: &PackedWeights, epilogue: &Epilogue<'_, T>), T,
    if a.len() == volume(&[rows, weights.inputs()]) { volume(&[rows, weights.out_columns()]) } else { 0 }, crate::gemm::linear
);
fresh!(
    /// [`crate::quant_linear`].
    quant_linear, (x: &[T], rows: usize, weights: &QuantWeights<'_>, epilogue: &Epilogue<'_, T>), T,
    if x.len() == volume(&[rows, weights.inputs]) { volume(&[rows, weights.outputs]) } else { 0 }, crate::quant::quant_linear
);
fresh!(
    /// [`crate::attention`].
    attention, (qkv: (&[T], &[T], &[T]), shape: &AttentionShape, scale: f32, mask: AttentionMask<'_>), T,
    qkv.0.len(), crate::attention::attention
);
fresh!(
    /// [`crate::group_norm`].
    group_norm, (x: &[T], dims: (usize, usize, usize), groups: usize, affine: (&[f32], &[f32]), eps: f32, act: Activation), T,
    x.len(), crate::norm::group_norm
);
fresh!(
    /// [`crate::layer_norm`].
    layer_norm, (x: &[T], width: usize, affine: NormAffine<'_>, eps: f32), T, x.len(), crate::norm::layer_norm
);
fresh!(
    /// [`crate::rms_norm`].
    rms_norm, (x: &[T], scale: &[f32], eps: f32), T, x.len(), crate::norm::rms_norm
);
fresh!(
    /// [`crate::rope`].
    rope, (x: &[T], dims: (usize, usize, usize, usize), angles: (&[f32], &[f32]), norm: Option<(&[f32], f32)>), T,
    x.len(), crate::elementwise::rope
);
fresh!(
    /// [`crate::activate`].
    activate, (x: &[T], activation: Activation), T, x.len(), crate::elementwise::activate
);
fresh!(
    /// [`crate::add`].
    add, (a: &[T], b: &[T]), T, a.len(), crate::elementwise::add
);
fresh!(
    /// [`crate::gate`].
    gate, (x: &[T], half: usize, activation: Activation), T, x.len() / 2, crate::elementwise::gate
);
fresh!(
    /// [`crate::concat`].
    concat, (a: &[T], b: &[T], widths: (usize, usize)), T, a.len() + b.len(), crate::elementwise::concat
);
fresh!(
    /// [`crate::upsample2x`].
    upsample2x, (x: &[T], dims: (usize, usize, usize, usize)), T, 4 * x.len(), crate::elementwise::upsample2x
);

/// [`crate::conv2d`].
///
/// # Errors
/// If a slice does not fit the dimensions.
pub fn conv2d<T: Element>(
    x: &[T],
    dims: (usize, usize, usize),
    weights: &PackedWeights,
    shape: &ConvShape,
    epilogue: &Epilogue<'_, T>,
) -> Result<Vec<T>> {
    let (height, width) = shape.output(dims.1, dims.2)?;
    crate::error::check_len("picture", x.len(), volume(&[dims.0, dims.1, dims.2, shape.in_channels]))?;
    let len = volume(&[dims.0, height, width, shape.out_channels]);
    // SAFETY: the kernel checks the lengths, then writes the whole output.
    unsafe { fresh(len, |out| crate::conv::conv2d(x, dims, weights, shape, epilogue, out)) }
}
