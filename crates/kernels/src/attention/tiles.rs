//! Attention through AMX tiles, with AVX-512 for the softmax. f32 queries, keys, values and weights are split into two bf16 each
//! (see [`crate::gemm`]), of which the products are made as three.

use std::arch::x86_64::*;

use half::bf16;

use super::AttentionShape;
use crate::amx::{Block, Form, Sums, TILE, Tiles};
use crate::buffer::{Scratch, carve, carved_bytes};
use crate::pool::{SharedMut, parallel_chunks, parallel_for};
use crate::simd::{Element, FINE_TERMS};

/// Columns of a packed panel.
const PANEL: usize = 32;
/// Numbers of 32 rows of a panel.
const STEP_LEN: usize = 32 * PANEL;
/// Queries of a product.
const ROWS: usize = 32;
/// Keys of a block; the order of the sums depends on it, so it is fixed.
const KEYS: usize = 256;

/// Sizes that follow from the shape.
#[derive(Clone, Copy)]
struct Sizes {
    /// Head width in steps of 32.
    steps: usize,
    /// Head width up to a multiple of 16.
    columns: usize,
    /// Keys up to a multiple of 32.
    keys: usize,
    /// Queries of a task: more for wide heads, whose keys and values do not stay in the second-level cache.
    queries: usize,
}

impl Sizes {
    fn of(shape: &AttentionShape) -> Self {
        Self {
            steps: shape.width.div_ceil(32),
            columns: shape.width.next_multiple_of(16),
            keys: shape.keys.next_multiple_of(32),
            queries: if shape.width > 256 { 4 * ROWS } else { ROWS },
        }
    }
    fn per_head_k(&self) -> usize {
        self.keys * self.steps * 32
    }
    fn per_head_v(&self) -> usize {
        self.columns.div_ceil(PANEL) * PANEL * self.keys
    }
}

/// bf16 that stand for a number.
const fn parts<T: Element>() -> usize {
    if T::IS_BF16 { 1 } else { 2 }
}

/// A number to the nearest bf16, and what is missing.
#[inline(always)]
fn halves<T: Element>(x: T) -> [bf16; 2] {
    let x = x.to_f32();
    let high = <bf16 as Element>::from_f32(x);
    [high, Element::from_f32(x - high.to_f32())]
}

pub(super) fn attention<T: Element>((q, k, v): (&[T], &[T], &[T]), shape: &AttentionShape, scale: f32, out: &mut [T]) {
    let sizes = Sizes::of(shape);
    let heads = shape.batch * shape.heads;
    let (head_k, head_v) = (parts::<T>() * sizes.per_head_k(), parts::<T>() * sizes.per_head_v());
    let (len_k, len_v) = (heads * head_k, heads * head_v);
    let mut scratch = Scratch::new(carved_bytes::<bf16>(len_k) + carved_bytes::<bf16>(len_v));
    let (packed_k, rest) = carve::<bf16>(scratch.area(), len_k);
    let (packed_v, _) = carve::<bf16>(rest, len_v);
    // One piece per panel of 32 keys, so that a single head is packed by all threads too.
    let panel_k = parts::<T>() * PANEL * sizes.steps * 32;
    let panels = sizes.keys / PANEL;
    parallel_chunks(packed_k, panel_k * panels.div_ceil(4), |piece, to| {
        let first = piece * panels.div_ceil(4);
        for (i, to) in to.chunks_exact_mut(panel_k).enumerate() {
            let index = first + i;
            pack_keys(k, shape, (index / panels, index % panels), to);
        }
    });
    let panel_v = parts::<T>() * PANEL * sizes.keys;
    let panels = sizes.columns.div_ceil(PANEL);
    parallel_chunks(packed_v, panel_v, |index, to| {
        pack_values(v, shape, (index / panels, index % panels), to);
    });
    let (packed_k, packed_v) = (&*packed_k, &*packed_v);
    let out = SharedMut::new(out);
    let blocks = shape.queries.div_ceil(sizes.queries);
    parallel_for(heads * blocks, |task| {
        let (head, block) = (task / blocks, task % blocks);
        let task = Task {
            q,
            k: &packed_k[head * head_k..][..head_k],
            v: &packed_v[head * head_v..][..head_v],
            shape,
            sizes,
            scale: scale * std::f32::consts::LOG2_E,
            out: &out,
            head: (head / shape.heads, head % shape.heads),
            first: block * sizes.queries,
        };
        // SAFETY: this module is used at the AMX level only, which includes AVX512-BF16.
        unsafe { task.run() };
    });
}

