//! What a LoRA adds to a weight.
//!
//! Formulas: LoRA <https://arxiv.org/abs/2106.09685>, LoHa and LoKr as LyCORIS has them
//! <https://arxiv.org/abs/2309.14859>, DoRA <https://arxiv.org/abs/2402.09353>.

use std::collections::BTreeMap;

use candle_core::{Result, Tensor};

use super::file::number;
use super::keys::Param;

/// One layer's change as its file has it, in `f32` on the CPU.
#[derive(Debug)]
pub(super) struct Change {
    kind: Kind,
    scale: f64,
    /// Lengths of the changed weight's rows `(out)` or columns.
    magnitude: Option<Tensor>,
}

#[derive(Debug)]
enum Kind {
    /// `up (out, r)` times `down (r, in)`; of a convolution, flattened.
    Low { down: Tensor, up: Tensor },
    /// The whole change `(out, in)`.
    Full(Tensor),
}

/// A change of low rank: `scale * up * down`.
pub(super) struct LowRank<'a> {
    /// `(rank, in)`.
    pub down: &'a Tensor,
    /// `(out, rank)`.
    pub up: &'a Tensor,
    /// Multiplier.
    pub scale: f64,
}

type Parts = BTreeMap<Param, Tensor>;

impl Change {
    /// Puts a layer's tensors together. `noted_scale` is used where the file has no alpha.
    pub fn new(parts: &Parts, noted_scale: Option<f64>) -> std::result::Result<Self, String> {
        Self::build(parts, noted_scale)
            .map_err(|error| format!("has tensors that do not fit together: {error}"))?
            .ok_or_else(|| {
                let names: Vec<String> = parts.keys().map(|param| format!("{param:?}")).collect();
                format!("is incomplete: it has only {}", names.join(", "))
            })
    }

    fn build(parts: &Parts, noted_scale: Option<f64>) -> Result<Option<Self>> {
        let Some((kind, rank)) = kind_of(parts)? else {
            return Ok(None);
        };
        let alpha = parts.get(&Param::Alpha).and_then(number);
        let scale = match (alpha, rank) {
            (Some(alpha), Some(rank)) if rank > 0 => alpha / rank as f64,
            (None, Some(_)) => noted_scale.unwrap_or(1.0),
            _ => 1.0,
        };
        let scalar = parts.get(&Param::Scalar).and_then(number).unwrap_or(1.0);
        Ok(Some(Self {
            kind,
            scale: scale * scalar,
            magnitude: parts.get(&Param::Magnitude).cloned(),
        }))
    }

    /// Rows of the weight that it changes.
    pub fn rows(&self) -> usize {
        match &self.kind {
            Kind::Low { up, .. } => up.dim(0),
            Kind::Full(delta) => delta.dim(0),
        }
        .unwrap_or(0)
    }

    /// Numbers that it changes.
    pub fn count(&self) -> usize {
        match &self.kind {
            Kind::Low { up, down } => up.dim(0).unwrap_or(0) * down.dim(1).unwrap_or(0),
            Kind::Full(delta) => delta.elem_count(),
        }
    }

    /// Whether it must see the weight to know its change.
    pub fn is_decomposed(&self) -> bool {
        self.magnitude.is_some()
    }

    /// The change as two thin matrices, if it is one that can be computed beside a weight.
    pub fn low_rank(&self) -> Option<LowRank<'_>> {
        match &self.kind {
            Kind::Low { down, up } if self.magnitude.is_none() => Some(LowRank {
                down,
                up,
                scale: self.scale,
            }),
            _ => None,
        }
    }

    /// What is added to a weight `(out, in)` (convolutions flattened) at strength 1.
    pub fn delta(&self, weight: &Tensor) -> Result<Tensor> {
        let plain = match &self.kind {
            Kind::Low { down, up } => up.matmul(down)?,
            Kind::Full(delta) => delta.clone(),
        };
        let plain = (plain.to_device(weight.device())? * self.scale)?;
        let Some(magnitude) = &self.magnitude else {
            return Ok(plain);
        };
        let changed = (weight + plain)?;
        let (rows, columns) = changed.dims2()?;
        let magnitude = magnitude.to_device(weight.device())?.flatten_all()?;
        let lengths = |dimension: usize| changed.sqr()?.sum_keepdim(dimension)?.sqrt();
        let factor = if magnitude.elem_count() == rows {
            magnitude.reshape((rows, 1))?.broadcast_div(&lengths(1)?)?
        } else {
            // LyCORIS may keep one length for each input channel, over all outputs and kernel places.
            let inputs = magnitude.elem_count();
            if inputs == 0 || columns % inputs != 0 {
                candle_core::bail!("{inputs} magnitudes do not fit a weight of {rows} by {columns}");
            }
            let places = columns / inputs;
            let squares = changed
                .sqr()?
                .reshape((rows, inputs, places))?
                .sum_keepdim(2)?
                .sum_keepdim(0)?;
            let factor = magnitude.reshape((1, inputs, 1))?.div(&squares.sqrt()?)?;
            factor.broadcast_as((1, inputs, places))?.reshape((1, columns))?
        };
        changed.broadcast_mul(&factor)? - weight
    }
}

