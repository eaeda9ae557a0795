//! Activations.

use candle_core::{D, Result, Tensor};

use super::cpu;

/// An activation function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x * sigmoid(x)`, also called swish.
    Silu,
    /// Exact GELU, by the error function: torch's `gelu`.
    GeluErf,
    /// GELU by `tanh`: torch's `gelu(approximate="tanh")`, transformers' `gelu_new`.
    GeluTanh,
    /// `x * sigmoid(1.702 x)`: OpenAI CLIP's.
    QuickGelu,
    /// `max(x, 0)`.
    Relu,
}

impl Activation {
    /// The function that transformers and diffusers call `name`; `None` if it is not one of these.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "silu" | "swish" => Some(Self::Silu),
            "gelu" => Some(Self::GeluErf),
            "gelu_new" | "gelu_pytorch_tanh" | "gelu-approximate" => Some(Self::GeluTanh),
            "relu" => Some(Self::Relu),
            "quick_gelu" => Some(Self::QuickGelu),
            _ => None,
        }
    }

    /// The function of each number of `x`.
    ///
    /// # Errors
    /// The device refused.
    pub fn apply(self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Silu => silu(x),
            Self::GeluErf => gelu_erf(x),
            Self::GeluTanh => gelu_tanh(x),
            Self::QuickGelu => quick_gelu(x),
            Self::Relu => x.relu(),
        }
    }
}

/// `x * sigmoid(x)`.
///
/// # Errors
/// The device refused.
pub fn silu(x: &Tensor) -> Result<Tensor> {
    match cpu::activate(x, Activation::Silu)? {
        Some(y) => Ok(y),
        None => x.silu(),
    }
}

/// Exact GELU.
///
/// # Errors
/// The device refused.
pub fn gelu_erf(x: &Tensor) -> Result<Tensor> {
    match cpu::activate(x, Activation::GeluErf)? {
        Some(y) => Ok(y),
        None => x.gelu_erf(),
    }
}

/// GELU by `tanh`.
///
/// # Errors
/// The device refused.
pub fn gelu_tanh(x: &Tensor) -> Result<Tensor> {
    match cpu::activate(x, Activation::GeluTanh)? {
        Some(y) => Ok(y),
        None => x.gelu(),
    }
}

/// `x * sigmoid(1.702 x)`.
///
/// # Errors
/// The device refused.
pub fn quick_gelu(x: &Tensor) -> Result<Tensor> {
    match cpu::activate(x, Activation::QuickGelu)? {
        Some(y) => Ok(y),
        None => x * candle_nn::ops::sigmoid(&(x * 1.702)?)?,
    }
}

/// `a * gelu_erf(b)` for `x = [a, b]` along the last dimension: `(..., 2n)` to `(..., n)`.
///
/// # Errors
/// The last dimension is odd, or the device refused.
pub fn geglu(x: &Tensor) -> Result<Tensor> {
    if let Some(y) = cpu::geglu(x)? {
        return Ok(y);
    }
    let halves = x.chunk(2, D::Minus1)?;
    let [value, gate] = halves.as_slice() else {
        candle_core::bail!("geglu needs an even last dimension")
    };
    value * gelu_erf(&gate.contiguous()?)?
}