/// One panel of 32 keys: pairs of neighbouring numbers of a key, in steps of 32 numbers `[16][32][2]`; split, the low parts of a
/// step follow its high ones.
fn pack_keys<T: Element>(k: &[T], shape: &AttentionShape, (head, panel): (usize, usize), to: &mut [bf16]) {
    let (image, head) = (head / shape.heads, head % shape.heads);
    for (step, to) in to.chunks_exact_mut(parts::<T>() * STEP_LEN).enumerate() {
        let (high, low) = to.split_at_mut(STEP_LEN);
        for lane in 0..PANEL {
            let key = panel * PANEL + lane;
            let first = ((image * shape.keys + key) * shape.heads + head) * shape.width + step * 32;
            let held = if key < shape.keys {
                (shape.width - step * 32).min(32)
            } else {
                0
            };
            let mut numbers = [T::default(); 32];
            numbers[..held].copy_from_slice(&k[first.min(k.len())..][..held]);
            for (pair, [even, odd]) in numbers.as_chunks::<2>().0.iter().enumerate() {
                put_pair((high, low), pair * PANEL + lane, (*even, *odd));
            }
        }
    }
}

/// Stores a pair of numbers at pair `at`.
#[inline(always)]
fn put_pair<T: Element>((high, low): (&mut [bf16], &mut [bf16]), at: usize, (even, odd): (T, T)) {
    let ([even, even_low], [odd, odd_low]) = (halves(even), halves(odd));
    high.as_chunks_mut::<2>().0[at] = [even, odd];
    if !T::IS_BF16 {
        low.as_chunks_mut::<2>().0[at] = [even_low, odd_low];
    }
}

/// One panel of 32 columns of the values: pairs of neighbouring keys, in steps of 32 keys as [`pack_keys`].
fn pack_values<T: Element>(v: &[T], shape: &AttentionShape, (head, panel): (usize, usize), to: &mut [bf16]) {
    let (image, head) = (head / shape.heads, head % shape.heads);
    let first = panel * PANEL;
    let width = PANEL.min(shape.width - first);
    let row = |key: usize| {
        let mut numbers = [T::default(); PANEL];
        if key < shape.keys {
            let start = ((image * shape.keys + key) * shape.heads + head) * shape.width + first;
            numbers[..width].copy_from_slice(&v[start..start + width]);
        }
        numbers
    };
    for (step, to) in to.chunks_exact_mut(parts::<T>() * STEP_LEN).enumerate() {
        let (high, low) = to.split_at_mut(STEP_LEN);
        for pair in 0..16 {
            let (upper, lower) = (row(step * 32 + 2 * pair), row(step * 32 + 2 * pair + 1));
            for (lane, (upper, lower)) in upper.into_iter().zip(lower).enumerate() {
                put_pair((high, low), pair * PANEL + lane, (upper, lower));
            }
        }
    }
}

struct Task<'a, T> {
    q: &'a [T],
    k: &'a [bf16],
    v: &'a [bf16],
    shape: &'a AttentionShape,
    sizes: Sizes,
    /// Times log2 e: weights are powers of two.
    scale: f32,
    out: &'a SharedMut<'a, T>,
    head: (usize, usize),
    first: usize,
}

/// What a task keeps of its queries.
struct State<'a> {
    /// Tiles of Q: `[16 queries][steps][16][32]`; split, the low parts behind all the high ones.
    q: &'a mut [bf16],
    /// `[KEYS / 32][32 queries][32]`.
    scores: &'a mut [f32],
    /// Tiles of weights: `[2][KEYS / 32][16][32]`, split as `q`.
    weights: &'a mut [bf16],
    /// Weighted values, `columns` a row.
    sums: &'a mut [f32],
    largest: &'a mut [f32],
    total: &'a mut [f32],
}

