//! Weights in the order in which the kernels read them.
//!
//! f32: panel after panel of 32 outputs, each `[k][32]`. bf16: `[k / 2][32][2]`. The inner dimension is padded with zeros to a
//! multiple of 32. One layout of bf16 serves every instruction level: it is what AMX and the dot products want, and splits into
//! two f32 rows by a shift and a mask. Split f32 is in [`super::split`].

use std::ops::Range;
use std::sync::OnceLock;

use half::{bf16, f16};

use super::PANEL;
use super::order::{Order, panel_count, panel_rows};
use super::split::{self, split_panel};
use crate::buffer::AlignedVec;
use crate::error::{KernelError, Result, check_len, volume};
use crate::isa::{Isa, isa};
use crate::pool::parallel_chunks;
use crate::simd::{Element, View, ViewMut};

/// Dense weights as a checkpoint holds them.
#[derive(Debug, Clone, Copy)]
pub enum WeightSource<'a> {
    F32(&'a [f32]),
    F16(&'a [f16]),
    Bf16(&'a [bf16]),
}

impl<'a> WeightSource<'a> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            WeightSource::F32(w) => w.len(),
            WeightSource::F16(w) => w.len(),
            WeightSource::Bf16(w) => w.len(),
        }
    }

    /// True without elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Activations as weights.
    pub(crate) fn of(values: View<'a>) -> Self {
        match values {
            View::F32(v) => WeightSource::F32(v),
            View::Bf16(v) => WeightSource::Bf16(v),
        }
    }
}

/// What packed weights are held as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightType {
    F32,
    /// f32 with 17 of 24 bits kept, as two bf16, where the machine multiplies those far faster (AMX); else [`Self::F32`].
    /// Products are f32 sums of three bf16 products, below 2^-15 of each term off.
    Split,
    Bf16,
}

impl WeightType {
    /// What weights of this type are held as at the instruction level in use.
    fn here(self) -> Self {
        match self {
            WeightType::Split if isa() < Isa::Amx => WeightType::F32,
            kind => kind,
        }
    }
}

/// Order of the output columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Columns {
    /// As given.
    Plain,
    /// The first half are values and the second half gates: they are interleaved so that value times activated gate is
    /// computed in registers (GEGLU, SwiGLU). The output has half as many columns.
    Gated,
}

#[derive(Debug, Clone)]
pub(super) enum Data {
    F32(AlignedVec<f32>),
    /// [`split_panel`] has been over them.
    Split(AlignedVec<f32>),
    Bf16(AlignedVec<bf16>),
}

/// Packed (out, in) weights.
#[derive(Debug, Clone)]
pub struct PackedWeights {
    outputs: usize,
    inputs: usize,
    columns: Columns,
    /// `inputs = taps * channels`, held tap by tap, while the source has the taps innermost: a convolution's (out, in, kh, kw).
    /// One for a plain matrix.
    taps: usize,
    pub(super) data: Data,
    /// What stands for these 3x3 windows over a doubled picture, made when first wanted.
    phases: OnceLock<Box<[PackedWeights; 4]>>,
}

impl PackedWeights {
    /// Packs (outputs, inputs) row-major weights.
    ///
    /// # Errors
    /// If the length does not fit, a dimension is zero, or gated outputs are odd.
    pub fn pack(source: WeightSource<'_>, dims: (usize, usize), to: WeightType, columns: Columns) -> Result<Self> {
        Self::pack_taps(source, dims, to, columns, 1)
    }

    pub(crate) fn pack_taps(
        source: WeightSource<'_>,
        (outputs, inputs): (usize, usize),
        to: WeightType,
        columns: Columns,
        taps: usize,
    ) -> Result<Self> {
        let order = Order::of((outputs, inputs), columns, taps)?;
        check_len("weights", source.len(), volume(&[outputs, inputs]))?;
        let wide = |settle: fn(&mut [f32])| match source {
            WeightSource::F32(w) => order.pack::<1, _, _>(w, |x| x, settle),
            WeightSource::F16(w) => order.pack::<1, _, _>(w, f16::to_f32, settle),
            WeightSource::Bf16(w) => order.pack::<1, _, _>(w, bf16::to_f32, settle),
        };
        let data = match to.here() {
            WeightType::F32 => Data::F32(wide(|_| ())),
            WeightType::Split => Data::Split(wide(split_panel)),
            WeightType::Bf16 => Data::Bf16(match source {
                WeightSource::F32(w) => order.pack::<2, _, _>(w, Element::from_f32, |_| ()),
                WeightSource::F16(w) => order.pack::<2, _, _>(w, |x| Element::from_f32(x.to_f32()), |_| ()),
                WeightSource::Bf16(w) => order.pack::<2, _, _>(w, |x| x, |_| ()),
            }),
        };
        Ok(Self {
            outputs,
            inputs,
            columns,
            taps,
            data,
            phases: OnceLock::new(),
        })
    }

