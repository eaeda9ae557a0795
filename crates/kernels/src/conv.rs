//! Convolution over NHWC pictures as a product over gathered windows.

use crate::error::{Result, check_dim, check_len, check_positive, volume};
use crate::gemm::rows::Rows;
use crate::gemm::{Columns, Epilogue, PackedWeights, WeightSource, WeightType, multiply};
use crate::simd::Element;

/// Pixels from which on a 3x3 window over a doubled picture is computed as four 2x2 windows over the picture as it is, with
/// 4/9 of the products. The windows' weights take 16/9 of the memory of the others, for which few pixels are not worth it.
const PHASE_PIXELS: usize = 512;

/// What a convolution is, weights aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConvShape {
    pub in_channels: usize,
    pub out_channels: usize,
    /// Height and width of the window.
    pub kernel: (usize, usize),
    pub stride: (usize, usize),
    /// Zeros above, below, left and right.
    pub padding: (usize, usize, usize, usize),
    /// Each pixel is doubled both ways first (nearest neighbour).
    pub upsample: bool,
}

impl ConvShape {
    /// A square window with the padding that keeps the size.
    pub fn same(in_channels: usize, out_channels: usize, kernel: usize) -> Self {
        let p = kernel / 2;
        Self {
            in_channels,
            out_channels,
            kernel: (kernel, kernel),
            stride: (1, 1),
            padding: (p, p, p, p),
            upsample: false,
        }
    }

    /// Height and width of the output.
    ///
    /// # Errors
    /// If a dimension is zero or the padded picture is smaller than the window.
    pub fn output(&self, height: usize, width: usize) -> Result<(usize, usize)> {
        check_positive("channels", self.in_channels.min(self.out_channels))?;
        check_positive("window", self.kernel.0.min(self.kernel.1))?;
        check_positive("stride", self.stride.0.min(self.stride.1))?;
        let double = if self.upsample { 2 } else { 1 };
        let (top, bottom, left, right) = self.padding;
        let side = |what, size: usize, pad: usize, kernel: usize, stride: usize| {
            let full = size.saturating_mul(double).saturating_add(pad);
            if full < kernel {
                check_dim(what, full, kernel).map(|()| 0)
            } else {
                Ok((full - kernel) / stride + 1)
            }
        };
        Ok((
            side(
                "padded height",
                height,
                top.saturating_add(bottom),
                self.kernel.0,
                self.stride.0,
            )?,
            side(
                "padded width",
                width,
                left.saturating_add(right),
                self.kernel.1,
                self.stride.1,
            )?,
        ))
    }
}

impl PackedWeights {
    /// Packs the (out, in, kh, kw) weights of a convolution, as checkpoints hold them. [`PackedWeights::unpack`] gives them
    /// back in that order.
    ///
    /// # Errors
    /// If the length does not fit the shape, or a dimension is zero.
    pub fn pack_conv(source: WeightSource<'_>, shape: &ConvShape, to: WeightType) -> Result<Self> {
        let taps = shape.kernel.0.saturating_mul(shape.kernel.1);
        check_positive("window", taps)?;
        let dims = (shape.out_channels, volume(&[taps, shape.in_channels]));
        PackedWeights::pack_taps(source, dims, to, Columns::Plain, taps)
    }
}

/// Convolves `x`, (batch, height, width, in), into `out`, (batch, height', width', out); see [`ConvShape::output`].
///
/// # Errors
/// If a slice does not fit the dimensions.
pub fn conv2d<A: Element, O: Element>(
    x: &[A],
    (batch, height, width): (usize, usize, usize),
    weights: &PackedWeights,
    shape: &ConvShape,
    epilogue: &Epilogue<'_, O>,
    out: &mut [O],
) -> Result<()> {
    check_dim(
        "taps of the weights",
        weights.taps(),
        volume(&[shape.kernel.0, shape.kernel.1]),
    )?;
    check_dim(
        "inputs of the weights",
        weights.inputs(),
        volume(&[weights.taps(), shape.in_channels]),
    )?;
    check_dim("outputs of the weights", weights.outputs(), shape.out_channels)?;
    let size = shape.output(height, width)?;
    check_len("picture", x.len(), volume(&[batch, height, width, shape.in_channels]))?;
    let windows = Rows {
        x: A::view(x),
        size: (height, width, shape.in_channels),
        batch,
        out: size,
        kernel: shape.kernel,
        stride: shape.stride,
        before: (shape.padding.0, shape.padding.2),
        doubling: u32::from(shape.upsample),
        phase: None,
    };
    let finish = epilogue.finish();
    let mut out = O::view_mut(out);
    let same = shape.kernel == (3, 3) && shape.stride == (1, 1) && shape.padding == (1, 1, 1, 1);
    if shape.upsample && same && batch * height * width >= PHASE_PIXELS {
        for (index, weights) in weights.phases()?.iter().enumerate() {
            let (down, right) = (index / 2, index % 2);
            let windows = Rows {
                out: (height, width),
                kernel: (2, 2),
                before: (1 - down, 1 - right),
                doubling: 0,
                phase: Some((down, right)),
                ..windows
            };
            multiply(&windows, weights, &finish, out.again())?;
        }
        return Ok(());
    }
    multiply(&windows, weights, &finish, out)
}
