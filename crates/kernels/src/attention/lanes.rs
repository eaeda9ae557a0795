//! Attention in vector lanes, for every instruction level: f32, or pairs of bf16 where there are dot products of them.

use std::marker::PhantomData;

use super::{AttentionMask, AttentionShape};
use crate::buffer::{Plain, Scratch, carve, carved_bytes};
use crate::gemm::micro::{Operands, dispatched};
use crate::pool::{SharedMut, parallel_chunks, parallel_for};
use crate::simd::{Element, Kernel, LANES, Simd, Words, dispatch, load_lanes, load_some, store_lanes, store_some};

/// Most queries of a task.
const QUERIES: usize = 96;
/// Keys of a block; the order of the sums depends on it, so it is fixed.
const KEYS: usize = 256;
/// Keys of a packed panel.
const PANEL: usize = 32;
/// A score that hides its key.
const HIDDEN: f32 = -1e30;

/// Sizes that follow from the shape.
#[derive(Clone, Copy)]
struct Sizes {
    /// Numbers of a head up to whole steps of the products.
    depth: usize,
    /// Numbers of a head up to whole vectors.
    columns: usize,
    /// Keys up to whole steps.
    keys: usize,
    /// Queries of a task: more for wide heads, whose keys and values do not stay in the second-level cache.
    queries: usize,
}

/// Queries, keys, values and weights are held as numbers `N`, which `O` multiplies.
pub(super) fn attention<T: Element, N: Element + Plain, O: Operands<A = N, B = N>>(
    (q, k, v): (&[T], &[T], &[T]),
    shape: &AttentionShape,
    scale: f32,
    mask: AttentionMask<'_>,
    out: &mut [T],
) {
    let sizes = Sizes {
        depth: shape.width.next_multiple_of(O::STEP),
        columns: shape.width.next_multiple_of(LANES),
        keys: shape.keys.next_multiple_of(O::STEP),
        queries: if shape.width > 256 { QUERIES } else { 24 },
    };
    let per_head_k = shape.keys.next_multiple_of(PANEL) * sizes.depth;
    let per_head_v = sizes.keys * sizes.columns;
    let heads = shape.batch * shape.heads;
    let mut scratch = Scratch::new(carved_bytes::<N>(heads * per_head_k) + carved_bytes::<N>(heads * per_head_v));
    let (packed_k, rest) = carve::<N>(scratch.area(), heads * per_head_k);
    let (packed_v, _) = carve::<N>(rest, heads * per_head_v);
    parallel_chunks(packed_k, per_head_k, |head, to| {
        dispatch(PackKeys {
            k,
            shape,
            head: (head / shape.heads, head % shape.heads),
            to,
            operands: PhantomData::<O>,
        });
    });
    parallel_chunks(packed_v, per_head_v, |head, to| {
        dispatch(PackValues {
            v,
            shape,
            sizes,
            head: (head / shape.heads, head % shape.heads),
            to,
            operands: PhantomData::<O>,
        });
    });
    let (packed_k, packed_v) = (&*packed_k, &*packed_v);
    let out = SharedMut::new(out);
    let blocks = shape.queries.div_ceil(sizes.queries);
    parallel_for(heads * blocks, |task| {
        let (head, block) = (task / blocks, task % blocks);
        dispatch(Task {
            q,
            k: &packed_k[head * per_head_k..][..per_head_k],
            v: &packed_v[head * per_head_v..][..per_head_v],
            shape,
            sizes,
            scale,
            mask,
            out: &out,
            head: (head / shape.heads, head % shape.heads),
            first: block * sizes.queries,
            operands: PhantomData::<O>,
        });
    });
}

/// Rounds a row's numbers to those that are multiplied.
#[inline(always)]
fn convert<S: Words, T: Element, N: Element>(s: S, from: &[T], to: &mut [N]) {
    for (to, from) in to.chunks_mut(LANES).zip(from.chunks(LANES)) {
        store_some(s, to, load_some(s, from));
    }
}

/// The numbers of one key or value of a head, given with its image.
fn row<'a, T>(x: &'a [T], shape: &AttentionShape, (image, head): (usize, usize), key: usize) -> &'a [T] {
    &x[((image * shape.keys + key) * shape.heads + head) * shape.width..][..shape.width]
}

