//! What a LoRA adds to a weight.
//!
//! Formulas: LoRA <https://arxiv.org/abs/2106.09685>, LoHa and LoKr as LyCORIS has them
//! <https://arxiv.org/abs/2309.14859>, DoRA <https://arxiv.org/abs/2402.09353>.

use std::collections::BTreeMap;

use candle_core::{Device, Result, Tensor};

use super::file::number;
use super::keys::Param;
use super::lengths::Lengths;
use super::rows::Rows;
use crate::weights::{Factors, without_backtrace};

/// One layer's change as its file has it, in `f32` on the CPU.
#[derive(Clone, Debug)]
pub(super) struct Change {
    kind: Kind,
    scale: f64,
    /// What DoRA makes of the changed weight.
    lengths: Option<Lengths>,
}

#[derive(Clone, Debug)]
enum Kind {
    /// `up (out, r)` times `down (r, in)`; of a convolution, flattened.
    Low { down: Tensor, up: Tensor },
    /// Two products of low rank, `up` times `down` each, number by number.
    Hadamard { downs: [Tensor; 2], ups: [Tensor; 2] },
    /// `first (a, b)` in the place of whose every number stands that number times `second (c, d, places)`.
    Kronecker { first: Tensor, second: Tensor },
    /// The whole change `(out, in)`.
    Full(Tensor),
}

impl Kind {
    /// Rows and columns.
    fn dims(&self) -> Result<(usize, usize)> {
        match self {
            Self::Low { down, up } => Ok((up.dim(0)?, down.dim(1)?)),
            Self::Hadamard { downs, ups } => Ok((ups[0].dim(0)?, downs[0].dim(1)?)),
            Self::Kronecker { first, second } => {
                let ((a, b), (c, d, places)) = (first.dims2()?, second.dims3()?);
                Ok((a * c, b * d * places))
            }
            Self::Full(delta) => delta.dims2(),
        }
    }

    /// The change `(out, in)`.
    fn whole(&self) -> Result<Tensor> {
        match self {
            Self::Low { down, up } => up.matmul(down),
            Self::Hadamard { downs, ups } => ups[0].matmul(&downs[0])? * ups[1].matmul(&downs[1])?,
            Self::Kronecker { first, second } => {
                let ((a, b), (c, d, places)) = (first.dims2()?, second.dims3()?);
                let left = first.reshape((a, 1, b, 1, 1))?;
                let right = second.reshape((1, c, 1, d, places))?;
                left.broadcast_mul(&right)?.reshape((a * c, b * d * places))
            }
            Self::Full(delta) => Ok(delta.clone()),
        }
    }

    /// The part that belongs to some rows.
    fn part(&self, rows: &Rows) -> Result<Self> {
        Ok(match self {
            Self::Low { down, up } => Self::Low {
                down: down.clone(),
                up: rows.of(up)?,
            },
            Self::Hadamard { downs, ups } => Self::Hadamard {
                downs: downs.clone(),
                ups: [rows.of(&ups[0])?, rows.of(&ups[1])?],
            },
            Self::Kronecker { first, second } => {
                let each = second.dim(0)?.max(1);
                if rows.halves_swapped || !rows.start.is_multiple_of(each) || !rows.count.is_multiple_of(each) {
                    return Ok(Self::Full(rows.of(&self.whole()?)?));
                }
                Self::Kronecker {
                    first: first.narrow(0, rows.start / each, rows.count / each)?.contiguous()?,
                    second: second.clone(),
                }
            }
            Self::Full(delta) => Self::Full(rows.of(delta)?),
        })
    }
}

type Parts = BTreeMap<Param, Tensor>;

