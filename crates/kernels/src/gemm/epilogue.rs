//! What happens to a sum before it is stored.

use half::bf16;

use super::PANEL;
use super::rows::Place;
use crate::error::{Result, check_dim, check_len, check_positive, volume};
use crate::simd::{Element, Kernel, LANES, Simd, View, ViewMut, dispatch, inlined, load_some, store_some};

/// Applied to each sum; for gated weights, to the gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Activation {
    #[default]
    None,
    /// x sigmoid(x)
    Silu,
    /// x (1 + erf(x / sqrt 2)) / 2
    GeluErf,
    /// The tanh form of GELU.
    GeluTanh,
    /// x sigmoid(1.702 x), as CLIP ViT-L has it.
    QuickGelu,
}

impl Activation {
    #[inline(always)]
    pub(crate) fn apply<S: Simd>(self, s: S, x: S::V) -> S::V {
        match self {
            Activation::None => x,
            Activation::Silu => s.mul(x, s.sigmoid(x)),
            Activation::GeluErf => {
                let half = s.mul(x, s.splat(0.5));
                s.fma(half, s.erf(s.mul(x, s.splat(std::f32::consts::FRAC_1_SQRT_2))), half)
            }
            Activation::GeluTanh => {
                // x (1 + tanh u) / 2 = x sigmoid(2 u)
                let cubic = s.fma(s.mul(x, x), s.splat(0.044_715), s.splat(1.0));
                s.mul(x, s.sigmoid(s.mul(s.mul(x, cubic), s.splat(1.595_769))))
            }
            Activation::QuickGelu => s.mul(x, s.sigmoid(s.mul(x, s.splat(1.702)))),
        }
    }
}

/// `out = residual + gate * activation(scale * sum + bias + row_bias)`; what is `None` is left out.
#[derive(Debug, Clone, Copy)]
pub struct Epilogue<'a, O> {
    pub scale: f32,
    /// One number per output (both halves for gated weights).
    pub bias: Option<&'a [f32]>,
    /// One row of `out` columns per group of `rows_per_group` rows: a time embedding per picture. Not with gated weights.
    pub row_bias: Option<&'a [f32]>,
    /// One row of `out` columns per group: AdaLN's gate.
    pub gate: Option<&'a [f32]>,
    /// Rows that share one row of `row_bias` and `gate`.
    pub rows_per_group: usize,
    pub activation: Activation,
    /// Same shape as the output.
    pub residual: Option<&'a [O]>,
}

impl<O> Default for Epilogue<'_, O> {
    fn default() -> Self {
        Self {
            scale: 1.0,
            bias: None,
            row_bias: None,
            gate: None,
            rows_per_group: usize::MAX,
            activation: Activation::None,
            residual: None,
        }
    }
}

impl<'a, O: Element> Epilogue<'a, O> {
    pub(crate) fn finish(&self) -> Finish<'a> {
        let Self {
            scale,
            bias,
            row_bias,
            gate,
            rows_per_group,
            activation,
            residual,
        } = *self;
        Finish {
            scale,
            bias,
            row_bias,
            gate,
            rows_per_group,
            activation,
            residual: residual.map(O::view),
        }
    }
}

/// An [`Epilogue`] with the type of its residual as a value.
#[derive(Clone, Copy)]
pub(crate) struct Finish<'a> {
    scale: f32,
    bias: Option<&'a [f32]>,
    row_bias: Option<&'a [f32]>,
    gate: Option<&'a [f32]>,
    rows_per_group: usize,
    activation: Activation,
    residual: Option<View<'a>>,
}

