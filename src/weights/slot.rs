//! Where a layer keeps its weight, so that a LoRA can change it and give it back.

use std::cell::RefCell;
use std::sync::Arc;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Result, Tensor};
use sd_kernels::PackedWeights;

use crate::ops::{Packing, pack, unpack};

/// A layer's weight in the form that it is computed with. Cheap to clone: the numbers are shared.
#[derive(Clone, Debug)]
pub enum Weight {
    /// Plain numbers, in the layout of [`SlotLayout`].
    Dense(Tensor),
    /// Plain numbers in the order that the CPU's kernels read them.
    Packed(Arc<PackedWeights>),
    /// Blocks of GGUF as stored, always `(out, in)`.
    Quantised(Arc<QTensor>),
}

/// How the numbers of a weight lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotLayout {
    /// As in the file: `(out, in)` of a linear layer.
    AsStored,
    /// As in the file: `(out, in)` of a linear layer whose `f32` products are made in `f32`, even where others are faster.
    Exact,
    /// As in the file: `(out, in)` of a linear layer whose second half gates the first.
    Gated,
    /// `(out, kh, kw, in)`, turned from the file's `(out, in, kh, kw)`: what a convolution over NHWC reads in order.
    ConvNhwc,
}

impl SlotLayout {
    /// How the CPU's kernels are to have it.
    pub(super) fn packing(self) -> Packing {
        match self {
            Self::AsStored => Packing::Linear,
            Self::Exact => Packing::Exact,
            Self::Gated => Packing::Gated,
            Self::ConvNhwc => Packing::Conv,
        }
    }

    /// `stored` as it is computed with: packed where the device has kernels for it.
    fn prepare(self, stored: &Tensor) -> Result<Weight> {
        match pack(stored, self.packing())? {
            Some(packed) => Ok(Weight::Packed(packed)),
            None => self.turn(stored).map(Weight::Dense),
        }
    }

    fn turn(self, stored: &Tensor) -> Result<Tensor> {
        match self {
            Self::AsStored | Self::Exact | Self::Gated => stored.contiguous(),
            Self::ConvNhwc => stored.permute((0, 2, 3, 1))?.contiguous(),
        }
    }

    fn turn_back(self, held: &Tensor) -> Result<Tensor> {
        match self {
            Self::AsStored | Self::Exact | Self::Gated => Ok(held.clone()),
            Self::ConvNhwc => held.permute((0, 3, 1, 2))?.contiguous(),
        }
    }
}

/// A product beside a weight: the layer adds `scale * factors(x)` to its output.
#[derive(Clone, Debug)]
pub struct Side {
    /// What is multiplied with, in the compute type.
    pub factors: Factors,
    /// Multiplier.
    pub scale: f64,
}

/// A matrix `(out, in)` by the small ones that it is made of.
#[derive(Clone, Debug)]
pub enum Factors {
    /// `up` times `down`.
    LowRank {
        /// `(rank, in)`.
        down: Tensor,
        /// `(out, rank)`.
        up: Tensor,
    },
    /// The Kronecker product of `first` and `second`.
    Kronecker {
        /// `(a, b)`, with `out = a * c` and `in = b * d`.
        first: Tensor,
        /// `(c, d)`.
        second: Tensor,
    },
}

impl Factors {
    /// `(out, in)` of the whole matrix.
    ///
    /// # Errors
    /// A factor is no matrix, or the ranks differ.
    pub fn dims(&self) -> Result<(usize, usize)> {
        match self {
            Self::LowRank { down, up } => {
                let ((rank, inputs), (outputs, rank_up)) = (down.dims2()?, up.dims2()?);
                if rank != rank_up {
                    candle_core::bail!("the ranks {rank} and {rank_up} differ");
                }
                Ok((outputs, inputs))
            }
            Self::Kronecker { first, second } => {
                let ((a, b), (c, d)) = (first.dims2()?, second.dims2()?);
                Ok((a * c, b * d))
            }
        }
    }