    /// Packs weights that `fetch` brings row by row, on every thread, so that they need not be in memory as a whole before:
    /// `fetch(rows, into)` fills `into` with these rows of the (outputs, inputs) matrix, in the packed type. `inputs` are
    /// `taps * channels` with the taps innermost, as a convolution's (out, in, kh, kw) has them; one tap for a plain matrix.
    ///
    /// # Errors
    /// The first of `fetch`, or as [`PackedWeights::pack`].
    pub fn pack_rows<E: From<KernelError> + Send>(
        (outputs, inputs): (usize, usize),
        to: WeightType,
        columns: Columns,
        taps: usize,
        fetch: impl Fn(Range<usize>, ViewMut<'_>) -> std::result::Result<(), E> + Sync,
    ) -> std::result::Result<Self, E> {
        let order = Order::of((outputs, inputs), columns, taps)?;
        let data = match to.here() {
            WeightType::F32 => Data::F32(order.pack_fetched::<1, f32, E>(&fetch, |_| ())?),
            WeightType::Split => Data::Split(order.pack_fetched::<1, f32, E>(&fetch, split_panel)?),
            WeightType::Bf16 => Data::Bf16(order.pack_fetched::<2, bf16, E>(&fetch, |_| ())?),
        };
        Ok(Self {
            outputs,
            inputs,
            columns,
            taps,
            data,
            phases: OnceLock::new(),
        })
    }

    /// The dense weights back in the order they came in: exactly what was packed, up to the rounding to the packed type.
    pub fn unpack<T: Element>(&self) -> Vec<T> {
        let taps = self.taps;
        let channels = self.inputs / taps;
        let padded = self.inputs.next_multiple_of(32);
        let mut panel_and_lane = vec![(0, 0); self.outputs];
        for panel in 0..self.panels() {
            for (lane, row) in panel_rows(panel, self.outputs, self.columns).into_iter().enumerate() {
                if let Some(row) = row {
                    panel_and_lane[row] = (panel, lane);
                }
            }
        }
        let mut out = vec![T::default(); self.outputs * self.inputs];
        parallel_chunks(&mut out, self.inputs, |row, line| {
            let (panel, lane) = panel_and_lane[row];
            for k in 0..self.inputs {
                let start = panel * padded * PANEL;
                let value = match &self.data {
                    Data::F32(data) => data[start + k * PANEL + lane],
                    Data::Split(data) => split::number(&split::as_bf16(data)[2 * start..], k, lane),
                    Data::Bf16(data) => data[start + (k & !1) * PANEL + 2 * lane + (k & 1)].to_f32(),
                };
                line[(k % channels) * taps + k / channels] = T::from_f32(value);
            }
        });
        out
    }

    /// Rows of the weight matrix.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Columns of the weight matrix.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Taps of a convolution's window; one for a plain matrix.
    pub fn taps(&self) -> usize {
        self.taps
    }

    /// Columns of the product: half the outputs for gated weights.
    pub fn out_columns(&self) -> usize {
        if self.is_gated() {
            self.outputs / 2
        } else {
            self.outputs
        }
    }

    /// What the weights are held as.
    pub fn weight_type(&self) -> WeightType {
        match self.data {
            Data::F32(_) => WeightType::F32,
            Data::Split(_) => WeightType::Split,
            Data::Bf16(_) => WeightType::Bf16,
        }
    }

    /// Whether values and gates are interleaved.
    pub fn is_gated(&self) -> bool {
        self.columns == Columns::Gated
    }

    /// Memory held, in bytes.
    pub fn bytes(&self) -> usize {
        let own = match &self.data {
            Data::F32(data) | Data::Split(data) => data.len() * 4,
            Data::Bf16(data) => data.len() * 2,
        };
        let phases = self
            .phases
            .get()
            .map_or(0, |phases| phases.iter().map(Self::bytes).sum());
        own + phases
    }

    /// 2x2 windows over a picture, of these 3x3 windows over the picture doubled: number `2 y + x` makes the output pixels
    /// whose line is odd if `y` is 1 and whose column is odd if `x` is 1. Taps that fall on one pixel are summed.
    pub(crate) fn phases(&self) -> Result<&[PackedWeights; 4]> {
        if let Some(phases) = self.phases.get() {
            return Ok(phases);
        }
        let [a, b, c, d] = [(0, 0), (0, 1), (1, 0), (1, 1)].map(|phase| self.phase(phase));
        let made = Box::new([a?, b?, c?, d?]);
        Ok(self.phases.get_or_init(|| made))
    }

    fn phase(&self, (down, right): (usize, usize)) -> Result<PackedWeights> {
        let channels = self.inputs / self.taps;
        let full = self.unpack::<f32>();
        let mut summed = vec![0f32; self.outputs * channels * 4];
        // Of three taps, the even pixels see the first alone and the other two as one; the odd ones the other way round.
        let to = |tap: usize, phase: usize| (tap + 1 - phase) / 2;
        parallel_chunks(&mut summed, 4, |index, summed| {
            for (tap, weight) in full[index * 9..][..9].iter().enumerate() {
                summed[to(tap / 3, down) * 2 + to(tap % 3, right)] += weight;
            }
        });
        let dims = (self.outputs, channels * 4);
        Self::pack_taps(WeightSource::F32(&summed), dims, self.weight_type(), Columns::Plain, 4)
    }

    /// Plain bf16 weights made panel by panel: `fill(panel, [inputs / 2 up to a multiple of 16][32][2])`, into the memory of
    /// weights no longer needed.
    pub(crate) fn from_panels(
        (outputs, inputs): (usize, usize),
        memory: Option<PackedWeights>,
        fill: impl Fn(usize, &mut [bf16]) + Sync,
    ) -> Self {
        let panel = inputs.next_multiple_of(32) * PANEL;
        let needed = outputs.div_ceil(PANEL) * panel;
        let mut data = match memory.map(|old| old.data) {
            Some(Data::Bf16(data)) if data.len() >= needed => data,
            _ => AlignedVec::zeroed(needed),
        };
        parallel_chunks(&mut data[..needed], panel, fill);
        Self {
            outputs,
            inputs,
            columns: Columns::Plain,
            taps: 1,
            data: Data::Bf16(data),
            phases: OnceLock::new(),
        }
    }

    pub(super) fn panels(&self) -> usize {
        panel_count(self.outputs, self.columns)
    }
}
