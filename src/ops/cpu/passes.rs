//! Operations without weights of their own, and norms.

use candle_core::{D, Device, Result, Tensor};
use sd_kernels::{AttentionMask, AttentionShape, NormAffine, fresh};

use super::super::{Activation, Mask, RopeTable};
use super::{Float, by_type, floats, kernel_activation, slice, wrong};

/// As [`super::super::attention`].
pub(in crate::ops) fn attention(
    (q, k, v): (&Tensor, &Tensor, &Tensor),
    heads: usize,
    scale: f64,
    mask: Mask<'_>,
) -> Result<Option<Tensor>> {
    let (batch, queries, width) = q.dims3()?;
    let keys = k.dim(1)?;
    let square = !matches!(mask, Mask::Causal) || queries == keys;
    if heads == 0 || !width.is_multiple_of(heads) || !square || [k, v].iter().any(|t| t.dtype() != q.dtype()) {
        return Ok(None);
    }
    let shape = AttentionShape {
        batch,
        queries,
        keys,
        heads,
        width: width / heads,
    };
    by_type!(q, attention_as((q, k, v), &shape, scale, mask))
}

fn attention_as<T: Float>(
    (q, k, v): (&Tensor, &Tensor, &Tensor),
    shape: &AttentionShape,
    scale: f64,
    mask: Mask<'_>,
) -> Result<Tensor> {
    let (q, k, v) = (q.contiguous()?, k.contiguous()?, v.contiguous()?);
    let (added, per_batch, per_head) = match mask {
        Mask::Add(mask) => {
            let (images, heads, _, _) = mask.dims4()?;
            (Some(floats(&mask.contiguous()?)?), images > 1, heads > 1)
        }
        _ => (None, false, false),
    };
    let mask = match (&mask, &added) {
        (Mask::Causal, _) => AttentionMask::Causal,
        (_, Some(values)) => AttentionMask::Add {
            values,
            per_batch,
            per_head,
        },
        _ => AttentionMask::None,
    };
    let ((qs, ql), (ks, kl), (vs, vl)) = (q.storage_and_layout(), k.storage_and_layout(), v.storage_and_layout());
    let slices = (slice::<T>(&qs, ql)?, slice::<T>(&ks, kl)?, slice::<T>(&vs, vl)?);
    let out = fresh::attention(slices, shape, scale as f32, mask).map_err(wrong)?;
    Tensor::from_vec(out, q.dims(), &Device::Cpu)
}

/// Calls a kernel that makes as many numbers as it gets.
fn same_shape<T: Float>(x: &Tensor, run: impl FnOnce(&[T]) -> sd_kernels::Result<Vec<T>>) -> Result<Tensor> {
    let x = x.contiguous()?;
    let (storage, layout) = x.storage_and_layout();
    let out = run(slice::<T>(&storage, layout)?).map_err(wrong)?;
    Tensor::from_vec(out, x.dims(), &Device::Cpu)
}

/// `x` is `(B, ..., C)`, `scale` and `shift` are `(C)`.
pub(in crate::ops) fn group_norm(
    x: &Tensor,
    groups: usize,
    affine: (&Tensor, &Tensor),
    eps: f64,
    silu: bool,
) -> Result<Option<Tensor>> {
    by_type!(x, group_norm_as(x, groups, affine, eps, silu))
}

fn group_norm_as<T: Float>(
    x: &Tensor,
    groups: usize,
    (scale, shift): (&Tensor, &Tensor),
    eps: f64,
    silu: bool,
) -> Result<Tensor> {
    let (batch, channels) = (x.dim(0)?, x.dim(D::Minus1)?);
    let dims = (batch, x.elem_count() / (batch * channels).max(1), channels);
    let (scale, shift) = (floats(scale)?, floats(shift)?);
    let activation = if silu {
        sd_kernels::Activation::Silu
    } else {
        sd_kernels::Activation::None
    };
    same_shape::<T>(x, |x| {
        fresh::group_norm(x, dims, groups, (&scale, &shift), eps as f32, activation)
    })
}

/// A layer norm's scale and shift: learned `(C)`, or by picture `(B, 1, C)`.
#[derive(Clone, Copy)]
pub(in crate::ops) enum Affine<'a> {
    None,
    Learned(&'a Tensor, &'a Tensor),
    Modulated { shift: &'a Tensor, scale: &'a Tensor },
}

/// Over the last dimension.
pub(in crate::ops) fn layer_norm(x: &Tensor, affine: Affine<'_>, eps: f64) -> Result<Option<Tensor>> {
    by_type!(x, layer_norm_as(x, affine, eps))
}