    /// How many numbers they have together.
    pub fn count(&self) -> usize {
        match self {
            Self::LowRank { down: a, up: b } | Self::Kronecker { first: a, second: b } => {
                a.elem_count() + b.elem_count()
            }
        }
    }

    /// The product with rows `x` `(n, in)`: `(n, out)`.
    ///
    /// # Errors
    /// The shapes do not fit, or the device refused.
    pub fn product(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::LowRank { down, up } => x.matmul(&down.t()?)?.matmul(&up.t()?),
            Self::Kronecker { first, second } => {
                let (rows, ((a, b), (c, d))) = (x.dim(0)?, (first.dims2()?, second.dims2()?));
                let inner = x.reshape((rows * b, d))?.matmul(&second.t()?)?.reshape((rows, b, c))?;
                let inner = inner.transpose(1, 2)?.contiguous()?.reshape((rows * c, b))?;
                let outer = inner.matmul(&first.t()?)?.reshape((rows, c, a))?;
                outer.transpose(1, 2)?.contiguous()?.reshape((rows, a * c))
            }
        }
    }

    fn map(&self, f: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Self> {
        Ok(match self {
            Self::LowRank { down, up } => Self::LowRank {
                down: f(down)?,
                up: f(up)?,
            },
            Self::Kronecker { first, second } => Self::Kronecker {
                first: f(first)?,
                second: f(second)?,
            },
        })
    }
}

#[derive(Debug)]
struct State {
    current: Weight,
    /// What the file had, while `current` is a patched copy.
    original: Option<Weight>,
    sides: Vec<Side>,
}

/// The weight of one `Linear` or `Conv2d`. Shared between the layer and the [`super::LayerTable`] through an `Rc`: the
/// model and its LoRAs live in one thread.
#[derive(Debug)]
pub struct WeightSlot {
    shape: Vec<usize>,
    layout: SlotLayout,
    dtype: DType,
    device: Device,
    state: RefCell<State>,
}

impl WeightSlot {
    /// A slot that holds `stored`, of the file's shape, in the compute type and on the device that it already has.
    ///
    /// # Errors
    /// The device refused to turn it into `layout`.
    pub fn of_dense(stored: &Tensor, layout: SlotLayout) -> Result<Self> {
        let weight = layout.prepare(stored)?;
        Ok(Self::new(
            weight,
            stored.dims().to_vec(),
            layout,
            stored.dtype(),
            stored.device().clone(),
        ))
    }

    /// A slot that holds a weight of the file's shape, packed in `layout`, for a device and a compute type.
    pub(super) fn of_packed(
        packed: Arc<PackedWeights>,
        shape: &[usize],
        layout: SlotLayout,
        (device, dtype): (&Device, DType),
    ) -> Self {
        Self::new(Weight::Packed(packed), shape.to_vec(), layout, dtype, device.clone())
    }

    /// A slot that holds quantised blocks of shape `(out, in)`; `dtype` is the type that its layer computes with.
    pub fn quantised(blocks: QTensor, dtype: DType) -> Self {
        let (shape, device) = (blocks.shape().dims().to_vec(), blocks.device());
        Self::new(
            Weight::Quantised(Arc::new(blocks)),
            shape,
            SlotLayout::AsStored,
            dtype,
            device,
        )
    }

    fn new(current: Weight, shape: Vec<usize>, layout: SlotLayout, dtype: DType, device: Device) -> Self {
        Self {
            shape,
            layout,
            dtype,
            device,
            state: RefCell::new(State {
                current,
                original: None,
                sides: Vec::new(),
            }),
        }
    }

    /// Shape as diffusers' files have it: `(out, in)` or `(out, in, kh, kw)`.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The type that the layer computes with.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Where the weight lies.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The GGUF type of the stored blocks; `None` for a dense weight.
    pub fn quantisation(&self) -> Option<GgmlDType> {
        match self.original() {
            Weight::Quantised(blocks) => Some(blocks.dtype()),
            Weight::Dense(_) | Weight::Packed(_) => None,
        }
    }

