//! Products with weights in GGUF's quantised blocks.
//!
//! Blocks are decoded a run of panels at a time into bf16, in the order the product wants, and multiplied while they are in
//! cache: with many rows the decoding is a small part. With few rows weights are multiplied in f32 as they are decoded.

mod blocks;
mod few;
mod lanes;

use std::borrow::Cow;
use std::cell::RefCell;

use half::bf16;

pub use blocks::QuantType;

use crate::error::{Result, check_dim, check_len, check_positive, volume};
use crate::gemm::rows::Rows;
use crate::gemm::{Epilogue, Finish, PANEL, PackedWeights, multiply_columns};
use crate::pool::parallel_chunks;
use crate::simd::{Element, Kernel, LANES, Simd, View, ViewMut, Words, dispatch, store_pairs};
use lanes::{Sink, decode};

/// Bytes of decoded weights that are multiplied together: the activations are read anew for each such run.
const RUN_BYTES: usize = 16 << 20;

/// Quantised (outputs, inputs) weights, as a GGUF file holds them.
#[derive(Debug, Clone, Copy)]
pub struct QuantWeights<'a> {
    pub blocks: &'a [u8],
    pub kind: QuantType,
    pub outputs: usize,
    pub inputs: usize,
}

impl QuantWeights<'_> {
    fn check(&self) -> Result<()> {
        check_positive("outputs", self.outputs)?;
        check_positive("inputs", self.inputs)?;
        check_dim("rest of a row of blocks", self.inputs % self.kind.block_len(), 0)?;
        check_len("blocks", self.blocks.len(), volume(&[self.outputs, self.row_bytes()]))
    }

    fn row_bytes(&self) -> usize {
        self.inputs / self.kind.block_len() * self.kind.block_bytes()
    }

    /// Sixteen rows from `first` on; rows beyond the last one are blocks of zeros.
    fn lanes(&self, first: usize) -> Cow<'_, [u8]> {
        let bytes = LANES * self.row_bytes();
        let rest = &self.blocks[(first * self.row_bytes()).min(self.blocks.len())..];
        match rest.get(..bytes) {
            Some(held) => Cow::Borrowed(held),
            None => {
                let mut held = rest.to_vec();
                held.resize(bytes, 0);
                Cow::Owned(held)
            }
        }
    }
}

/// The numbers of quantised blocks, exactly as ggml defines them.
///
/// # Errors
/// If the lengths do not fit.
pub fn dequantise(kind: QuantType, blocks: &[u8], out: &mut [f32]) -> Result<()> {
    check_dim("rest of a block", out.len() % kind.block_len(), 0)?;
    check_len(
        "blocks",
        blocks.len(),
        out.len() / kind.block_len() * kind.block_bytes(),
    )?;
    let many = 256;
    parallel_chunks(out, many * kind.block_len(), |task, out| {
        let bytes = out.len() / kind.block_len() * kind.block_bytes();
        dispatch(Decode {
            kind,
            blocks: &blocks[task * many * kind.block_bytes()..][..bytes],
            out,
        });
    });
    Ok(())
}

struct Decode<'a> {
    kind: QuantType,
    blocks: &'a [u8],
    out: &'a mut [f32],
}

impl Kernel for Decode<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        self.kind.decode(self.blocks, self.out);
    }
}

/// `out = epilogue(x w^T)`: `x` is (rows, inputs), `out` is (rows, outputs).
///
/// # Errors
/// If a slice does not fit the dimensions.
pub fn quant_linear<T: Element>(
    x: &[T],
    rows: usize,
    weights: &QuantWeights<'_>,
    epilogue: &Epilogue<'_, T>,
    out: &mut [T],
) -> Result<()> {
    weights.check()?;
    check_len("activations", x.len(), volume(&[rows, weights.inputs]))?;
    check_len("output", out.len(), volume(&[rows, weights.outputs]))?;
    product(T::view(x), rows, weights, &epilogue.finish(), T::view_mut(out))
}

thread_local! {
    /// Memory of decoded weights, kept from call to call.
    static DECODED: RefCell<Option<PackedWeights>> = const { RefCell::new(None) };
}

fn product(
    x: View<'_>,
    rows: usize,
    weights: &QuantWeights<'_>,
    finish: &Finish<'_>,
    mut out: ViewMut<'_>,
) -> Result<()> {
    finish.check(rows, weights.outputs, false)?;
    if rows <= few::FEW_ROWS {
        return few::product(x, rows, weights, finish, out);
    }
    let a = Rows::dense(x, rows, weights.inputs);
    let most = (RUN_BYTES / (size_of::<bf16>() * weights.inputs)).max(PANEL);
    let run = weights
        .outputs
        .div_ceil(weights.outputs.div_ceil(most))
        .next_multiple_of(PANEL);
    for first in (0..weights.outputs).step_by(run) {
        let outputs = run.min(weights.outputs - first);
        let memory = DECODED.take();
        let packed = PackedWeights::from_panels((outputs, weights.inputs), memory, |panel, to| {
            decode_panel(weights, first + panel * PANEL, to);
        });
        multiply_columns(&a, &packed, (first, weights.outputs), finish, out.again())?;
        DECODED.set(Some(packed));
    }
    Ok(())
}

/// Decodes 32 weight rows into pairs of bf16.
fn decode_panel(weights: &QuantWeights<'_>, first: usize, to: &mut [bf16]) {
    for half in 0..PANEL / LANES {
        dispatch(DecodeLanes {
            kind: weights.kind,
            held: &weights.lanes(first + half * LANES),
            half,
            to,
        });
    }
}

/// Decodes sixteen weight rows into one half of a panel.
struct DecodeLanes<'a> {
    kind: QuantType,
    held: &'a [u8],
    half: usize,
    to: &'a mut [bf16],
}

impl Kernel for DecodeLanes<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Words>(self, s: S) {
        let mut panel = Panel {
            lines: self.to.as_chunks_mut().0.as_chunks_mut().0.as_chunks_mut().0,
            half: self.half,
        };
        decode(s, self.kind, self.held, &mut panel);
    }
}

/// Half a line: one pair of each of sixteen rows.
type Pairs = [bf16; 2 * LANES];

struct Panel<'a> {
    /// Two lines of two halves.
    lines: &'a mut [[[Pairs; 2]; 2]],
    half: usize,
}

impl<S: Words> Sink<S> for Panel<'_> {
    #[inline(always)]
    fn put(&mut self, s: S, at: usize, [a, b, c, d]: [S::V; 4]) {
        let [first, second] = &mut self.lines[at / 4];
        store_pairs(s, &mut first[self.half], a, b);
        store_pairs(s, &mut second[self.half], c, d);
    }
}
