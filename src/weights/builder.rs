//! How a model asks for its weights: a source, a prefix, a device and a compute type.

use std::borrow::Cow;
use std::fmt::Display;
use std::ops::Range;
use std::rc::Rc;

use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};
use sd_kernels::{ViewMut, WeightMemory};

use super::blocks::Blocks;
use super::convert::{Number, float_width};
use super::{
    LayerTable, Located, NumbersMut, RawTensor, SlotLayout, StoredType, TensorSource, WeightSlot, WeightsError,
};

/// A view of a [`TensorSource`] below a name prefix, that makes tensors of one device and compute type.
///
/// ```text
/// let block = weights.at("down_blocks").at(0);
/// let scale = block.tensor("norm.weight", &[320])?;
/// ```
#[derive(Clone)]
pub struct Weights {
    source: Rc<dyn TensorSource>,
    prefix: String,
    outer: Option<&'static str>,
    device: Device,
    dtype: DType,
    layers: Rc<LayerTable>,
    exact: bool,
}

impl Weights {
    /// The whole source, for a device and a compute type (`F32`, `BF16` or `F16`).
    pub fn new(source: Rc<dyn TensorSource>, device: Device, dtype: DType) -> Self {
        Self {
            source,
            prefix: String::new(),
            outer: None,
            device,
            dtype,
            layers: Rc::default(),
            exact: false,
        }
    }

    /// The same weights one name further down: `a.b` at `c` is `a.b.c`.
    #[must_use]
    pub fn at(&self, name: impl Display) -> Self {
        let prefix = self.path(name);
        Self { prefix, ..self.clone() }
    }

    /// The same weights with another compute type.
    #[must_use]
    pub fn with_dtype(&self, dtype: DType) -> Self {
        Self { dtype, ..self.clone() }
    }

    /// The same weights for a model whose `f32` products are to be made in `f32`, even where others are faster.
    #[must_use]
    pub fn exact(&self) -> Self {
        Self {
            exact: true,
            ..self.clone()
        }
    }

    /// The full name of `name` below this prefix.
    pub fn path(&self, name: impl Display) -> String {
        if self.prefix.is_empty() {
            name.to_string()
        } else {
            format!("{}.{name}", self.prefix)
        }
    }

    /// The same weights, whose source leaves `outer` off its names: layers are in the table with it all the same.
    #[must_use]
    pub fn shortened_by(&self, outer: &'static str) -> Self {
        Self {
            outer: Some(outer),
            ..self.clone()
        }
    }

    /// The full name of the layer that is being loaded.
    pub fn layer_name(&self) -> String {
        match self.outer {
            Some(outer) => format!("{outer}.{}", self.prefix),
            None => self.prefix.clone(),
        }
    }

    /// The layers that were loaded from these weights so far; shared by every view of them.
    pub fn layers(&self) -> &Rc<LayerTable> {
        &self.layers
    }

    /// Device of the tensors.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Compute type of the tensors.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Whether the source has `name` below this prefix.
    pub fn contains(&self, name: impl Display) -> bool {
        self.source.describe(&self.path(name)).is_some()
    }

    /// Shape of `name`, if the source has it.
    pub fn shape(&self, name: impl Display) -> Option<Vec<usize>> {
        self.source.describe(&self.path(name)).map(|(shape, _)| shape)
    }

    /// A tensor of exactly this shape, in the compute type.
    ///
    /// # Errors
    /// It is missing, has another shape, or could not be read.
    pub fn tensor(&self, name: impl Display, shape: &[usize]) -> Result<Tensor, WeightsError> {
        self.tensor_as(name, shape, self.dtype)
    }