impl Change {
    /// Puts a layer's tensors together. `noted_scale` is used where the file has no alpha.
    pub fn new(parts: &Parts, noted_scale: Option<f64>) -> std::result::Result<Self, String> {
        Self::build(parts, noted_scale)
            .map_err(|error| format!("has tensors that do not fit together: {}", without_backtrace(&error)))?
            .ok_or_else(|| {
                let names: Vec<String> = parts.keys().map(|param| format!("{param:?}")).collect();
                format!("is incomplete: it has only {}", names.join(", "))
            })
    }

    fn build(parts: &Parts, noted_scale: Option<f64>) -> Result<Option<Self>> {
        let Some((kind, rank)) = kind_of(parts)? else {
            return Ok(None);
        };
        if rank == Some(0) {
            candle_core::bail!("its rank is 0");
        }
        let alpha = parts.get(&Param::Alpha).and_then(number);
        let scale = match (alpha, rank) {
            (Some(alpha), Some(rank)) => alpha / rank as f64,
            (None, Some(_)) => noted_scale.unwrap_or(1.0),
            _ => 1.0,
        };
        let scalar = parts.get(&Param::Scalar).and_then(number).unwrap_or(1.0);
        let rows = kind.dims()?.0;
        let lengths = match (parts.get(&Param::Magnitude), parts.get(&Param::DoraScale)) {
            (Some(all), _) => Some(Lengths::new(all, rows, true)?),
            (None, Some(all)) => Some(Lengths::new(all, rows, false)?),
            (None, None) => None,
        };
        Ok(Some(Self {
            kind,
            scale: scale * scalar,
            lengths,
        }))
    }

    /// Rows of the weight that it changes.
    pub fn rows(&self) -> usize {
        self.kind.dims().map_or(0, |(rows, _)| rows)
    }

    /// Numbers that it changes.
    pub fn count(&self) -> usize {
        self.kind.dims().map_or(0, |(rows, columns)| rows * columns)
    }

    /// The same change of a weight that has more columns: those are not changed.
    pub fn widened(self, columns: usize) -> Result<Self> {
        let kind = match self.kind {
            Kind::Low { down, up } if down.dim(1)? < columns => Kind::Low {
                down: down.pad_with_zeros(1, 0, columns - down.dim(1)?)?,
                up,
            },
            kind => kind,
        };
        Ok(Self { kind, ..self })
    }

    /// Multiplier of its factors.
    pub fn scale(&self) -> f64 {
        self.scale
    }

    /// The part of it that belongs to some rows of the weight.
    pub fn part(&self, rows: &Rows) -> Result<Self> {
        if rows.is_all() {
            return Ok(self.clone());
        }
        Ok(Self {
            kind: self.kind.part(rows)?,
            scale: self.scale,
            lengths: self.lengths.as_ref().map(|all| all.part(rows)).transpose()?,
        })
    }

    /// How many columns it sets the lengths of, for which all rows must be seen; `None` if it sets none.
    pub fn columns_set(&self) -> Option<usize> {
        match &self.lengths {
            Some(Lengths::Columns { wanted, .. }) => Some(wanted.elem_count()),
            _ => None,
        }
    }

    /// Notes the squares of the whole columns, of which it changes a part.
    pub fn note_squares(&mut self, whole: Tensor) {
        if let Some(Lengths::Columns { squares, .. }) = &mut self.lengths {
            *squares = Some(whole);
        }
    }

    /// The factors of the change where it can be computed beside a weight for less memory than a copy of the weight takes;
    /// without [`Change::scale`].
    pub fn factors(&self) -> Result<Option<Factors>> {
        if self.lengths.is_some() {
            return Ok(None);
        }
        let factors = match &self.kind {
            Kind::Low { down, up } => Factors::LowRank {
                down: down.clone(),
                up: up.clone(),
            },
            Kind::Kronecker { first, second } if second.dim(2)? == 1 => Factors::Kronecker {
                first: first.clone(),
                second: second.squeeze(2)?,
            },
            Kind::Hadamard { downs, ups } => {
                // A product of ranks r and s, number by number, has rank r * s.
                let rank = ups[0].dim(1)? * ups[1].dim(1)?;
                let (rows, columns) = self.kind.dims()?;
                if rank * (rows + columns) >= rows * columns {
                    return Ok(None);
                }
                let up = ups[0].unsqueeze(2)?.broadcast_mul(&ups[1].unsqueeze(1)?)?;
                let down = downs[0].unsqueeze(1)?.broadcast_mul(&downs[1].unsqueeze(0)?)?;
                Factors::LowRank {
                    down: down.reshape((rank, columns))?,
                    up: up.reshape((rows, rank))?,
                }
            }
            Kind::Kronecker { .. } | Kind::Full(_) => return Ok(None),
        };
        Ok(Some(factors))
    }