    /// What the layer computes with now.
    pub fn current(&self) -> Weight {
        self.state.borrow().current.clone()
    }

    /// What the layer computes with now as plain numbers in the slot's layout; `None` if it is quantised.
    ///
    /// # Errors
    /// The device refused.
    pub fn dense(&self) -> Result<Option<Tensor>> {
        match self.current() {
            Weight::Dense(weight) => Ok(Some(weight)),
            Weight::Packed(packed) => self.layout.turn(&unpack(&packed, &self.shape)?).map(Some),
            Weight::Quantised(_) => Ok(None),
        }
    }

    /// The products beside the weight.
    pub fn sides(&self) -> Vec<Side> {
        self.state.borrow().sides.clone()
    }

    /// Whether [`WeightSlot::restore`] would change anything.
    pub fn is_patched(&self) -> bool {
        let state = self.state.borrow();
        state.original.is_some() || !state.sides.is_empty()
    }

    /// The unpatched weight as `f32`, in the file's shape and layout; quantised blocks are expanded.
    ///
    /// # Errors
    /// The device refused.
    pub fn original_f32(&self) -> Result<Tensor> {
        match self.original() {
            Weight::Dense(held) => self.layout.turn_back(&held)?.to_dtype(DType::F32),
            Weight::Packed(packed) => unpack(&packed, &self.shape)?.to_dtype(DType::F32),
            Weight::Quantised(blocks) => blocks.dequantize(&self.device),
        }
    }

    /// Computes with `patched` (the file's shape, any number type) until [`WeightSlot::restore`]; the original is kept.
    ///
    /// # Errors
    /// The shape differs, or the device refused.
    pub fn replace(&self, patched: &Tensor) -> Result<()> {
        if patched.dims() != self.shape {
            candle_core::bail!(
                "a weight of shape {:?} cannot be replaced by one of {:?}",
                self.shape,
                patched.dims()
            );
        }
        let patched = patched.to_device(&self.device)?.to_dtype(self.dtype)?;
        let patched = self.layout.prepare(&patched)?;
        let mut state = self.state.borrow_mut();
        let before = std::mem::replace(&mut state.current, patched);
        state.original.get_or_insert(before);
        Ok(())
    }

    /// Adds `scale * factors(x)` to the layer's output until [`WeightSlot::restore`]; the weight stays as it is. For weights
    /// of linear layers, above all quantised ones.
    ///
    /// # Errors
    /// The factors do not make a matrix of the weight's shape, or the device refused.
    pub fn add_side(&self, factors: &Factors, scale: f64) -> Result<()> {
        let (outputs, inputs) = factors.dims()?;
        if self.shape != [outputs, inputs] {
            candle_core::bail!(
                "a side of shape {:?} does not fit a weight of {:?}",
                [outputs, inputs],
                self.shape
            );
        }
        let factors = factors.map(|t| t.to_device(&self.device)?.to_dtype(self.dtype)?.contiguous())?;
        self.part_gate()?;
        self.state.borrow_mut().sides.push(Side { factors, scale });
        Ok(())
    }

    /// Packs a weight whose gate is computed with its values so that they come out apart: what is beside a weight is added
    /// before the gate.
    fn part_gate(&self) -> Result<()> {
        let Weight::Packed(packed) = self.current() else {
            return Ok(());
        };
        if !packed.is_gated() {
            return Ok(());
        }
        let apart = SlotLayout::AsStored.prepare(&unpack(&packed, &self.shape)?)?;
        let mut state = self.state.borrow_mut();
        let before = std::mem::replace(&mut state.current, apart);
        state.original.get_or_insert(before);
        Ok(())
    }

