//! Convolutions over NHWC.

use std::rc::Rc;

use candle_core::{D, Device, Result, Tensor};

use super::cpu::{self, Tail};
use super::{Bias, upsample_nearest2x};
use crate::weights::{LoadResult, SlotLayout, Weight, WeightSlot, Weights};

/// Zeros added around a picture before a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Padding {
    /// Rows above.
    pub top: usize,
    /// Rows below.
    pub bottom: usize,
    /// Columns to the left.
    pub left: usize,
    /// Columns to the right.
    pub right: usize,
}

impl Padding {
    /// The same on all four sides.
    pub const fn all(side: usize) -> Self {
        Self {
            top: side,
            bottom: side,
            left: side,
            right: side,
        }
    }

    /// One row below and one column to the right, as the VAE encoder's downsampling has it.
    pub const AFTER: Self = Self {
        top: 0,
        bottom: 1,
        left: 0,
        right: 1,
    };
}

/// Shape of a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvShape {
    /// Channels in.
    pub inputs: usize,
    /// Channels out.
    pub outputs: usize,
    /// Side of the square kernel.
    pub kernel: usize,
    /// Step, both ways.
    pub stride: usize,
    /// Zeros around.
    pub padding: Padding,
}

impl ConvShape {
    /// 3x3, one zero on each side, stride 1: keeps the size.
    pub const fn same3(inputs: usize, outputs: usize) -> Self {
        Self {
            inputs,
            outputs,
            kernel: 3,
            stride: 1,
            padding: Padding::all(1),
        }
    }

    /// 1x1.
    pub const fn pointwise(inputs: usize, outputs: usize) -> Self {
        Self {
            inputs,
            outputs,
            kernel: 1,
            stride: 1,
            padding: Padding::all(0),
        }
    }

    fn out_size(&self, height: usize, width: usize) -> Result<(usize, usize)> {
        let Padding {
            top,
            bottom,
            left,
            right,
        } = self.padding;
        let (padded_h, padded_w) = (height + top + bottom, width + left + right);
        if padded_h < self.kernel || padded_w < self.kernel {
            candle_core::bail!(
                "a {height}x{width} picture is smaller than the kernel of {}",
                self.kernel
            );
        }
        Ok((
            (padded_h - self.kernel) / self.stride + 1,
            (padded_w - self.kernel) / self.stride + 1,
        ))
    }
}

/// Most numbers that the gathered rows of one product may take.
const GATHER_LIMIT: usize = 16 << 20;

/// A 2-D convolution of `(B, H, W, inputs)` to `(B, H', W', outputs)`.
#[derive(Debug)]
pub struct Conv2d {
    slot: Rc<WeightSlot>,
    bias: Option<Tensor>,
    shape: ConvShape,
}

impl Conv2d {
    /// Reads `weight` `(outputs, inputs, kernel, kernel)` and `bias`, and enters the layer into the table of `weights`. A
    /// 1x1 convolution's weight may be `(outputs, inputs)` in the file.
    ///
    /// # Errors
    /// A tensor is missing or does not fit.
    pub fn load(weights: &Weights, shape: ConvShape, bias: Bias) -> LoadResult<Self> {
        let ConvShape {
            inputs,
            outputs,
            kernel,
            ..
        } = shape;
        let full = [outputs, inputs, kernel, kernel];
        let flat = kernel == 1 && weights.shape("weight").is_some_and(|found| found.len() == 2);
        let found = &full[..if flat { 2 } else { 4 }];
        let slot = Rc::new(weights.slot("weight", found, &full, SlotLayout::ConvNhwc)?);
        weights.layers().insert(weights.layer_name(), slot.clone());
        Ok(Self {
            slot,
            bias: bias.load(weights, outputs)?,
            shape,
        })
    }

    /// The weight's slot.
    pub fn slot(&self) -> &Rc<WeightSlot> {
        &self.slot
    }

