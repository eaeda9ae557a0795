//! Normalisations. Statistics are `f32` whatever the type of the activations; scales and shifts are kept as `f32`.

use candle_core::{D, DType, Result, Tensor};

use super::cpu::{self, Affine};
use super::silu;
use crate::weights::{LoadResult, Weights};

/// Normalises over groups of channels of one picture: `(B, H, W, C)`.
#[derive(Debug)]
pub struct GroupNorm {
    scale: Tensor,
    shift: Tensor,
    groups: usize,
    eps: f64,
}

impl GroupNorm {
    /// Reads `weight` and `bias`, each `(channels)`.
    ///
    /// # Errors
    /// A tensor is missing or does not fit; the groups do not divide the channels.
    pub fn load(weights: &Weights, groups: usize, channels: usize, eps: f64) -> LoadResult<Self> {
        if groups == 0 || !channels.is_multiple_of(groups) {
            let why = format!(
                "{}: {groups} groups do not divide {channels} channels",
                weights.layer_name()
            );
            return Err(candle_core::Error::Msg(why).into());
        }
        let scale = weights.tensor_as("weight", &[channels], DType::F32)?;
        let shift = weights.tensor_as("bias", &[channels], DType::F32)?;
        Ok(Self {
            scale,
            shift,
            groups,
            eps,
        })
    }

    /// The normalised picture, in the type of `x`; any shape `(B, ..., C)`.
    ///
    /// # Errors
    /// The shape does not fit, or the device refused.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match cpu::group_norm(x, self.groups, (&self.scale, &self.shift), self.eps, false)? {
            Some(y) => Ok(y),
            None => self.normalised(x)?.to_dtype(x.dtype()),
        }
    }

    /// `silu(forward(x))`.
    ///
    /// # Errors
    /// As [`GroupNorm::forward`].
    pub fn forward_silu(&self, x: &Tensor) -> Result<Tensor> {
        match cpu::group_norm(x, self.groups, (&self.scale, &self.shift), self.eps, true)? {
            Some(y) => Ok(y),
            None => silu(&self.normalised(x)?)?.to_dtype(x.dtype()),
        }
    }

    fn normalised(&self, x: &Tensor) -> Result<Tensor> {
        let (batch, channels) = (x.dim(0)?, x.dim(D::Minus1)?);
        let per_group = channels / self.groups;
        let split = x.to_dtype(DType::F32)?.reshape((batch, (), self.groups, per_group))?;
        let count = (split.dim(1)? * per_group) as f64;
        let mean = (split.sum_keepdim((1, 3))? / count)?;
        let centred = split.broadcast_sub(&mean)?;
        let variance = (centred.sqr()?.sum_keepdim((1, 3))? / count)?;
        let normed = centred.broadcast_div(&(variance + self.eps)?.sqrt()?)?;
        normed
            .reshape(x.dims())?
            .broadcast_mul(&self.scale)?
            .broadcast_add(&self.shift)
    }
}

/// Normalises over the last dimension.
#[derive(Debug)]
pub struct LayerNorm {
    affine: Option<(Tensor, Tensor)>,
    eps: f64,
}

impl LayerNorm {
    /// Reads `weight` and `bias`, each `(width)`.
    ///
    /// # Errors
    /// A tensor is missing or does not fit.
    pub fn load(weights: &Weights, width: usize, eps: f64) -> LoadResult<Self> {
        let scale = weights.tensor_as("weight", &[width], DType::F32)?;
        let shift = weights.tensor_as("bias", &[width], DType::F32)?;
        Ok(Self {
            affine: Some((scale, shift)),
            eps,
        })
    }

    /// Without a learned scale and shift, as before a modulation.
    pub fn plain(eps: f64) -> Self {
        Self { affine: None, eps }
    }

    /// The normalised `x`, in its type.
    ///
    /// # Errors
    /// The shape does not fit, or the device refused.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let affine = match &self.affine {
            Some((scale, shift)) => Affine::Learned(scale, shift),
            None => Affine::None,
        };
        match cpu::layer_norm(x, affine, self.eps)? {
            Some(y) => Ok(y),
            None => self.normalised(x)?.to_dtype(x.dtype()),
        }
    }

    /// `forward(x) * (1 + scale) + shift`; `x` is `(B, N, C)`, `shift` and `scale` are `(B, 1, C)`.
    ///
    /// # Errors
    /// As [`LayerNorm::forward`].
    pub fn forward_modulated(&self, x: &Tensor, shift: &Tensor, scale: &Tensor) -> Result<Tensor> {
        if self.affine.is_none()
            && let Some(y) = cpu::layer_norm(x, Affine::Modulated { shift, scale }, self.eps)?
        {
            return Ok(y);
        }
        let (shift, scale) = (shift.to_dtype(DType::F32)?, scale.to_dtype(DType::F32)?);
        modulate(&self.normalised(x)?, &shift, &scale)?.to_dtype(x.dtype())
    }

    fn normalised(&self, x: &Tensor) -> Result<Tensor> {
        let x = x.to_dtype(DType::F32)?;
        let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
        let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
        let normed = centred.broadcast_div(&(variance + self.eps)?.sqrt()?)?;
        match &self.affine {
            Some((scale, shift)) => normed.broadcast_mul(scale)?.broadcast_add(shift),
            None => Ok(normed),
        }
    }
}

/// Divides by the root of the mean square over the last dimension: T5, and the queries and keys of FLUX.
#[derive(Debug)]
pub struct RmsNorm {
    scale: Tensor,
    eps: f64,
}

impl RmsNorm {
    /// Reads `weight` `(width)`.
    ///
    /// # Errors
    /// It is missing or does not fit.
    pub fn load(weights: &Weights, width: usize, eps: f64) -> LoadResult<Self> {
        Ok(Self {
            scale: weights.tensor_as("weight", &[width], DType::F32)?,
            eps,
        })
    }

    /// The normalised `x` `(..., width)`, in its type.
    ///
    /// # Errors
    /// The shape does not fit, or the device refused.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if let Some(y) = cpu::rms_norm(x, &self.scale, self.eps)? {
            return Ok(y);
        }
        let wide = x.to_dtype(DType::F32)?;
        let mean_square = wide.sqr()?.mean_keepdim(D::Minus1)?;
        let normed = wide.broadcast_div(&(mean_square + self.eps)?.sqrt()?)?;
        normed.broadcast_mul(&self.scale)?.to_dtype(x.dtype())
    }

    /// As [`RmsNorm::forward`] for each head of `(B, N, heads * width)`.
    ///
    /// # Errors
    /// The shape does not fit, or the device refused.
    pub fn forward_heads(&self, x: &Tensor) -> Result<Tensor> {
        let width = self.scale.dim(0)?;
        self.forward(&x.reshape(((), width))?)?.reshape(x.dims())
    }
}

/// `x * (1 + scale) + shift`; `x` is `(B, N, C)`, `shift` and `scale` are `(B, 1, C)`.
///
/// # Errors
/// The shapes do not fit, or the device refused.
pub fn modulate(x: &Tensor, shift: &Tensor, scale: &Tensor) -> Result<Tensor> {
    x.broadcast_mul(&(scale + 1.0)?)?.broadcast_add(shift)
}