impl Finish<'_> {
    /// Checks every part against the output's dimensions.
    pub(crate) fn check(&self, rows: usize, columns: usize, gated: bool) -> Result<()> {
        if let Some(bias) = self.bias {
            check_len("bias", bias.len(), if gated { 2 * columns } else { columns })?;
        }
        check_positive("rows per group", self.rows_per_group)?;
        let groups = rows.div_ceil(self.rows_per_group);
        if let Some(row_bias) = self.row_bias {
            check_dim("row bias with gated weights", usize::from(gated), 0)?;
            check_len("row bias", row_bias.len(), volume(&[groups, columns]))?;
        }
        if let Some(gate) = self.gate {
            check_len("gate", gate.len(), volume(&[groups, columns]))?;
        }
        if let Some(residual) = self.residual {
            check_len("residual", residual.len(), volume(&[rows, columns]))?;
        }
        Ok(())
    }

    #[inline(always)]
    fn residual<S: Simd>(&self, s: S, at: usize, width: usize) -> Option<S::V> {
        self.residual.map(
            #[inline(always)]
            |residual| match residual {
                View::F32(r) => load_some(s, &r[at..at + width]),
                View::Bf16(r) => load_some(s, &r[at..at + width]),
            },
        )
    }
}

enum OutPtr {
    F32(*mut f32),
    Bf16(*mut bf16),
}

/// Where finished blocks go; each task writes its own rows and columns.
pub(super) struct Target<'a> {
    out: OutPtr,
    columns: usize,
    gated: bool,
    life: std::marker::PhantomData<&'a mut [f32]>,
}

// SAFETY: the output is written only through `finish`, whose callers promise disjoint parts.
unsafe impl Sync for Target<'_> {}

impl<'a> Target<'a> {
    pub(super) fn new(out: ViewMut<'a>, columns: usize, gated: bool) -> Self {
        let out = match out {
            ViewMut::F32(out) => OutPtr::F32(out.as_mut_ptr()),
            ViewMut::Bf16(out) => OutPtr::Bf16(out.as_mut_ptr()),
        };
        Self {
            out,
            columns,
            gated,
            life: std::marker::PhantomData,
        }
    }

    /// Finishes rows of one panel, held as f32 at `sums` with 32 columns a row, and stores them at `place`.
    ///
    /// # Safety
    /// `sums` must hold the rows, the output must have `columns` columns and these rows, the epilogue must have been checked
    /// against it, and no other thread may touch these rows and columns of it.
    pub(super) unsafe fn finish(&self, ep: &Finish<'_>, sums: *const f32, place: Place, panel: usize) {
        dispatch(FinishBlock {
            target: self,
            ep,
            sums,
            place,
            panel,
        });
    }

    /// The common case of [`Self::finish`]: all 32 columns, rows of one group, no gate.
    #[inline(always)]
    unsafe fn full<S: Simd>(&self, s: S, ep: &Finish<'_>, sums: *const f32, place: Place, panel: usize) {
        let column = panel * PANEL;
        let mut bias = [s.zero(); 2];
        let group = place.row / ep.rows_per_group * self.columns + column;
        for (part, bias) in bias.iter_mut().enumerate() {
            if let Some(b) = ep.bias {
                *bias = load_some(s, &b[column + part * LANES..]);
            }
            if let Some(b) = ep.row_bias {
                *bias = s.add(*bias, load_some(s, &b[group + part * LANES..]));
            }
        }
        for row in 0..place.count {
            let at = (place.row + row * place.step) * self.columns + column;
            // SAFETY: both vectors lie within the block, the residual and the output, which have the same shape.
            unsafe {
                let mut both = [s.zero(); 2];
                for (part, v) in both.iter_mut().enumerate() {
                    let at = at + part * LANES;
                    *v = s.add(s.load(sums.add(row * PANEL + part * LANES)), bias[part]);
                    *v = ep.activation.apply(s, *v);
                    *v = match ep.residual {
                        Some(View::F32(r)) => s.add(*v, s.load(r.as_ptr().add(at))),
                        Some(View::Bf16(r)) => s.add(*v, s.load_bf16(r.as_ptr().add(at))),
                        None => *v,
                    };
                }
                match self.out {
                    OutPtr::F32(out) => {
                        s.store(out.add(at), both[0]);
                        s.store(out.add(at + LANES), both[1]);
                    }
                    OutPtr::Bf16(out) => s.store_bf16_pair(out.add(at), both[0], both[1]),
                }
            }
        }
    }

