//! Linear layers, dense or quantised.

use std::borrow::Cow;
use std::rc::Rc;

use candle_core::quantized::{QStorage, QTensor};
use candle_core::{D, Result, Tensor};

use super::{Activation, geglu};
use crate::weights::{LoadResult, RawTensor, SlotLayout, StoredType, Weight, WeightSlot, Weights};

/// Whether a layer has a bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bias {
    /// It has one.
    Yes,
    /// It has none.
    No,
}

impl Bias {
    /// `Yes` if `true`.
    pub fn when(has: bool) -> Self {
        if has { Self::Yes } else { Self::No }
    }

    pub(super) fn load(self, weights: &Weights, out: usize) -> LoadResult<Option<Tensor>> {
        match self {
            Self::Yes => weights.tensor("bias", &[out]).map(Some),
            Self::No => Ok(None),
        }
    }
}

/// `y = x W^T + b` over the last dimension.
#[derive(Debug)]
pub struct Linear {
    slot: Rc<WeightSlot>,
    bias: Option<Tensor>,
}

impl Linear {
    /// Reads `weight` `(outputs, inputs)` and `bias` `(outputs)` and enters the layer into the table of `weights`. A file
    /// that has the weight as a 1x1 convolution's, `(outputs, inputs, 1, 1)`, will do as well.
    ///
    /// # Errors
    /// A tensor is missing or does not fit.
    pub fn load(weights: &Weights, inputs: usize, outputs: usize, bias: Bias) -> LoadResult<Self> {
        let pointwise = [outputs, inputs, 1, 1];
        let raw = if weights.shape("weight").is_some_and(|found| found == pointwise) {
            RawTensor {
                shape: vec![outputs, inputs],
                ..weights.raw("weight", &pointwise)?
            }
        } else {
            weights.raw("weight", &[outputs, inputs])?
        };
        let slot = match raw.stored {
            StoredType::Ggml(format) if inputs.is_multiple_of(format.block_size()) && format.block_size() > 1 => {
                let storage = QStorage::from_data(Cow::Borrowed(&raw.bytes), weights.device(), format)?;
                WeightSlot::quantised(QTensor::new(storage, (outputs, inputs))?, weights.dtype())
            }
            _ => {
                let stored = raw.to_tensor(&weights.path("weight"), weights.dtype(), weights.device())?;
                WeightSlot::dense(&stored, SlotLayout::AsStored)?
            }
        };
        let slot = Rc::new(slot);
        weights.layers().insert(weights.layer_name(), slot.clone());
        Ok(Self {
            slot,
            bias: bias.load(weights, outputs)?,
        })
    }

    /// The weight's slot.
    pub fn slot(&self) -> &Rc<WeightSlot> {
        &self.slot
    }

    /// `(..., inputs)` to `(..., outputs)`, in the type of `x`.
    ///
    /// # Errors
    /// The shape does not fit, or the device refused.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let inputs = x.dim(D::Minus1)?;
        let rows = x.reshape(((), inputs))?.contiguous()?;
        let mut y = match self.slot.current() {
            Weight::Dense(weight) => rows.matmul(&weight.t()?)?,
            Weight::Quantised(blocks) => rows.apply_op1_no_bwd(blocks.as_ref())?,
        };
        for side in self.slot.sides() {
            let beside = rows.matmul(&side.down.t()?)?.matmul(&side.up.t()?)?;
            y = (y + (beside * side.scale)?)?;
        }
        if let Some(bias) = &self.bias {
            y = y.broadcast_add(bias)?;
        }
        let mut shape = x.dims().to_vec();
        if let Some(last) = shape.last_mut() {
            *last = y.dim(1)?;
        }
        y.reshape(shape)
    }

    /// `activation(forward(x))`.
    ///
    /// # Errors
    /// As [`Linear::forward`].
    pub fn forward_act(&self, x: &Tensor, activation: Activation) -> Result<Tensor> {
        activation.apply(&self.forward(x)?)
    }

    /// `forward(x) + residual`; `residual` has the output's shape.
    ///
    /// # Errors
    /// As [`Linear::forward`].
    pub fn forward_add(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        self.forward(x)? + residual
    }

    /// `residual + gate * forward(x)`; `gate` is `(B, 1, outputs)`, `x` `(B, N, inputs)`.
    ///
    /// # Errors
    /// As [`Linear::forward`].
    pub fn forward_gated_add(&self, x: &Tensor, gate: &Tensor, residual: &Tensor) -> Result<Tensor> {
        residual + self.forward(x)?.broadcast_mul(gate)?
    }
}

/// A linear layer to `2n` features whose second half gates the first: `a * gelu(b)`, diffusers' `GEGLU`.
#[derive(Debug)]
pub struct GegluLinear {
    proj: Linear,
}

impl GegluLinear {
    /// Reads `proj.weight` `(2 * outputs, inputs)` and `proj.bias`.
    ///
    /// # Errors
    /// A tensor is missing or does not fit.
    pub fn load(weights: &Weights, inputs: usize, outputs: usize) -> LoadResult<Self> {
        Ok(Self {
            proj: Linear::load(&weights.at("proj"), inputs, 2 * outputs, Bias::Yes)?,
        })
    }

    /// `(..., inputs)` to `(..., outputs)`.
    ///
    /// # Errors
    /// As [`Linear::forward`].
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        geglu(&self.proj.forward(x)?)
    }
}