/// Packs the keys of a head in panels: `[keys / 32][width / step][32][step]`, zeros beyond the last key and the last number.
struct PackKeys<'a, T, N, O> {
    k: &'a [T],
    shape: &'a AttentionShape,
    head: (usize, usize),
    to: &'a mut [N],
    operands: PhantomData<O>,
}

impl<T: Element, N: Element, O: Operands> Kernel for PackKeys<'_, T, N, O> {
    type Out = ();
    #[inline(always)]
    fn run<S: Words>(self, s: S) {
        let shape = self.shape;
        let depth = shape.width.next_multiple_of(O::STEP);
        for (panel, to) in self.to.chunks_exact_mut(PANEL * depth).enumerate() {
            let first = panel * PANEL;
            let held = PANEL.min(shape.keys - first);
            if held < PANEL {
                to.fill(N::default());
            }
            for lane in 0..held {
                let key = row(self.k, shape, self.head, first + lane);
                for (from, to) in key.chunks(LANES).zip(to.chunks_mut(PANEL * LANES)) {
                    let mut numbers = [N::default(); LANES];
                    convert(s, from, &mut numbers[..from.len()]);
                    for (step, to) in numbers.chunks_exact(O::STEP).zip(to.chunks_exact_mut(PANEL * O::STEP)) {
                        to[lane * O::STEP..][..O::STEP].copy_from_slice(step);
                    }
                }
            }
        }
    }
}

/// Packs the values of a head in panels of up to 32 columns, each `[keys / step][columns][step]`, zeros beyond the last number and
/// the last key.
struct PackValues<'a, T, N, O> {
    v: &'a [T],
    shape: &'a AttentionShape,
    sizes: Sizes,
    head: (usize, usize),
    to: &'a mut [N],
    operands: PhantomData<O>,
}

impl<T: Element, N: Element, O: Operands> Kernel for PackValues<'_, T, N, O> {
    type Out = ();
    #[inline(always)]
    fn run<S: Words>(self, s: S) {
        let (shape, keys) = (self.shape, self.sizes.keys);
        for (panel, to) in self.to.chunks_mut(PANEL * keys).enumerate() {
            let columns = to.len() / keys;
            for (step, to) in to.chunks_exact_mut(columns * O::STEP).enumerate() {
                for (block, to) in to.chunks_exact_mut(LANES * O::STEP).enumerate() {
                    let first = panel * PANEL + block * LANES;
                    let width = LANES.min(shape.width - first);
                    let mut numbers = [[N::default(); LANES]; 2];
                    let held = O::STEP.min(shape.keys - step * O::STEP);
                    for (part, numbers) in numbers.iter_mut().enumerate().take(held) {
                        let value = row(self.v, shape, self.head, step * O::STEP + part);
                        convert(s, &value[first..][..width], &mut numbers[..width]);
                    }
                    for (i, to) in to.chunks_exact_mut(O::STEP).enumerate() {
                        for (to, numbers) in to.iter_mut().zip(&numbers) {
                            *to = numbers[i];
                        }
                    }
                }
            }
        }
    }
}

struct Task<'a, T, N, O> {
    q: &'a [T],
    k: &'a [N],
    v: &'a [N],
    shape: &'a AttentionShape,
    sizes: Sizes,
    scale: f32,
    mask: AttentionMask<'a>,
    out: &'a SharedMut<'a, T>,
    head: (usize, usize),
    first: usize,
    operands: PhantomData<O>,
}

/// What a task keeps of its queries.
struct State<'a, N> {
    q: &'a mut [N],
    /// Scores of a block of keys, KEYS a row; in their place, the weights that they become.
    scores: &'a mut [f32],
    /// Weighted values.
    sums: &'a mut [f32],
    largest: [f32; QUERIES],
    total: [f32; QUERIES],
}