    /// What is added to a weight `(out, in)` (convolutions flattened) at strength 1.
    pub fn delta(&self, weight: &Tensor) -> Result<Tensor> {
        match &self.lengths {
            Some(lengths) => lengths.given_to(&self.before_lengths(weight)?)? - weight,
            None => self.plain(weight.device()),
        }
    }

    /// The changed weight whose lengths are then set.
    pub fn before_lengths(&self, weight: &Tensor) -> Result<Tensor> {
        weight + self.plain(weight.device())?
    }

    fn plain(&self, device: &Device) -> Result<Tensor> {
        self.kind.whole()?.to_device(device)? * self.scale
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
        let cores = (get(Param::HadaT1), get(Param::HadaT2));
        return Ok(Some((hadamard([w1a, w2a], [w1b, w2b], cores)?, Some(rank))));
    }
    if let Some(found) = kronecker(parts)? {
        return Ok(Some(found));
    }
    get(Param::Diff)
        .map(|diff| flat(diff).map(|delta| (Kind::Full(delta), None)))
        .transpose()
}

fn hadamard(ups: [&Tensor; 2], downs: [&Tensor; 2], cores: (Option<&Tensor>, Option<&Tensor>)) -> Result<Kind> {
    if let (None, None) = cores {
        let [ups, downs] = [ups, downs].map(|pair| pair.map(flat));
        let [up, other_up] = ups;
        let [down, other_down] = downs;
        let (downs, ups) = ([down?, other_down?], [up?, other_up?]);
        let dims = |i: usize| -> Result<_> { Ok((ups[i].dim(0)?, ups[i].dim(1)?, downs[i].dim(0)?, downs[i].dim(1)?)) };
        let ((rows, rank, rank_down, columns), other) = (dims(0)?, dims(1)?);
        if (rows, rank, columns) != (other.0, rank_down, other.3) || other.1 != other.2 {
            candle_core::bail!("its four matrices have other sizes than each other");
        }
        return Ok(Kind::Hadamard { downs, ups });
    }
    let half = |core: Option<&Tensor>, a: &Tensor, b: &Tensor| match core {
        Some(core) => tucker(core, a, b),
        None => flat(a)?.matmul(&flat(b)?),
    };
    let first = half(cores.0, ups[0], downs[0])?;
    Ok(Kind::Full((first * half(cores.1, ups[1], downs[1])?)?))
}

fn kronecker(parts: &Parts) -> Result<Option<(Kind, Option<usize>)>> {
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
    let second = match (get(Param::LokrW2), get(Param::LokrW2A), get(Param::LokrW2B)) {
        (Some(whole), ..) => flat_kernel(whole)?,
        (None, Some(a), Some(b)) => {
            rank = Some(b.dim(0)?);
            match get(Param::LokrT2) {
                Some(core) => {
                    let (rows, inputs) = (a.dim(1)?, b.dim(1)?);
                    tucker(core, a, b)?.reshape((rows, inputs, kernel(core)))?
                }
                None => flat_kernel(&a.matmul(&flat(b)?)?)?,
            }
        }
        _ => return Ok(None),
    };
    let kind = Kind::Kronecker { first, second };
    kind.dims()?;
    Ok(Some((kind, rank)))
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