impl<T: Element> Task<'_, T> {
    /// # Safety
    /// The level must be AMX.
    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn run(&self) {
        let Sizes {
            steps,
            columns,
            queries,
            ..
        } = self.sizes;
        let rows = queries.min(self.shape.queries - self.first);
        let row_blocks = rows.div_ceil(ROWS);
        let mut scratch = Scratch::new(
            carved_bytes::<bf16>(parts::<T>() * queries * steps * 32)
                + carved_bytes::<f32>(ROWS * KEYS)
                + carved_bytes::<bf16>(parts::<T>() * ROWS * KEYS)
                + carved_bytes::<f32>(queries * columns)
                + 2 * carved_bytes::<f32>(queries),
        );
        let (q, rest) = carve(scratch.area(), parts::<T>() * queries * steps * 32);
        let (scores, rest) = carve(rest, ROWS * KEYS);
        let (weights, rest) = carve(rest, parts::<T>() * ROWS * KEYS);
        let (sums, rest) = carve(rest, queries * columns);
        let (largest, rest) = carve(rest, queries);
        let (total, _) = carve(rest, queries);
        let mut state = State {
            q,
            scores,
            weights,
            sums,
            largest,
            total,
        };
        self.load_queries(&mut state, rows, row_blocks * ROWS);
        state.sums.fill(0.0);
        state.largest.fill(f32::MIN);
        state.total.fill(0.0);
        // SAFETY: the level is AMX.
        let tiles = unsafe { Tiles::configure() };
        for key in (0..self.shape.keys).step_by(KEYS) {
            let keys = KEYS.min(self.sizes.keys - key);
            for block in 0..row_blocks {
                // SAFETY: as for this function.
                unsafe {
                    self.score(&tiles, &mut state, block, (key, keys));
                    self.weigh(&mut state, block, (key, keys));
                    self.add_values(&tiles, &mut state, block, (key, keys));
                }
            }
        }
        drop(tiles);
        self.store(&state, rows);
    }

    fn at(&self, row: usize) -> usize {
        let shape = self.shape;
        ((self.head.0 * shape.queries + self.first + row) * shape.heads + self.head.1) * shape.width
    }

    fn load_queries(&self, state: &mut State<'_>, rows: usize, padded: usize) {
        let steps = self.sizes.steps;
        let (high, low) = state.q.split_at_mut(self.sizes.queries * steps * 32);
        for row in 0..padded {
            let from = if row < rows {
                &self.q[self.at(row)..][..self.shape.width]
            } else {
                &[]
            };
            for step in 0..steps {
                let at = (row / 16 * steps + step) * TILE + row % 16 * 32;
                let part = from.get(step * 32..from.len().min(step * 32 + 32)).unwrap_or_default();
                let mut numbers = [T::default(); 32];
                numbers[..part.len()].copy_from_slice(part);
                for (i, x) in numbers.into_iter().enumerate() {
                    let [x, rest] = halves(x);
                    high[at + i] = x;
                    if !T::IS_BF16 {
                        low[at + i] = rest;
                    }
                }
            }
        }
    }

    /// Scores of 32 queries with a block of keys.
    #[inline]
    unsafe fn score(&self, tiles: &Tiles, state: &mut State<'_>, block: usize, (key, keys): (usize, usize)) {
        let steps = self.sizes.steps;
        for panel in (0..keys).step_by(PANEL) {
            let upper = state.q[2 * block * steps * TILE..].as_ptr();
            let k = self.k[parts::<T>() * (key + panel) * steps * 32..].as_ptr();
            let product = Block {
                a: upper,
                a_lower: upper.wrapping_add(steps * TILE),
                a_row: 64,
                a_step: TILE * 2,
                b: k,
                b_row: 128,
                b_step: 16 * 128,
                steps,
                next: k,
            };
            let scores = Sums {
                at: state.scores[panel * ROWS..].as_mut_ptr(),
                row: PANEL * 4,
            };
            tiles.zero();
            // SAFETY: two tiles of queries, the panel and 32 rows of scores exist.
            unsafe {
                add::<T>(tiles, Form::Full, product, self.sizes.queries * steps * 64);
                tiles.store(Form::Full, scores);
            }
        }
    }

    /// Scores to weights, relative to the largest score so far; earlier sums are scaled down when that grows.
    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn weigh(&self, state: &mut State<'_>, block: usize, (key, keys): (usize, usize)) {
        let columns = self.sizes.columns;
        let scale = _mm512_set1_ps(self.scale);
        let valid = keys.min(self.shape.keys - key);
        for panel in valid / PANEL..keys / PANEL {
            for line in state.scores[panel * ROWS * PANEL..][..ROWS * PANEL].chunks_exact_mut(PANEL) {
                line[valid - (panel * PANEL).min(valid)..].fill(-1e30);
            }
        }
        let panels = keys / PANEL;
        for row in 0..ROWS {
            let state_row = block * ROWS + row;
            let before = state.largest[state_row];
            // SAFETY: all vectors lie inside the scores, the tiles of weights, or the row of sums.
            unsafe {
                let scores = state.scores[row * PANEL..].as_ptr();
                let at = |panel: usize| {
                    let pair = scores.add(panel * ROWS * PANEL);
                    (_mm512_load_ps(pair), _mm512_load_ps(pair.add(16)))
                };
                let mut tops = [_mm512_set1_ps(before), _mm512_set1_ps(before)];
                for panel in 0..panels {
                    let (left, right) = at(panel);
                    tops = [_mm512_max_ps(tops[0], left), _mm512_max_ps(tops[1], right)];
                }
                let top = _mm512_reduce_max_ps(_mm512_max_ps(tops[0], tops[1]));
                let lift = _mm512_set1_ps(-top * self.scale);
                let mut sums = [_mm512_setzero_ps(); 2];
                let to = state.weights[row / 16 * (KEYS / 32) * TILE + row % 16 * 32..].as_mut_ptr();
                for panel in 0..panels {
                    let (left, right) = at(panel);
                    let left = exp2::<T>(_mm512_fmadd_ps(left, scale, lift));
                    let right = exp2::<T>(_mm512_fmadd_ps(right, scale, lift));
                    sums = [_mm512_add_ps(sums[0], left), _mm512_add_ps(sums[1], right)];
                    let to = to.add(panel * TILE);
                    let both = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(right, left));
                    _mm512_store_si512(to.cast(), both);
                    if !T::IS_BF16 {
                        let wide = |half| _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(half)));
                        let left = _mm512_sub_ps(left, wide(_mm512_castsi512_si256(both)));
                        let right = _mm512_sub_ps(right, wide(_mm512_extracti64x4_epi64::<1>(both)));
                        let both = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(right, left));
                        _mm512_store_si512(to.add(ROWS * KEYS).cast(), both);
                    }
                }
                let sum = _mm512_reduce_add_ps(_mm512_add_ps(sums[0], sums[1]));
                if top > before {
                    state.largest[state_row] = top;
                    let shrink = exp2::<T>(_mm512_set1_ps((before - top) * self.scale));
                    state.total[state_row] *= _mm512_cvtss_f32(shrink);
                    for x in state.sums[state_row * columns..][..columns].as_chunks_mut::<16>().0 {
                        _mm512_storeu_ps(x.as_mut_ptr(), _mm512_mul_ps(_mm512_loadu_ps(x.as_ptr()), shrink));
                    }
                }
                state.total[state_row] += sum;
            }
        }
    }

    #[inline]
    unsafe fn add_values(&self, tiles: &Tiles, state: &mut State<'_>, block: usize, (key, keys): (usize, usize)) {
        let columns = self.sizes.columns;
        for column in (0..columns).step_by(PANEL) {
            let weights = state.weights.as_ptr();
            let product = Block {
                a: weights,
                a_lower: weights.wrapping_add(KEYS / 32 * TILE),
                a_row: 64,
                a_step: TILE * 2,
                b: self.v[parts::<T>() * (column * self.sizes.keys + key * PANEL)..].as_ptr(),
                b_row: 128,
                b_step: 16 * 128,
                steps: keys / 32,
                next: weights,
            };
            let sums = Sums {
                at: state.sums[block * ROWS * columns + column..].as_mut_ptr(),
                row: columns * 4,
            };
            let form = if columns - column >= PANEL {
                Form::Full
            } else {
                Form::Left
            };
            // SAFETY: the weights of 32 queries, the values of these keys and 32 rows of sums exist.
            unsafe {
                tiles.load(form, sums);
                add::<T>(tiles, form, product, ROWS * KEYS * 2);
                tiles.store(form, sums);
            }
        }
    }

    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    fn store(&self, state: &State<'_>, rows: usize) {
        let columns = self.sizes.columns;
        for row in 0..rows {
            let at = self.at(row);
            // SAFETY: these numbers of the output are this task's alone.
            let out = unsafe { self.out.piece(at, at + self.shape.width) };
            let scale = 1.0 / state.total[row];
            for (to, from) in out.iter_mut().zip(&state.sums[row * columns..]) {
                *to = T::from_f32(from * scale);
            }
        }
    }
}