impl<T: Element, N: Element + Plain, O: Operands<A = N, B = N>> Kernel for Task<'_, T, N, O> {
    type Out = ();

    #[inline(always)]
    fn run<S: Words>(self, s: S) {
        let Sizes { depth, columns, .. } = self.sizes;
        let rows = self.sizes.queries.min(self.shape.queries - self.first);
        let mut scratch = Scratch::new(
            carved_bytes::<N>(rows * depth) + carved_bytes::<f32>(rows * KEYS) + carved_bytes::<f32>(rows * columns),
        );
        let (q, rest) = carve::<N>(scratch.area(), rows * depth);
        let (scores, rest) = carve::<f32>(rest, rows * KEYS);
        let (sums, _) = carve::<f32>(rest, rows * columns);
        sums.fill(0.0);
        for (row, to) in q.chunks_exact_mut(depth).enumerate() {
            let from = &self.q[self.at(row)..][..self.shape.width];
            to[self.shape.width..].fill(N::default());
            convert(s, from, to);
        }
        let mut state = State {
            q,
            scores,
            sums,
            largest: [f32::MIN; QUERIES],
            total: [0.0; QUERIES],
        };
        let last = match self.mask {
            AttentionMask::Causal => (self.first + rows).min(self.shape.keys),
            _ => self.shape.keys,
        };
        for key in (0..last).step_by(KEYS) {
            let keys = KEYS.min(self.shape.keys - key);
            self.score(&mut state, (rows, key, keys));
            self.weigh(s, &mut state, (rows, key, keys));
            self.add_values(&mut state, (rows, key, keys));
        }
        for row in 0..rows {
            let at = self.at(row);
            // SAFETY: these numbers of the output are this task's alone.
            let out = unsafe { self.out.piece(at, at + self.shape.width) };
            let scale = s.splat(1.0 / state.total[row]);
            for (to, from) in out.chunks_mut(LANES).zip(state.sums[row * columns..].chunks(LANES)) {
                store_some(s, to, s.mul(load_some(s, from), scale));
            }
        }
    }
}