    /// Sixteen columns of [`Self::finish`].
    #[inline(always)]
    unsafe fn part<S: Simd>(
        &self,
        s: S,
        ep: &Finish<'_>,
        sums: *const f32,
        place: Place,
        (column, part): (usize, usize),
    ) {
        let width = (self.columns - column).min(LANES);
        let bias_at = inlined(
            #[inline(always)]
            |offset: usize| match ep.bias {
                Some(b) => load_some(s, &b[offset + column..][..width]),
                None => s.zero(),
            },
        );
        let (bias, gate_bias) = (bias_at(0), if self.gated { bias_at(self.columns) } else { s.zero() });
        let scale = s.splat(ep.scale);
        let mut group = place.row / ep.rows_per_group;
        let per_group = inlined(
            #[inline(always)]
            |values: Option<&[f32]>, group: usize, other: f32| match values {
                Some(v) => load_some(s, &v[group * self.columns + column..][..width]),
                None => s.splat(other),
            },
        );
        let grouped = ep.row_bias.is_some() || ep.gate.is_some();
        let (mut row_bias, mut gate) = (per_group(ep.row_bias, group, 0.0), per_group(ep.gate, group, 1.0));
        for row in 0..place.count {
            let out_row = place.row + row * place.step;
            if grouped && out_row / ep.rows_per_group != group {
                group = out_row / ep.rows_per_group;
                row_bias = per_group(ep.row_bias, group, 0.0);
                gate = per_group(ep.gate, group, 1.0);
            }
            // SAFETY: within the block's 32 columns.
            let sum = unsafe { s.load(sums.add(row * PANEL + part)) };
            let mut v = s.fma(sum, scale, bias);
            if self.gated {
                // SAFETY: as above; gates are the upper half of the panel.
                let sum = unsafe { s.load(sums.add(row * PANEL + LANES)) };
                v = s.mul(v, ep.activation.apply(s, s.fma(sum, scale, gate_bias)));
            } else {
                v = ep.activation.apply(s, if grouped { s.add(v, row_bias) } else { v });
            }
            if ep.gate.is_some() {
                v = s.mul(v, gate);
            }
            let at = out_row * self.columns + column;
            if let Some(residual) = ep.residual(s, at, width) {
                v = s.add(v, residual);
            }
            // SAFETY: this part of the row is this thread's alone, and inside the output.
            unsafe {
                match self.out {
                    OutPtr::F32(out) => store_some(s, std::slice::from_raw_parts_mut(out.add(at), width), v),
                    OutPtr::Bf16(out) => store_some(s, std::slice::from_raw_parts_mut(out.add(at), width), v),
                }
            }
        }
    }
}

/// One call of [`Target::finish`], compiled once for each level.
struct FinishBlock<'a> {
    target: &'a Target<'a>,
    ep: &'a Finish<'a>,
    sums: *const f32,
    place: Place,
    panel: usize,
}

impl Kernel for FinishBlock<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self {
            target,
            ep,
            sums,
            place,
            panel,
        } = self;
        if place.count == 0 {
            return;
        }
        let last = place.row + (place.count - 1) * place.step;
        let one_group = place.row / ep.rows_per_group == last / ep.rows_per_group;
        let plain = !target.gated && ep.gate.is_none() && ep.scale == 1.0;
        // SAFETY: made by `finish` only, whose caller promises it.
        unsafe {
            if plain && one_group && (panel + 1) * PANEL <= target.columns {
                return target.full(s, ep, sums, place, panel);
            }
            let step = if target.gated { PANEL / 2 } else { PANEL };
            for part in (0..step).step_by(LANES) {
                let column = panel * step + part;
                if column < target.columns {
                    target.part(s, ep, sums, place, (column, part));
                }
            }
        }
    }
}