/// The change and its rank, for those that have one.
fn kind_of(parts: &Parts) -> Result<Option<(Kind, Option<usize>)>> {
    let get = |param| parts.get(&param);
    if let (Some(down), Some(up)) = (get(Param::Down), get(Param::Up)) {
        let rank = down.dim(0)?;
        let up = flat(up)?;
        let down = match get(Param::Mid) {
            Some(mid) => through_core(mid, down)?,
            None => flat(down)?,
        };
        if up.dim(1)? != down.dim(0)? {
            candle_core::bail!("the ranks {} and {} differ", up.dim(1)?, down.dim(0)?);
        }
        return Ok(Some((Kind::Low { down, up }, Some(rank))));
    }
    if let (Some(w1a), Some(w1b), Some(w2a), Some(w2b)) = (
        get(Param::HadaW1A),
        get(Param::HadaW1B),
        get(Param::HadaW2A),
        get(Param::HadaW2B),
    ) {
        let rank = w1b.dim(0)?;
        let half = |core: Option<&Tensor>, a: &Tensor, b: &Tensor| match core {
            Some(core) => tucker(core, a, b),
            None => flat(a)?.matmul(&flat(b)?),
        };
        let delta = (half(get(Param::HadaT1), w1a, w1b)? * half(get(Param::HadaT2), w2a, w2b)?)?;
        return Ok(Some((Kind::Full(delta), Some(rank))));
    }
    if let Some((delta, rank)) = kronecker(parts)? {
        return Ok(Some((Kind::Full(delta), rank)));
    }
    get(Param::Diff)
        .map(|diff| flat(diff).map(|delta| (Kind::Full(delta), None)))
        .transpose()
}

fn kronecker(parts: &Parts) -> Result<Option<(Tensor, Option<usize>)>> {
    let get = |param| parts.get(&param);
    let mut rank = None;
    let first = match (get(Param::LokrW1), get(Param::LokrW1A), get(Param::LokrW1B)) {
        (Some(whole), ..) => whole.clone(),
        (None, Some(a), Some(b)) => {
            rank = Some(b.dim(0)?);
            a.matmul(b)?
        }
        _ => return Ok(None),
    };
    let (second, places) = match (get(Param::LokrW2), get(Param::LokrW2A), get(Param::LokrW2B)) {
        (Some(whole), ..) => (flat_kernel(whole)?, kernel(whole)),
        (None, Some(a), Some(b)) => {
            rank = Some(b.dim(0)?);
            match get(Param::LokrT2) {
                Some(core) => {
                    let (rows, inputs) = (a.dim(1)?, b.dim(1)?);
                    (tucker(core, a, b)?.reshape((rows, inputs, kernel(core)))?, kernel(core))
                }
                None => (flat_kernel(&a.matmul(&flat(b)?)?)?, 1),
            }
        }
        _ => return Ok(None),
    };
    let ((a, b), (c, d, _)) = (first.dims2()?, second.dims3()?);
    let left = first.reshape((a, 1, b, 1, 1))?;
    let right = second.reshape((1, c, 1, d, places))?;
    let delta = left.broadcast_mul(&right)?.reshape((a * c, b * d * places))?;
    Ok(Some((delta, rank)))
}

/// `(n, ...)` as a matrix.
fn flat(tensor: &Tensor) -> Result<Tensor> {
    if tensor.rank() == 2 {
        Ok(tensor.clone())
    } else {
        tensor.flatten_from(1)?.contiguous()
    }
}

/// Places of a kernel: `kh * kw`, or 1.
fn kernel(tensor: &Tensor) -> usize {
    tensor.dims().iter().skip(2).product()
}

/// `(out, in, kh, kw)` as `(out, in, kh * kw)`.
fn flat_kernel(tensor: &Tensor) -> Result<Tensor> {
    let (rows, inputs) = (tensor.dim(0)?, tensor.dim(1)?);
    tensor.reshape((rows, inputs, kernel(tensor)))
}

/// LoCon's core `(r, r, kh, kw)` over `down (r, in, 1, 1)`: `(r, in * kh * kw)`.
fn through_core(mid: &Tensor, down: &Tensor) -> Result<Tensor> {
    let (rank, inner, places) = (mid.dim(0)?, mid.dim(1)?, kernel(mid));
    let down = flat(down)?;
    let inputs = down.dim(1)?;
    // (r, places, inner) times (inner, in) gives (r, places, in); inputs then come before places.
    let mid = mid
        .reshape((rank, inner, places))?
        .transpose(1, 2)?
        .contiguous()?
        .reshape((rank * places, inner))?;
    let all = mid.matmul(&down)?.reshape((rank, places, inputs))?;
    all.transpose(1, 2)?.contiguous()?.reshape((rank, inputs * places))
}

/// LyCORIS' `einsum("i j k l, j r, i p -> p r k l", core, b, a)` as `(p, r * k * l)`.
fn tucker(core: &Tensor, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let (i, j, places) = (core.dim(0)?, core.dim(1)?, kernel(core));
    let (p, r) = (a.dim(1)?, b.dim(1)?);
    let core = core
        .reshape((i, j, places))?
        .transpose(1, 2)?
        .contiguous()?
        .reshape((i * places, j))?;
    let inner = core.matmul(b)?.reshape((i, places * r))?;
    let all = a.t()?.contiguous()?.matmul(&inner)?.reshape((p, places, r))?;
    all.transpose(1, 2)?.contiguous()?.reshape((p, r * places))
}