impl<T: Element, N: Element + Plain, O: Operands<A = N, B = N>> Task<'_, T, N, O> {
    #[inline(always)]
    fn at(&self, row: usize) -> usize {
        let shape = self.shape;
        ((self.head.0 * shape.queries + self.first + row) * shape.heads + self.head.1) * shape.width
    }

    /// Scores of all rows with a block of keys, not yet scaled.
    fn score(&self, state: &mut State<'_, N>, (rows, key, keys): (usize, usize, usize)) {
        let depth = self.sizes.depth;
        for panel in (0..keys).step_by(PANEL) {
            let a = (state.q.as_ptr(), depth);
            let b = (self.k[(key + panel) * depth..].as_ptr(), PANEL, 2);
            let c = (state.scores[panel..].as_mut_ptr(), KEYS);
            // SAFETY: all rows of Q, the panel's `depth` rows and the scores' rows exist.
            unsafe { dispatched::<O>(a, b, c, (rows, depth), false) };
        }
    }

    /// Scores to weights, relative to the largest score so far; earlier sums are scaled down when that grows.
    #[inline(always)]
    fn weigh<S: Simd>(&self, s: S, state: &mut State<'_, N>, (rows, key, keys): (usize, usize, usize)) {
        let columns = self.sizes.columns;
        // Weights are powers of two.
        let scale = self.scale * std::f32::consts::LOG2_E;
        let power = |x: S::V| {
            if N::IS_BF16 {
                s.exp2::<false>(x)
            } else {
                s.exp2::<true>(x)
            }
        };
        for row in 0..rows {
            let line = &mut state.scores[row * KEYS..][..keys.next_multiple_of(PANEL)];
            self.hide(line, row, key, keys);
            let before = state.largest[row];
            let mut top = s.splat(before);
            for x in line.as_chunks::<LANES>().0 {
                top = s.max(top, load_lanes(s, x));
            }
            let top = s.max_lane(top);
            let lift = s.splat(-top * scale);
            let mut sum = s.zero();
            let weights = line.as_mut_ptr().cast::<N>();
            for i in 0..line.len() / LANES {
                let x = load_lanes(s, &line.as_chunks::<LANES>().0[i]);
                let weight = power(s.fma(x, s.splat(scale), lift));
                sum = s.add(sum, weight);
                // SAFETY: weights are no larger than scores, so these lie among the scores that were read.
                unsafe { N::store_at(s, weights.add(i * LANES), weight) };
            }
            if top > before {
                state.largest[row] = top;
                let shrink = power(s.splat((before - top) * scale));
                state.total[row] *= s.max_lane(shrink);
                for x in state.sums[row * columns..][..columns].as_chunks_mut::<LANES>().0 {
                    let scaled = s.mul(load_lanes(s, x), shrink);
                    store_lanes(s, x, scaled);
                }
            }
            state.total[row] += s.sum(sum);
        }
    }

    /// Applies the mask, and hides what lies beyond the last key.
    #[inline(always)]
    fn hide(&self, line: &mut [f32], row: usize, key: usize, keys: usize) {
        line[keys..].fill(HIDDEN);
        let query = self.first + row;
        match self.mask {
            AttentionMask::None => {}
            AttentionMask::Causal => {
                let seen = (query + 1).saturating_sub(key).min(keys);
                line[seen..].fill(HIDDEN);
            }
            AttentionMask::Add { .. } => {
                if let Some(mask) = self.mask.row(self.shape, (self.head.0, self.head.1, query)) {
                    for (x, m) in line.iter_mut().zip(&mask[key..key + keys]) {
                        *x = (*x + m / self.scale).max(HIDDEN);
                    }
                }
            }
        }
    }

    /// Adds the weighted values of a block of keys.
    fn add_values(&self, state: &mut State<'_, N>, (rows, key, keys): (usize, usize, usize)) {
        let Sizes { columns, keys: all, .. } = self.sizes;
        let weights = (
            state.scores.as_ptr().cast::<N>(),
            KEYS * size_of::<f32>() / size_of::<N>(),
        );
        for column in (0..columns).step_by(PANEL) {
            let held = PANEL.min(columns - column);
            let b = self.v[column * all + key * held..].as_ptr();
            let c = state.sums[column..].as_mut_ptr();
            let depth = keys.next_multiple_of(O::STEP);
            // SAFETY: the weights of all rows, `depth` rows of the panel and the sums' rows exist.
            unsafe { dispatched::<O>(weights, (b, held, held / LANES), (c, columns), (rows, depth), true) };
        }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::gemm::micro::{Dots, Floats};
    use crate::isa::{Isa, detected, set_isa};

    fn numbers<T: Element>(len: usize, seed: usize) -> Vec<T> {
        let number = |i: usize| ((i + seed) * 7919 % 1009) as f32 / 504.5 - 1.0;
        (0..len).map(|i| T::from_f32(number(i))).collect()
    }

    /// The arithmetic of dot products is written for every level, so that machines without the instruction test it too.
    #[test]
    fn pairs_of_bf16_come_near_to_f32() {
        for (queries, keys, width) in [(1, 1, 8), (50, 77, 40), (25, 513, 33), (70, 300, 64), (30, 90, 160)] {
            let shape = AttentionShape {
                batch: 2,
                queries,
                keys,
                heads: 2,
                width,
            };
            let (of_query, of_key) = (4 * queries * width, 4 * keys * width);
            let (q, k, v) = (numbers(of_query, 1), numbers(of_key, 2), numbers::<bf16>(of_key, 3));
            let added: Vec<f32> = numbers(queries * keys, 4);
            let added = AttentionMask::Add {
                values: &added,
                per_batch: false,
                per_head: false,
            };
            for level in Isa::ALL.into_iter().filter(|&level| level <= detected()) {
                set_isa(level);
                for mask in [AttentionMask::None, added] {
                    let (mut exact, mut near) = (vec![bf16::ZERO; of_query], vec![bf16::ZERO; of_query]);
                    attention::<bf16, f32, Floats>((&q, &k, &v), &shape, 0.4, mask, &mut exact);
                    attention::<bf16, bf16, Dots>((&q, &k, &v), &shape, 0.4, mask, &mut near);
                    for (i, (a, b)) in exact.iter().zip(&near).enumerate() {
                        let off = (a.to_f32() - b.to_f32()).abs();
                        assert!(off < 8e-3, "{level:?} {shape:?} {i}: {b} beside {a}");
                    }
                }
            }
            set_isa(Isa::Amx);
        }
    }
}
