//! Layers with weights.

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{D, Device, Result, Tensor};
use sd_kernels::{Epilogue, PackedWeights, QuantType, QuantWeights, fresh};

use super::super::{Activation, conv::ConvShape};
use super::{Float, by_type, floats, kernel_activation, slice, wrong};

/// What follows a product, done while it is in registers: `residual + gate * activation(y + bias + per_picture)`.
#[derive(Clone, Copy, Default)]
pub(in crate::ops) struct Tail<'a> {
    pub bias: Option<&'a Tensor>,
    pub activation: Option<Activation>,
    /// Of the output's shape.
    pub residual: Option<&'a Tensor>,
    /// `(B, 1, outputs)`.
    pub gate: Option<&'a Tensor>,
    /// `(B, outputs)`.
    pub per_picture: Option<&'a Tensor>,
}

/// The parts of a tail as slices.
struct Parts {
    bias: Option<Vec<f32>>,
    row_bias: Option<Vec<f32>>,
    gate: Option<Vec<f32>>,
    rows_per_group: usize,
    activation: sd_kernels::Activation,
    residual: Option<Tensor>,
    /// What the kernels do not know.
    after: Option<Activation>,
}

impl Parts {
    /// `rows` are the output's; a gate or a row by picture may be one for all.
    fn of(tail: &Tail<'_>, rows: usize) -> Result<Self> {
        let groups = tail.per_picture.or(tail.gate).map_or(Ok(1), |t| t.dim(0))?;
        let activation = tail.activation.map(|a| (a, kernel_activation(a)));
        Ok(Self {
            bias: tail.bias.map(floats).transpose()?,
            row_bias: tail.per_picture.map(floats).transpose()?,
            gate: tail.gate.map(floats).transpose()?,
            rows_per_group: (rows / groups.max(1)).max(1),
            activation: activation.and_then(|(_, known)| known).unwrap_or_default(),
            residual: tail.residual.map(Tensor::contiguous).transpose()?,
            after: activation.and_then(|(a, known)| known.is_none().then_some(a)),
        })
    }

    /// Calls `run` with the epilogue, and makes a tensor of its result.
    fn apply<T: Float>(
        &self,
        shape: &[usize],
        run: impl FnOnce(&Epilogue<'_, T>) -> sd_kernels::Result<Vec<T>>,
    ) -> Result<Tensor> {
        let held = self.residual.as_ref().map(Tensor::storage_and_layout);
        let residual = match &held {
            Some((storage, layout)) => Some(slice::<T>(storage, layout)?),
            None => None,
        };
        let epilogue = Epilogue {
            scale: 1.0,
            bias: self.bias.as_deref(),
            row_bias: self.row_bias.as_deref(),
            gate: self.gate.as_deref(),
            rows_per_group: self.rows_per_group,
            activation: self.activation,
            residual,
        };
        let out = Tensor::from_vec(run(&epilogue).map_err(wrong)?, shape, &Device::Cpu)?;
        match self.after {
            Some(activation) => activation.apply(&out),
            None => Ok(out),
        }
    }
}

/// `(..., inputs)` to `(..., outputs)`; gated weights have half as many outputs, and the activation is their gate's.
pub(in crate::ops) fn linear(x: &Tensor, weights: &PackedWeights, tail: &Tail<'_>) -> Result<Option<Tensor>> {
    by_type!(x, linear_as(x, weights, tail))
}

fn linear_as<T: Float>(x: &Tensor, weights: &PackedWeights, tail: &Tail<'_>) -> Result<Tensor> {
    let x = x.contiguous()?;
    let (rows, shape) = rows_and_shape(&x, weights.out_columns())?;
    let parts = Parts::of(tail, rows)?;
    let (storage, layout) = x.storage_and_layout();
    let numbers = slice::<T>(&storage, layout)?;
    parts.apply(&shape, |epilogue| fresh::linear(numbers, rows, weights, epilogue))
}

fn rows_and_shape(x: &Tensor, outputs: usize) -> Result<(usize, Vec<usize>)> {
    let rows = x.elem_count() / x.dim(D::Minus1)?.max(1);
    let mut shape = x.dims().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = outputs;
    }
    Ok((rows, shape))
}

/// As [`linear`] with a GGUF file's blocks; `None` too for a format that the kernels do not know.
pub(in crate::ops) fn quantised(x: &Tensor, blocks: &QTensor, tail: &Tail<'_>) -> Result<Option<Tensor>> {
    let kind = match blocks.dtype() {
        GgmlDType::Q4_0 => QuantType::Q4_0,
        GgmlDType::Q4_1 => QuantType::Q4_1,
        GgmlDType::Q5_0 => QuantType::Q5_0,
        GgmlDType::Q5_1 => QuantType::Q5_1,
        GgmlDType::Q8_0 => QuantType::Q8_0,
        GgmlDType::Q2K => QuantType::Q2K,
        GgmlDType::Q3K => QuantType::Q3K,
        GgmlDType::Q4K => QuantType::Q4K,
        GgmlDType::Q5K => QuantType::Q5K,
        GgmlDType::Q6K => QuantType::Q6K,
        _ => return Ok(None),
    };
    by_type!(x, quantised_as(x, blocks, kind, tail))
}

fn quantised_as<T: Float>(x: &Tensor, blocks: &QTensor, kind: QuantType, tail: &Tail<'_>) -> Result<Tensor> {
    let x = x.contiguous()?;
    let (outputs, inputs) = blocks.shape().dims2()?;
    let (rows, shape) = rows_and_shape(&x, outputs)?;
    let parts = Parts::of(tail, rows)?;
    let bytes = blocks.data()?;
    let weights = QuantWeights {
        blocks: &bytes,
        kind,
        outputs,
        inputs,
    };
    let (storage, layout) = x.storage_and_layout();
    let numbers = slice::<T>(&storage, layout)?;
    parts.apply(&shape, |epilogue| {
        fresh::quant_linear(numbers, rows, &weights, epilogue)
    })
}

/// `(B, H, W, inputs)` to `(B, H', W', outputs)`; with `upsample`, of the picture doubled both ways.
pub(in crate::ops) fn conv(
    x: &Tensor,
    weights: &PackedWeights,
    shape: &ConvShape,
    upsample: bool,
    tail: &Tail<'_>,
) -> Result<Option<Tensor>> {
    by_type!(x, conv_as(x, weights, shape, upsample, tail))
}

fn conv_as<T: Float>(
    x: &Tensor,
    weights: &PackedWeights,
    shape: &ConvShape,
    upsample: bool,
    tail: &Tail<'_>,
) -> Result<Tensor> {
    let x = x.contiguous()?;
    let (batch, height, width, _) = x.dims4()?;
    let window = sd_kernels::ConvShape {
        in_channels: shape.inputs,
        out_channels: shape.outputs,
        kernel: (shape.kernel, shape.kernel),
        stride: (shape.stride, shape.stride),
        padding: (
            shape.padding.top,
            shape.padding.bottom,
            shape.padding.left,
            shape.padding.right,
        ),
        upsample,
    };
    let (out_h, out_w) = window.output(height, width).map_err(wrong)?;
    let parts = Parts::of(tail, batch * out_h * out_w)?;
    let (storage, layout) = x.storage_and_layout();
    let numbers = slice::<T>(&storage, layout)?;
    parts.apply(&[batch, out_h, out_w, shape.outputs], |epilogue| {
        fresh::conv2d(numbers, (batch, height, width), weights, &window, epilogue)
    })
}