    /// `(B, H, W, inputs)` to `(B, H', W', outputs)`.
    ///
    /// # Errors
    /// The shape does not fit, or the device refused.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.windows(x, false, &Tail::default())
    }

    /// `forward(upsample_nearest2x(x))`.
    ///
    /// # Errors
    /// As [`Conv2d::forward`].
    pub fn forward_doubled(&self, x: &Tensor) -> Result<Tensor> {
        self.windows(x, true, &Tail::default())
    }

    /// `forward(x) + residual`; `residual` has the output's shape.
    ///
    /// # Errors
    /// As [`Conv2d::forward`].
    pub fn forward_add(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        self.windows(
            x,
            false,
            &Tail {
                residual: Some(residual),
                ..Tail::default()
            },
        )
    }

    /// `forward(x) + per_picture`; `per_picture` is `(B, outputs)`, such as a projected time embedding.
    ///
    /// # Errors
    /// As [`Conv2d::forward`].
    pub fn forward_add_channels(&self, x: &Tensor, per_picture: &Tensor) -> Result<Tensor> {
        self.windows(
            x,
            false,
            &Tail {
                per_picture: Some(per_picture),
                ..Tail::default()
            },
        )
    }

    /// The convolution of `x`, doubled first if asked, and what `tail` names, in one pass where the device can.
    fn windows(&self, x: &Tensor, doubled: bool, tail: &Tail<'_>) -> Result<Tensor> {
        if let Weight::Packed(packed) = self.slot.current() {
            let bias = self.bias.as_ref();
            if let Some(y) = cpu::conv(x, &packed, &self.shape, doubled, &Tail { bias, ..*tail })? {
                return Ok(y);
            }
        }
        let y = match doubled {
            true => self.plain(&upsample_nearest2x(x)?)?,
            false => self.plain(x)?,
        };
        let y = match tail.per_picture {
            Some(per_picture) => {
                let (batch, channels) = per_picture.dims2()?;
                y.broadcast_add(&per_picture.reshape((batch, 1, 1, channels))?)?
            }
            None => y,
        };
        match tail.residual {
            Some(residual) => y + residual,
            None => Ok(y),
        }
    }

    fn plain(&self, x: &Tensor) -> Result<Tensor> {
        let Some(weight) = self.slot.dense()? else {
            candle_core::bail!("a convolution's weight cannot be quantised")
        };
        let y = if self.shape.kernel == 1 && self.shape.stride == 1 && self.shape.padding == Padding::all(0) {
            self.pointwise(x, &weight)?
        } else if matches!(x.device(), Device::Cpu) {
            self.gathered(x, &weight)?
        } else {
            self.by_device(x, &weight)?
        };
        match &self.bias {
            Some(bias) => y.broadcast_add(bias),
            None => Ok(y),
        }
    }

    fn pointwise(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        let (batch, height, width, inputs) = x.dims4()?;
        let weight = weight.reshape((self.shape.outputs, self.shape.inputs))?;
        let y = x
            .reshape((batch * height * width, inputs))?
            .contiguous()?
            .matmul(&weight.t()?)?;
        y.reshape((batch, height, width, self.shape.outputs))
    }

    /// Gathers the rows under the kernel, a band of output rows at a time, and multiplies them by the weight.
    fn gathered(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        let ConvShape {
            inputs,
            outputs,
            kernel,
            stride,
            padding,
        } = self.shape;
        let (batch, height, width, _) = x.dims4()?;
        let (out_h, out_w) = self.shape.out_size(height, width)?;
        let weight = weight.reshape((outputs, kernel * kernel * inputs))?.t()?;
        let padded = x.pad_with_zeros(1, padding.top, padding.bottom)?;
        let padded = padded.pad_with_zeros(2, padding.left, padding.right)?;
        let columns: Vec<Tensor> = (0..kernel)
            .map(|kx| strided(&padded, 2, kx, out_w, stride))
            .collect::<Result<_>>()?;
        let band = (GATHER_LIMIT / (batch * out_w * kernel * kernel * inputs)).clamp(1, out_h);
        let mut bands = Vec::new();
        for first in (0..out_h).step_by(band) {
            let rows = band.min(out_h - first);
            let mut taps = Vec::with_capacity(kernel * kernel);
            for ky in 0..kernel {
                for column in &columns {
                    taps.push(strided(column, 1, first * stride + ky, rows, stride)?);
                }
            }
            let gathered = Tensor::cat(&taps, D::Minus1)?;
            let gathered = gathered.reshape((batch * rows * out_w, kernel * kernel * inputs))?;
            bands.push(gathered.matmul(&weight)?.reshape((batch, rows, out_w, outputs))?);
        }
        Tensor::cat(&bands, 1)
    }

    /// The device's own convolution (cuDNN where it is), which wants NCHW.
    fn by_device(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        let Padding {
            top,
            bottom,
            left,
            right,
        } = self.shape.padding;
        let (x, padding) = if [top, bottom, left].iter().all(|side| *side == right) {
            (x.clone(), right)
        } else {
            (x.pad_with_zeros(1, top, bottom)?.pad_with_zeros(2, left, right)?, 0)
        };
        let weight = weight.permute((0, 3, 1, 2))?.contiguous()?;
        let y = x
            .permute((0, 3, 1, 2))?
            .contiguous()?
            .conv2d(&weight, padding, self.shape.stride, 1, 1)?;
        y.permute((0, 2, 3, 1))?.contiguous()
    }
}

/// `count` slices of `x` along `dim`, from `start`, each `stride` after the last.
fn strided(x: &Tensor, dim: usize, start: usize, count: usize, stride: usize) -> Result<Tensor> {
    if stride == 1 {
        return x.narrow(dim, start, count);
    }
    let picks: Vec<u32> = (0..count).map(|i| (start + i * stride) as u32).collect();
    x.index_select(&Tensor::from_vec(picks, count, x.device())?, dim)
}