    /// Gives the original back, bit by bit, and drops patched copies and sides.
    pub fn restore(&self) {
        let mut state = self.state.borrow_mut();
        if let Some(original) = state.original.take() {
            state.current = original;
        }
        state.sides.clear();
    }

    fn original(&self) -> Weight {
        let state = self.state.borrow();
        state.original.as_ref().unwrap_or(&state.current).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(count: usize) -> Tensor {
        Tensor::from_vec((0..count).map(|i| i as f32 * 0.37 - 1.0).collect(), count, &Device::Cpu).unwrap()
    }

    fn values(t: &Tensor) -> Vec<f32> {
        t.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn replacing_and_restoring_gives_the_same_bits_back() {
        let stored = numbers(2 * 3 * 3 * 3)
            .reshape((2, 3, 3, 3))
            .unwrap()
            .to_dtype(DType::BF16)
            .unwrap();
        let slot = WeightSlot::of_dense(&stored, SlotLayout::ConvNhwc).unwrap();
        let before = values(&slot.original_f32().unwrap());
        assert_eq!(before, values(&stored.to_dtype(DType::F32).unwrap()));
        for round in 0..3 {
            slot.replace(&(slot.original_f32().unwrap() + f64::from(round)).unwrap())
                .unwrap();
            slot.replace(&(slot.original_f32().unwrap() * 2.0).unwrap()).unwrap();
            assert!(slot.is_patched());
            slot.restore();
            assert!(!slot.is_patched());
        }
        assert_eq!(before, values(&slot.original_f32().unwrap()));
    }

    #[test]
    fn a_patch_of_another_shape_is_refused() {
        let slot = WeightSlot::of_dense(&numbers(6).reshape((2, 3)).unwrap(), SlotLayout::AsStored).unwrap();
        assert!(slot.replace(&numbers(6).reshape((3, 2)).unwrap()).is_err());
        let square = || numbers(4).reshape((2, 2)).unwrap();
        let (down, up) = (square(), square());
        assert!(slot.add_side(&Factors::LowRank { down, up }, 1.0).is_err());
        assert!(!slot.is_patched());
    }

    #[test]
    fn a_kronecker_product_is_computed_by_its_factors() {
        let first = numbers(6).reshape((2, 3)).unwrap();
        let second = numbers(20).reshape((5, 4)).unwrap();
        let whole = first
            .reshape((2, 1, 3, 1))
            .unwrap()
            .broadcast_mul(&second.reshape((1, 5, 1, 4)).unwrap())
            .unwrap()
            .reshape((10, 12))
            .unwrap();
        let x = numbers(7 * 12).reshape((7, 12)).unwrap();
        let factors = Factors::Kronecker { first, second };
        assert_eq!(factors.dims().unwrap(), (10, 12));
        let expected = values(&x.matmul(&whole.t().unwrap()).unwrap());
        for (got, expected) in values(&factors.product(&x).unwrap()).iter().zip(expected) {
            assert!(
                (got - expected).abs() <= 1e-4 * expected.abs().max(1.0),
                "{got} {expected}"
            );
        }
    }

    #[test]
    fn a_side_of_a_gated_weight_takes_the_gate_apart_until_it_is_removed() {
        let stored = numbers(8 * 6).reshape((8, 6)).unwrap();
        let slot = WeightSlot::of_dense(&stored, SlotLayout::Gated).unwrap();
        let held = values(&slot.original_f32().unwrap());
        let (down, up) = (
            numbers(12).reshape((2, 6)).unwrap(),
            numbers(16).reshape((8, 2)).unwrap(),
        );
        slot.add_side(&Factors::LowRank { down, up }, 1.0).unwrap();
        let gated = |slot: &WeightSlot| matches!(slot.current(), Weight::Packed(packed) if packed.is_gated());
        assert!(!gated(&slot));
        assert_eq!(values(&slot.dense().unwrap().unwrap()), held);
        slot.restore();
        assert!(gated(&slot) && !slot.is_patched());
    }
}
