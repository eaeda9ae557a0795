//! Attention in f32 lanes, for every instruction level.

use super::{AttentionMask, AttentionShape};
use crate::buffer::{Scratch, carve, carved_bytes};
use crate::gemm::micro::strided_tile;
use crate::pool::{SharedMut, parallel_chunks, parallel_for};
use crate::simd::{Element, Kernel, LANES, Simd, dispatch, load_lanes, load_some, store_lanes, store_some};

/// Queries of a task.
const QUERIES: usize = 24;
/// Keys of a block; the order of the sums depends on it, so it is fixed.
const KEYS: usize = 256;
/// Keys of a packed panel.
const PANEL: usize = 32;

pub(super) fn attention<T: Element>(
    (q, k, v): (&[T], &[T], &[T]),
    shape: &AttentionShape,
    scale: f32,
    mask: AttentionMask<'_>,
    out: &mut [T],
) {
    let padded = shape.width.next_multiple_of(LANES);
    let per_head_k = shape.keys.next_multiple_of(PANEL) * shape.width;
    let per_head_v = shape.keys * padded;
    let heads = shape.batch * shape.heads;
    let mut scratch = Scratch::new(carved_bytes::<f32>(heads * per_head_k) + carved_bytes::<f32>(heads * per_head_v));
    let (packed_k, rest) = carve::<f32>(scratch.area(), heads * per_head_k);
    let (packed_v, _) = carve::<f32>(rest, heads * per_head_v);
    parallel_chunks(packed_k, per_head_k, |head, to| pack_keys(k, shape, head, to));
    parallel_chunks(packed_v, per_head_v, |head, to| {
        dispatch(PackValues {
            v,
            shape,
            head,
            padded,
            to,
        });
    });
    let (packed_k, packed_v) = (&*packed_k, &*packed_v);
    let out = SharedMut::new(out);
    let blocks = shape.queries.div_ceil(QUERIES);
    parallel_for(heads * blocks, |task| {
        let (head, block) = (task / blocks, task % blocks);
        dispatch(Task {
            q,
            k: &packed_k[head * per_head_k..][..per_head_k],
            v: &packed_v[head * per_head_v..][..per_head_v],
            shape,
            scale,
            mask,
            out: &out,
            head: (head / shape.heads, head % shape.heads),
            first: block * QUERIES,
            padded,
        });
    });
}

/// Keys in panels: `[keys / 32][width][32]`, zeros beyond the last key.
fn pack_keys<T: Element>(k: &[T], shape: &AttentionShape, head: usize, to: &mut [f32]) {
    let (image, head) = (head / shape.heads, head % shape.heads);
    for (panel, to) in to.chunks_exact_mut(PANEL * shape.width).enumerate() {
        for lane in 0..PANEL {
            let key = panel * PANEL + lane;
            if key < shape.keys {
                let from = &k[((image * shape.keys + key) * shape.heads + head) * shape.width..][..shape.width];
                for (i, x) in from.iter().enumerate() {
                    to[i * PANEL + lane] = x.to_f32();
                }
            } else {
                for i in 0..shape.width {
                    to[i * PANEL + lane] = 0.0;
                }
            }
        }
    }
}

/// Values row by row, each filled up to whole vectors.
struct PackValues<'a, T> {
    v: &'a [T],
    shape: &'a AttentionShape,
    head: usize,
    padded: usize,
    to: &'a mut [f32],
}

impl<T: Element> Kernel for PackValues<'_, T> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self {
            v,
            shape,
            head,
            padded,
            to,
        } = self;
        let (image, head) = (head / shape.heads, head % shape.heads);
        for (key, to) in to.chunks_exact_mut(padded).enumerate() {
            let from = &v[((image * shape.keys + key) * shape.heads + head) * shape.width..][..shape.width];
            for (to, from) in to.chunks_mut(LANES).zip(from.chunks(LANES)) {
                store_some(s, to, load_some(s, from));
            }
        }
    }
}

