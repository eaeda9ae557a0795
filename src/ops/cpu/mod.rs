//! The operations on a CPU, by the kernels of `sd_kernels`: f32 and bf16 activations, contiguous, NHWC.
//!
//! Each function answers `None` where it does not apply (another device, f16, or the plain operations were asked for), and the
//! caller computes the plain way. The plain way is also what the tests hold these against: [`plainly`].

mod layers;
mod passes;

pub(super) use layers::{Tail, conv, linear, quantised};
pub(super) use passes::{
    Affine, activate, attention, concat, geglu, group_norm, layer_norm, rms_norm, rope, upsample_nearest2x,
};

use std::cell::Cell;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use candle_core::{DType, Device, Layout, Result, Storage, Tensor, WithDType};
use sd_kernels::{Columns, ConvShape, Element, KernelError, PackedWeights, ViewMut, WeightSource, WeightType};

use super::Activation;

thread_local! {
    static PLAIN: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work` on this thread with the plain operations only. `SD_WORKER_KERNELS=plain` does so for the whole process.
pub fn plainly<R>(work: impl FnOnce() -> R) -> R {
    let before = PLAIN.replace(true);
    let result = work();
    PLAIN.set(before);
    result
}

fn enabled() -> bool {
    static PROCESS: OnceLock<bool> = OnceLock::new();
    *PROCESS.get_or_init(|| std::env::var("SD_WORKER_KERNELS").as_deref() != Ok("plain")) && !PLAIN.get()
}

/// Types that the kernels compute with.
pub(super) trait Float: Element + WithDType {}
impl Float for f32 {}
impl Float for half::bf16 {}

/// The type of `x` if the kernels take it.
fn kind(x: &Tensor) -> Option<DType> {
    takes(x.device(), x.dtype()).then(|| x.dtype())
}

fn takes(device: &Device, dtype: DType) -> bool {
    matches!(device, Device::Cpu) && matches!(dtype, DType::F32 | DType::BF16) && enabled()
}

/// Calls a function of the type of a tensor; `None` if the kernels do not take it.
macro_rules! by_type {
    ($x:expr, $f:ident($($arg:expr),* $(,)?)) => {
        match $crate::ops::cpu::kind($x) {
            Some(candle_core::DType::F32) => $f::<f32>($($arg),*).map(Some),
            Some(candle_core::DType::BF16) => $f::<half::bf16>($($arg),*).map(Some),
            _ => Ok(None),
        }
    };
}
use by_type;

fn slice<'a, T: WithDType>(storage: &'a Storage, layout: &Layout) -> Result<&'a [T]> {
    let Storage::Cpu(cpu) = storage else {
        candle_core::bail!("the CPU's kernels were given a tensor of another device")
    };
    match layout.contiguous_offsets() {
        Some((from, to)) => Ok(&cpu.as_slice::<T>()?[from..to]),
        None => candle_core::bail!("the CPU's kernels were given a tensor that is not contiguous"),
    }
}

/// The numbers of a small tensor, as f32.
fn floats(x: &Tensor) -> Result<Vec<f32>> {
    x.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
}

fn wrong(error: KernelError) -> candle_core::Error {
    candle_core::Error::wrap(error)
}

/// The kernels' name of an activation, if they have it.
fn kernel_activation(activation: Activation) -> Option<sd_kernels::Activation> {
    match activation {
        Activation::Silu => Some(sd_kernels::Activation::Silu),
        Activation::GeluErf => Some(sd_kernels::Activation::GeluErf),
        Activation::GeluTanh => Some(sd_kernels::Activation::GeluTanh),
        Activation::QuickGelu => Some(sd_kernels::Activation::QuickGelu),
        Activation::Relu => None,
    }
}

/// How a layer's weight is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// `(out, in)`.
    Linear,
    /// `(out, in)`, whose f32 products are made in f32 ([`WeightType::F32`]) where others would be as [`WeightType::Split`].
    Exact,
    /// `(out, in)` whose second half gates the first.
    Gated,
    /// `(out, in, kh, kw)`.
    Conv,
}

/// The weight in the order the kernels read it; `None` if they do not take it. The packed form is all that need be kept.
///
/// # Errors
/// The shape does not fit the packing.
pub fn pack(weight: &Tensor, packing: Packing) -> Result<Option<Arc<PackedWeights>>> {
    by_type!(weight, pack_as(weight, packing))
}

fn pack_as<T: Float>(weight: &Tensor, packing: Packing) -> Result<Arc<PackedWeights>> {
    let weight = weight.contiguous()?;
    let (storage, layout) = weight.storage_and_layout();
    let numbers = slice::<T>(&storage, layout)?;
    let source = match T::view(numbers) {
        sd_kernels::View::F32(numbers) => WeightSource::F32(numbers),
        sd_kernels::View::Bf16(numbers) => WeightSource::Bf16(numbers),
    };
    let to = packing.weight_type(T::DTYPE);
    let packed = match packing {
        Packing::Linear | Packing::Exact => PackedWeights::pack(source, weight.dims2()?, to, Columns::Plain),
        Packing::Gated => PackedWeights::pack(source, weight.dims2()?, to, Columns::Gated),
        Packing::Conv => {
            let (out_channels, in_channels, height, width) = weight.dims4()?;
            let shape = ConvShape {
                kernel: (height, width),
                ..ConvShape::same(in_channels, out_channels, 1)
            };
            PackedWeights::pack_conv(source, &shape, to)
        }
    };
    packed.map(Arc::new).map_err(wrong)
}

impl Packing {
    fn weight_type(self, dtype: DType) -> WeightType {
        match (dtype, self) {
            (DType::F32, Packing::Exact) => WeightType::F32,
            (DType::F32, _) => WeightType::Split,
            _ => WeightType::Bf16,
        }
    }

    /// As [`pack`] for a weight of this shape on a device and of a type, whose rows `fetch` brings on any thread.
    ///
    /// # Errors
    /// The first of `fetch`, or the shape does not fit the packing.
    pub fn rows<E: From<KernelError> + Send>(
        self,
        (device, dtype): (&Device, DType),
        shape: &[usize],
        fetch: impl Fn(Range<usize>, ViewMut<'_>) -> std::result::Result<(), E> + Sync,
    ) -> std::result::Result<Option<Arc<PackedWeights>>, E> {
        if !takes(device, dtype) {
            return Ok(None);
        }
        let to = self.weight_type(dtype);
        let (columns, taps) = match self {
            Packing::Linear | Packing::Exact => (Columns::Plain, 1),
            Packing::Gated => (Columns::Gated, 1),
            Packing::Conv => (Columns::Plain, shape.iter().skip(2).product()),
        };
        let outputs = shape.first().copied().unwrap_or(0);
        let inputs = shape.iter().skip(1).product();
        PackedWeights::pack_rows((outputs, inputs), to, columns, taps, fetch).map(|packed| Some(Arc::new(packed)))
    }
}

/// The weight back in its file's order, of the given shape, in the type that it is held as.
///
/// # Errors
/// The shape does not fit.
pub fn unpack(packed: &PackedWeights, shape: &[usize]) -> Result<Tensor> {
    match packed.weight_type() {
        WeightType::F32 | WeightType::Split => Tensor::from_vec(packed.unpack::<f32>(), shape, &Device::Cpu),
        WeightType::Bf16 => Tensor::from_vec(packed.unpack::<half::bf16>(), shape, &Device::Cpu),
    }
}