/// Adds a product to the sums; split, the low parts of A lie `a_low` bytes behind the high ones.
///
/// # Safety
/// As [`Tiles::add`] and [`Tiles::add_split`].
#[inline(always)]
unsafe fn add<T: Element>(tiles: &Tiles, form: Form, product: Block, a_low: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        if T::IS_BF16 {
            tiles.add(form, product);
        } else {
            tiles.add_split(form, product, a_low);
        }
    }
}

/// 2^x for x <= 0. For bf16, relative error about 1e-4, far less than their rounding; for f32 about 1e-7, as [`crate::simd::Simd::exp2`].
#[inline]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
fn exp2<T: Element>(x: __m512) -> __m512 {
    if !T::IS_BF16 {
        let n = _mm512_roundscale_ps::<0>(x);
        let f = _mm512_sub_ps(x, n);
        let p = FINE_TERMS[1..].iter().fold(_mm512_set1_ps(FINE_TERMS[0]), |p, &term| {
            _mm512_fmadd_ps(p, f, _mm512_set1_ps(term))
        });
        return _mm512_scalef_ps(p, n);
    }
    // x less its floor; the scaling takes the floor itself.
    let f = _mm512_reduce_ps::<1>(x);
    let p = _mm512_fmadd_ps(f, _mm512_set1_ps(0.07802411), _mm512_set1_ps(0.22606791));
    let p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.69583316));
    let p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.99992527));
    _mm512_scalef_ps(p, x)
}