struct Task<'a, T> {
    q: &'a [T],
    k: &'a [f32],
    v: &'a [f32],
    shape: &'a AttentionShape,
    scale: f32,
    mask: AttentionMask<'a>,
    out: &'a SharedMut<'a, T>,
    head: (usize, usize),
    first: usize,
    padded: usize,
}

impl<T: Element> Kernel for Task<'_, T> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let width = self.shape.width;
        let rows = QUERIES.min(self.shape.queries - self.first);
        let mut scratch = Scratch::new(
            carved_bytes::<f32>(QUERIES * width)
                + carved_bytes::<f32>(QUERIES * KEYS)
                + carved_bytes::<f32>(QUERIES * self.padded),
        );
        let (q, rest) = carve::<f32>(scratch.area(), QUERIES * width);
        let (scores, rest) = carve::<f32>(rest, QUERIES * KEYS);
        let (sums, _) = carve::<f32>(rest, QUERIES * self.padded);
        sums.fill(0.0);
        for row in 0..rows {
            let from = &self.q[self.at(row)..][..width];
            for (to, from) in q[row * width..(row + 1) * width]
                .chunks_mut(LANES)
                .zip(from.chunks(LANES))
            {
                store_some(s, to, s.mul(load_some(s, from), s.splat(self.scale)));
            }
        }
        let mut largest = [f32::MIN; QUERIES];
        let mut total = [0f32; QUERIES];
        let last = match self.mask {
            AttentionMask::Causal => (self.first + rows).min(self.shape.keys),
            _ => self.shape.keys,
        };
        for key in (0..last).step_by(KEYS) {
            let keys = KEYS.min(self.shape.keys - key);
            let room = keys.next_multiple_of(PANEL);
            for panel in (0..room).step_by(PANEL) {
                let b = self.k[(key + panel) * width..].as_ptr();
                // SAFETY: all rows of Q, the panel's `width` rows and the scores' rows exist.
                unsafe {
                    product(
                        (q.as_ptr(), width),
                        (b, PANEL, 2),
                        (scores[panel..].as_mut_ptr(), KEYS),
                        (rows, width),
                        false,
                    );
                };
            }
            for row in 0..rows {
                let line = &mut scores[row * KEYS..][..room];
                self.hide(line, row, key, keys);
                let before = largest[row];
                let mut top = s.splat(before);
                for x in line.as_chunks::<LANES>().0 {
                    top = s.max(top, load_lanes(s, x));
                }
                largest[row] = s.max_lane(top);
                let lift = s.splat(-largest[row]);
                let mut sum = s.zero();
                for x in line.as_chunks_mut::<LANES>().0 {
                    let weight = s.exp(s.add(load_lanes(s, x), lift));
                    sum = s.add(sum, weight);
                    store_lanes(s, x, weight);
                }
                if largest[row] > before {
                    let shrink = s.exp(s.splat(before - largest[row]));
                    total[row] *= s.max_lane(shrink);
                    for x in sums[row * self.padded..][..self.padded].as_chunks_mut::<LANES>().0 {
                        let scaled = s.mul(load_lanes(s, x), shrink);
                        store_lanes(s, x, scaled);
                    }
                }
                total[row] += s.sum(sum);
            }
            self.add_values(scores, sums, (rows, key, keys));
        }
        for row in 0..rows {
            let at = self.at(row);
            // SAFETY: these numbers of the output are this task's alone.
            let out = unsafe { self.out.piece(at, at + width) };
            let scale = s.splat(1.0 / total[row]);
            for (to, from) in out.chunks_mut(LANES).zip(sums[row * self.padded..].chunks(LANES)) {
                store_some(s, to, s.mul(load_some(s, from), scale));
            }
        }
    }
}

