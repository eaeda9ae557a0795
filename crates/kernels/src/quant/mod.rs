//! Products with weights in GGUF's quantised blocks.
//!
//! Blocks are decoded a run of panels at a time into bf16, in the order the product wants, and multiplied while they are in
//! cache: with many rows the decoding is a small part. With few rows each weight row is decoded to f32 and multiplied at once.

mod blocks;

use std::cell::RefCell;

use half::bf16;

pub use blocks::QuantType;

use crate::error::{Result, check_dim, check_len, check_positive, volume};
use crate::gemm::rows::Rows;
use crate::gemm::{Epilogue, Finish, PANEL, PackedWeights, multiply_columns};
use crate::pool::{SharedMut, parallel_chunks, parallel_for};
use crate::simd::{Element, Kernel, LANES, Simd, View, ViewMut, dispatch, load_some};

/// Rows up to which weight rows are used as they are decoded.
const FEW_ROWS: usize = 4;
/// Bytes of decoded weights that are multiplied together.
const RUN_BYTES: usize = 8 << 20;

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

    fn row(&self, row: usize) -> &[u8] {
        &self.blocks[row * self.row_bytes()..][..self.row_bytes()]
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
    if rows <= FEW_ROWS {
        return few(x, rows, weights, finish, out);
    }
    let a = Rows::dense(x, rows, weights.inputs);
    let run = (RUN_BYTES / (2 * weights.inputs)).next_multiple_of(PANEL).max(PANEL);
    for first in (0..weights.outputs).step_by(run) {
        let outputs = run.min(weights.outputs - first);
        let memory = DECODED.take();
        let packed = PackedWeights::from_panels((outputs, weights.inputs), memory, |panel, to| {
            dispatch(DecodePanel {
                weights,
                first: first + panel * PANEL,
                end: first + outputs,
                to,
            });
        });
        multiply_columns(&a, &packed, (first, weights.outputs), finish, out.again())?;
        DECODED.set(Some(packed));
    }
    Ok(())
}

/// Decodes 32 weight rows into pairs of bf16.
struct DecodePanel<'a> {
    weights: &'a QuantWeights<'a>,
    first: usize,
    end: usize,
    to: &'a mut [bf16],
}

impl Kernel for DecodePanel<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        /// Numbers decoded at a time: a multiple of every block.
        const PIECE: usize = 256;
        let (block, bytes) = (self.weights.kind.block_len(), self.weights.kind.block_bytes());
        let inputs = self.weights.inputs;
        let mut numbers = [0f32; PIECE];
        let mut rounded = [bf16::ZERO; PIECE];
        for at in (0..inputs.next_multiple_of(32)).step_by(PIECE) {
            let held = PIECE.min(inputs.saturating_sub(at));
            let padded = PIECE.min(inputs.next_multiple_of(32) - at);
            let to = self.to[at * PANEL..][..padded * PANEL].as_chunks_mut::<2>().0;
            for lane in 0..PANEL {
                let row = self.first + lane;
                if row < self.end {
                    let from = &self.weights.row(row)[at / block * bytes..][..held / block * bytes];
                    dispatch(Decode {
                        kind: self.weights.kind,
                        blocks: from,
                        out: &mut numbers[..held],
                    });
                    for (to, from) in rounded[..held].chunks_mut(LANES).zip(numbers.chunks(LANES)) {
                        crate::simd::store_some(s, to, load_some(s, &from[..to.len()]));
                    }
                    rounded[held..].fill(bf16::ZERO);
                } else {
                    rounded.fill(bf16::ZERO);
                }
                for (pair, values) in rounded[..padded].as_chunks::<2>().0.iter().enumerate() {
                    to[pair * PANEL + lane] = *values;
                }
            }
        }
    }
}

/// Each weight row is decoded once and multiplied with the few rows of `x`.
fn few(x: View<'_>, rows: usize, weights: &QuantWeights<'_>, finish: &Finish<'_>, out: ViewMut<'_>) -> Result<()> {
    let inputs = weights.inputs;
    let mut wide = vec![0f32; rows * inputs];
    match x {
        View::F32(x) => wide.copy_from_slice(x),
        View::Bf16(x) => crate::elementwise::convert(x, &mut wide)?,
    }
    let panels = weights.outputs.div_ceil(PANEL);
    let mut sums = vec![0f32; panels * rows * PANEL];
    let shared = SharedMut::new(&mut sums);
    parallel_for(panels, |panel| {
        // SAFETY: the panels' sums do not overlap.
        let sums = unsafe { shared.piece(panel * rows * PANEL, (panel + 1) * rows * PANEL) };
        dispatch(Dots {
            x: &wide,
            weights,
            panel,
            sums,
        });
    });
    crate::gemm::finish_sums(&sums, (rows, weights.outputs), finish, out);
    Ok(())
}

struct Dots<'a> {
    x: &'a [f32],
    weights: &'a QuantWeights<'a>,
    panel: usize,
    /// `[rows][32]`
    sums: &'a mut [f32],
}

impl Kernel for Dots<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut numbers = vec![0f32; self.weights.inputs];
        for lane in 0..PANEL.min(self.weights.outputs - self.panel * PANEL) {
            let blocks = self.weights.row(self.panel * PANEL + lane);
            dispatch(Decode {
                kind: self.weights.kind,
                blocks,
                out: &mut numbers,
            });
            for (x, sums) in self
                .x
                .chunks_exact(numbers.len())
                .zip(self.sums.chunks_exact_mut(PANEL))
            {
                let mut lanes = [s.zero(); 4];
                for (x, w) in x.chunks(4 * LANES).zip(numbers.chunks(4 * LANES)) {
                    for (i, (x, w)) in x.chunks(LANES).zip(w.chunks(LANES)).enumerate().take(4) {
                        lanes[i] = s.fma(load_some(s, x), load_some(s, w), lanes[i]);
                    }
                }
                sums[lane] = s.sum(s.add(s.add(lanes[0], lanes[1]), s.add(lanes[2], lanes[3])));
            }
        }
    }
}
