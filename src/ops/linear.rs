//! Linear layers, dense or quantised.

use std::rc::Rc;

use candle_core::{D, Result, Tensor};

use super::cpu::{self, Tail};
use super::{Activation, geglu};
use crate::weights::{LoadResult, SlotLayout, StoredType, Weight, WeightSlot, Weights};

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
        Self::load_as(weights, inputs, outputs, bias, SlotLayout::AsStored)
    }

    fn load_as(weights: &Weights, inputs: usize, outputs: usize, bias: Bias, layout: SlotLayout) -> LoadResult<Self> {
        let (matrix, pointwise) = ([outputs, inputs], [outputs, inputs, 1, 1]);
        let is_pointwise = weights.shape("weight").is_some_and(|found| found == pointwise);
        let found: &[usize] = if is_pointwise { &pointwise } else { &matrix };
        let slot = match weights.stored("weight", found) {
            Some(StoredType::Ggml(format)) if inputs.is_multiple_of(format.block_size()) && format.block_size() > 1 => {
                weights.blocks("weight", found, &matrix, format)?
            }
            _ => weights.slot("weight", found, &matrix, layout)?,
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
        self.product(x, &Tail::default())
    }

    /// `activation(forward(x))`.
    ///
    /// # Errors
    /// As [`Linear::forward`].
    pub fn forward_act(&self, x: &Tensor, activation: Activation) -> Result<Tensor> {
        self.product(
            x,
            &Tail {
                activation: Some(activation),
                ..Tail::default()
            },
        )
    }

    /// `forward(x) + residual`; `residual` has the output's shape.
    ///
    /// # Errors
    /// As [`Linear::forward`].
    pub fn forward_add(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        self.product(
            x,
            &Tail {
                residual: Some(residual),
                ..Tail::default()
            },
        )
    }

    /// `residual + gate * forward(x)`; `gate` is `(B, 1, outputs)`, `x` `(B, N, inputs)`.
    ///
    /// # Errors
    /// As [`Linear::forward`].
    pub fn forward_gated_add(&self, x: &Tensor, gate: &Tensor, residual: &Tensor) -> Result<Tensor> {
        self.product(
            x,
            &Tail {
                gate: Some(gate),
                residual: Some(residual),
                ..Tail::default()
            },
        )
    }

    /// `residual + gate * activation(forward(x))`, of which `tail` names the parts, in one pass where the device can.
    fn product(&self, x: &Tensor, tail: &Tail<'_>) -> Result<Tensor> {
        if self.slot.sides().is_empty() {
            let bias = self.bias.as_ref();
            if let Some(y) = self.fast(x, &Tail { bias, ..*tail })? {
                return Ok(y);
            }
        }
        let mut y = self.plain(x)?;
        if let Some(activation) = tail.activation {
            y = activation.apply(&y)?;
        }
        if let Some(gate) = tail.gate {
            y = y.broadcast_mul(gate)?;
        }
        match tail.residual {
            Some(residual) => residual + y,
            None => Ok(y),
        }
    }

    /// The product by the CPU's kernels; `None` where they do not apply.
    fn fast(&self, x: &Tensor, tail: &Tail<'_>) -> Result<Option<Tensor>> {
        match self.slot.current() {
            Weight::Packed(packed) => cpu::linear(x, &packed, tail),
            Weight::Quantised(blocks) => cpu::quantised(x, &blocks, tail),
            Weight::Dense(_) => Ok(None),
        }
    }

    /// The product, what LoRAs add beside it, and the bias, step by step.
    fn plain(&self, x: &Tensor) -> Result<Tensor> {
        let inputs = x.dim(D::Minus1)?;
        let rows = x.reshape(((), inputs))?.contiguous()?;
        let fast = match self.slot.current() {
            // Its product has the gate in it already.
            Weight::Packed(packed) if packed.is_gated() => None,
            _ => self.fast(&rows, &Tail::default())?,
        };
        let mut y = match (fast, self.slot.current()) {
            (Some(y), _) => y,
            (None, Weight::Quantised(blocks)) => rows.apply_op1_no_bwd(blocks.as_ref())?,
            (None, _) => match self.slot.dense()? {
                Some(weight) => rows.matmul(&weight.t()?)?,
                None => candle_core::bail!("this layer has no weight"),
            },
        };
        for side in self.slot.sides() {
            y = (y + (side.factors.product(&rows)? * side.scale)?)?;
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
            proj: Linear::load_as(&weights.at("proj"), inputs, 2 * outputs, Bias::Yes, SlotLayout::Gated)?,
        })
    }

    /// `(..., inputs)` to `(..., outputs)`.
    ///
    /// # Errors
    /// As [`Linear::forward`].
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let gated = matches!(self.proj.slot.current(), Weight::Packed(packed) if packed.is_gated());
        if gated {
            let tail = Tail {
                bias: self.proj.bias.as_ref(),
                activation: Some(Activation::GeluErf),
                ..Tail::default()
            };
            if let Some(y) = self.proj.fast(x, &tail)? {
                return Ok(y);
            }
        }
        if gated {
            return geglu(&self.proj.plain(x)?);
        }
        geglu(&self.proj.forward(x)?)
    }
}