impl<T: Element> Task<'_, T> {
    #[inline(always)]
    fn at(&self, row: usize) -> usize {
        let shape = self.shape;
        ((self.head.0 * shape.queries + self.first + row) * shape.heads + self.head.1) * shape.width
    }

    /// Applies the mask, and hides what lies beyond the last key.
    #[inline(always)]
    fn hide(&self, line: &mut [f32], row: usize, key: usize, keys: usize) {
        const HIDDEN: f32 = -1e30;
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
                        *x = (*x + m).max(HIDDEN);
                    }
                }
            }
        }
    }

    fn add_values(&self, scores: &[f32], sums: &mut [f32], (rows, key, keys): (usize, usize, usize)) {
        let mut column = 0;
        while column < self.padded {
            let vectors = ((self.padded - column) / LANES).min(2);
            let b = self.v[key * self.padded + column..].as_ptr();
            let c = sums[column..].as_mut_ptr();
            // SAFETY: the weights of all rows, `keys` rows of values and the sums' rows exist.
            unsafe {
                product(
                    (scores.as_ptr(), KEYS),
                    (b, self.padded, vectors),
                    (c, self.padded),
                    (rows, keys),
                    true,
                );
            };
            column += vectors * LANES;
        }
    }
}

/// `c (+)= a b` for one or two vectors of columns.
///
/// # Safety
/// A must hold `rows` rows of `depth`, B `depth` rows of the vectors, C `rows` rows of them.
unsafe fn product(
    a: (*const f32, usize),
    b: (*const f32, usize, usize),
    c: (*mut f32, usize),
    size: (usize, usize),
    accumulate: bool,
) {
    dispatch(Product {
        a,
        b,
        c,
        size,
        accumulate,
    });
}

/// One call of [`product`], compiled once for each level.
struct Product {
    a: (*const f32, usize),
    b: (*const f32, usize, usize),
    c: (*mut f32, usize),
    size: (usize, usize),
    accumulate: bool,
}

impl Kernel for Product {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // SAFETY: made by `product` only, whose caller promises it.
        unsafe { tiles(s, self.a, self.b, self.c, self.size, self.accumulate) };
    }
}

#[inline(always)]
unsafe fn tiles<S: Simd>(
    s: S,
    (a, lda): (*const f32, usize),
    (b, ldb, vectors): (*const f32, usize, usize),
    (c, ldc): (*mut f32, usize),
    (rows, depth): (usize, usize),
    accumulate: bool,
) {
    let mut row = 0;
    while row < rows {
        let left = rows - row;
        // SAFETY: passed on, block by block.
        unsafe {
            let (a, c) = ((a.add(row * lda), lda), (c.add(row * ldc), ldc));
            let right = (b.add(LANES), ldb);
            let c_right = (c.0.add(LANES), ldc);
            match (S::REGISTERS, vectors) {
                (32, 2) if left >= 12 => strided_tile::<S, false, 12, 2>(s, a, (b, ldb), c, depth, accumulate),
                (32, 1) if left >= 12 => strided_tile::<S, false, 12, 1>(s, a, (b, ldb), c, depth, accumulate),
                (_, 2) if left >= 4 => {
                    strided_tile::<S, false, 4, 1>(s, a, (b, ldb), c, depth, accumulate);
                    strided_tile::<S, false, 4, 1>(s, a, right, c_right, depth, accumulate);
                }
                (_, 1) if left >= 4 => strided_tile::<S, false, 4, 1>(s, a, (b, ldb), c, depth, accumulate),
                (_, 2) => {
                    strided_tile::<S, false, 1, 1>(s, a, (b, ldb), c, depth, accumulate);
                    strided_tile::<S, false, 1, 1>(s, a, right, c_right, depth, accumulate);
                }
                _ => strided_tile::<S, false, 1, 1>(s, a, (b, ldb), c, depth, accumulate),
            }
        }
        row += if S::REGISTERS == 32 && left >= 12 {
            12
        } else if left >= 4 {
            4
        } else {
            1
        };
    }
}