    /// A tensor of exactly this shape, as `dtype` whatever the compute type is (norms keep `F32`).
    ///
    /// # Errors
    /// As [`Weights::tensor`].
    pub fn tensor_as(&self, name: impl Display, shape: &[usize], dtype: DType) -> Result<Tensor, WeightsError> {
        let _memory = WeightMemory::begin();
        let full = self.expected(name, shape)?;
        let Some((_, stored)) = self
            .source
            .describe(&full)
            .filter(|(_, stored)| float_width(*stored).is_some())
        else {
            return self.source.read(&full)?.to_tensor(&full, dtype, &self.device);
        };
        let count = shape.iter().product();
        let read = |into: NumbersMut<'_>| self.source.read_numbers(&full, None, into);
        let tensor = match dtype {
            DType::F32 => {
                let mut numbers = f32::zeros(count);
                read(NumbersMut::F32(&mut numbers))?;
                Tensor::from_vec(numbers, shape, &self.device)?
            }
            DType::BF16 => {
                let mut numbers = bf16::zeros(count);
                read(NumbersMut::Bf16(&mut numbers))?;
                Tensor::from_vec(numbers, shape, &self.device)?
            }
            DType::F16 => {
                let mut numbers = f16::zeros(count);
                read(NumbersMut::F16(&mut numbers))?;
                Tensor::from_vec(numbers, shape, &self.device)?
            }
            _ => {
                return Err(WeightsError::Type {
                    name: full,
                    found: format!("{stored:?}"),
                });
            }
        };
        Ok(tensor)
    }

    /// A tensor of exactly this shape as its file has it (quantised blocks stay as they are).
    ///
    /// # Errors
    /// As [`Weights::tensor`].
    pub fn raw(&self, name: impl Display, shape: &[usize]) -> Result<RawTensor, WeightsError> {
        let name = self.expected(name, shape)?;
        self.source.read(&name)
    }

    /// A layer's weight, `found` in the file and `shape` in the model (which differ in dimensions of one only), as the layer
    /// computes with it: where it can be, packed while it is read.
    ///
    /// # Errors
    /// As [`Weights::tensor`].
    pub fn slot(
        &self,
        name: impl Display,
        found: &[usize],
        shape: &[usize],
        layout: SlotLayout,
    ) -> Result<WeightSlot, WeightsError> {
        let _memory = WeightMemory::begin();
        let full = self.expected(&name, found)?;
        let layout = match layout {
            SlotLayout::AsStored if self.exact => SlotLayout::Exact,
            layout => layout,
        };
        if let Some(located) = self.source.locate(&full, None)?.filter(Located::is_plain) {
            let row = shape.get(1..).unwrap_or(&[]).iter().product::<usize>();
            let fetch = |rows: Range<usize>, into: ViewMut<'_>| {
                let into = match into {
                    ViewMut::F32(numbers) => NumbersMut::F32(numbers),
                    ViewMut::Bf16(numbers) => NumbersMut::Bf16(numbers),
                };
                located.read_numbers(rows.start * row, into)
            };
            let place = (&self.device, self.dtype);
            if let Some(packed) = layout.packing().rows(place, shape, fetch)? {
                return Ok(WeightSlot::of_packed(packed, shape, layout, place));
            }
        }
        let stored = self.tensor(name, found)?.reshape(shape)?;
        Ok(WeightSlot::of_dense(&stored, layout)?)
    }

    /// A layer's weight of shape `(out, in)` in GGUF's blocks of the given format; `found` is its shape in the file.
    ///
    /// # Errors
    /// As [`Weights::tensor`].
    pub fn blocks(
        &self,
        name: impl Display,
        found: &[usize],
        shape: &[usize],
        format: GgmlDType,
    ) -> Result<WeightSlot, WeightsError> {
        let _memory = WeightMemory::begin();
        let full = self.expected(name, found)?;
        let storage = match (&self.device, self.source.locate(&full, None)?) {
            (Device::Cpu, Some(located)) => Blocks::read(&located, format, shape.iter().product())?,
            _ => QStorage::from_data(Cow::Owned(self.source.read(&full)?.bytes), &self.device, format)?,
        };
        let blocks = QTensor::new(storage, shape.to_vec())?;
        Ok(WeightSlot::quantised(blocks, self.dtype))
    }

    /// How `name` is stored, if the source has it; `shape` is what the model will ask for.
    pub fn stored(&self, name: impl Display, shape: &[usize]) -> Option<StoredType> {
        let name = self.path(name);
        self.source.expect(&name, shape);
        self.source.describe(&name).map(|(_, stored)| stored)
    }

    /// The full name of a tensor that must be there in this shape.
    fn expected(&self, name: impl Display, shape: &[usize]) -> Result<String, WeightsError> {
        let name = self.path(name);
        self.source.expect(&name, shape);
        match self.source.describe(&name) {
            Some((found, _)) if found == shape => Ok(name),
            Some((found, _)) => Err(WeightsError::Shape {
                name,
                found,
                expected: shape.to_vec(),
            }),
            None => Err(WeightsError::Missing { name }),
        }
    }
}