fn layer_norm_as<T: Float>(x: &Tensor, affine: Affine<'_>, eps: f64) -> Result<Tensor> {
    let width = x.dim(D::Minus1)?;
    let rows = x.elem_count() / width.max(1);
    let (scale, shift) = match affine {
        Affine::None => (Vec::new(), Vec::new()),
        Affine::Learned(scale, shift) | Affine::Modulated { shift, scale } => (floats(scale)?, floats(shift)?),
    };
    let affine = match affine {
        Affine::None => NormAffine::None,
        Affine::Learned(..) => NormAffine::Shared {
            scale: &scale,
            shift: &shift,
        },
        Affine::Modulated { .. } => NormAffine::Modulated {
            scale: &scale,
            shift: &shift,
            rows_per_group: (rows / (scale.len() / width.max(1)).max(1)).max(1),
        },
    };
    same_shape::<T>(x, |x| fresh::layer_norm(x, width, affine, eps as f32))
}

/// Over the last dimension, or each `scale.len()` numbers of it.
pub(in crate::ops) fn rms_norm(x: &Tensor, scale: &Tensor, eps: f64) -> Result<Option<Tensor>> {
    by_type!(x, rms_norm_as(x, scale, eps))
}

fn rms_norm_as<T: Float>(x: &Tensor, scale: &Tensor, eps: f64) -> Result<Tensor> {
    let scale = floats(scale)?;
    same_shape::<T>(x, |x| fresh::rms_norm(x, &scale, eps as f32))
}

/// As [`super::super::rope`], whose shape check came first.
pub(in crate::ops) fn rope(x: &Tensor, heads: usize, table: &RopeTable) -> Result<Option<Tensor>> {
    by_type!(x, rope_as(x, heads, table))
}

fn rope_as<T: Float>(x: &Tensor, heads: usize, table: &RopeTable) -> Result<Tensor> {
    let (batch, tokens, width) = x.dims3()?;
    let (cos, sin) = (table.cos.contiguous()?, table.sin.contiguous()?);
    let ((cs, cl), (ss, sl)) = (cos.storage_and_layout(), sin.storage_and_layout());
    let angles = (slice::<f32>(&cs, cl)?, slice::<f32>(&ss, sl)?);
    same_shape::<T>(x, |x| {
        fresh::rope(x, (batch, tokens, heads, width / heads), angles, None)
    })
}

/// `activation(x)`.
pub(in crate::ops) fn activate(x: &Tensor, activation: Activation) -> Result<Option<Tensor>> {
    match kernel_activation(activation) {
        Some(activation) => by_type!(x, activate_as(x, activation)),
        None => Ok(None),
    }
}

fn activate_as<T: Float>(x: &Tensor, activation: sd_kernels::Activation) -> Result<Tensor> {
    same_shape::<T>(x, |x| fresh::activate(x, activation))
}

/// As [`super::super::geglu`].
pub(in crate::ops) fn geglu(x: &Tensor) -> Result<Option<Tensor>> {
    by_type!(x, geglu_as(x))
}

fn geglu_as<T: Float>(x: &Tensor) -> Result<Tensor> {
    let x = x.contiguous()?;
    let half = x.dim(D::Minus1)? / 2;
    let mut shape = x.dims().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = half;
    }
    let (storage, layout) = x.storage_and_layout();
    let out = fresh::gate(slice::<T>(&storage, layout)?, half, sd_kernels::Activation::GeluErf).map_err(wrong)?;
    Tensor::from_vec(out, shape, &Device::Cpu)
}

/// As [`super::super::concat`].
pub(in crate::ops) fn concat(a: &Tensor, b: &Tensor) -> Result<Option<Tensor>> {
    if a.dtype() != b.dtype() || a.rank() != b.rank() || a.dims()[..a.rank() - 1] != b.dims()[..b.rank() - 1] {
        return Ok(None);
    }
    by_type!(a, concat_as(a, b))
}

fn concat_as<T: Float>(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let (a, b) = (a.contiguous()?, b.contiguous()?);
    let widths = (a.dim(D::Minus1)?, b.dim(D::Minus1)?);
    let mut shape = a.dims().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = widths.0 + widths.1;
    }
    let ((sa, la), (sb, lb)) = (a.storage_and_layout(), b.storage_and_layout());
    let out = fresh::concat(slice::<T>(&sa, la)?, slice::<T>(&sb, lb)?, widths).map_err(wrong)?;
    Tensor::from_vec(out, shape, &Device::Cpu)
}

/// As [`super::super::upsample_nearest2x`].
pub(in crate::ops) fn upsample_nearest2x(x: &Tensor) -> Result<Option<Tensor>> {
    by_type!(x, upsample_as(x))
}

fn upsample_as<T: Float>(x: &Tensor) -> Result<Tensor> {
    let (batch, height, width, channels) = x.dims4()?;
    let x = x.contiguous()?;
    let (storage, layout) = x.storage_and_layout();
    let out = fresh::upsample2x(slice::<T>(&storage, layout)?, (batch, height, width, channels)).map_err(wrong)?;
    Tensor::from_vec(out, (batch, 2 * height, 2 * width, channels), &Device::Cpu)
}
