//! Attention over odd numbers of queries and keys, head widths of real models, and masks.

use half::bf16;
use sd_kernels::*;

use crate::support::*;

fn reference(
    (q, k, v): (&[f64], &[f64], &[f64]),
    s: &AttentionShape,
    scale: f64,
    mask: impl Fn(usize, usize, usize, usize) -> f64,
) -> Vec<f64> {
    let mut out = vec![0.0; q.len()];
    for image in 0..s.batch {
        for head in 0..s.heads {
            for query in 0..s.queries {
                let at = |n: usize, count: usize| ((image * count + n) * s.heads + head) * s.width;
                let (from, scores): (_, Vec<f64>) = (
                    at(query, s.queries),
                    (0..s.keys)
                        .map(|key| {
                            let dot: f64 = (0..s.width)
                                .map(|i| q[at(query, s.queries) + i] * k[at(key, s.keys) + i])
                                .sum();
                            dot * scale + mask(image, head, query, key)
                        })
                        .collect(),
                );
                let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let total: f64 = scores.iter().map(|x| (x - top).exp()).sum();
                for (key, score) in scores.iter().enumerate() {
                    let weight = (score - top).exp() / total;
                    for i in 0..s.width {
                        out[from + i] += weight * v[at(key, s.keys) + i];
                    }
                }
            }
        }
    }
    out
}

const SHAPES: [(usize, usize, usize, usize, usize); 13] = [
    (1, 1, 1, 1, 8),
    (2, 3, 5, 2, 8),
    (1, 2, 300, 1, 4),
    (2, 5, 7, 3, 40),
    (1, 33, 77, 2, 80),
    (1, 70, 31, 2, 160),
    (1, 64, 300, 1, 64),
    (1, 50, 600, 1, 40),
    (2, 49, 49, 2, 33),
    (1, 20, 257, 2, 128),
    (1, 40, 90, 1, 512),
    (1, 150, 70, 1, 260),
    (1, 3, 513, 1, 16),
];

fn check<T: Element>(bound: f64, level: Isa) {
    for (index, &(batch, queries, keys, heads, width)) in SHAPES.iter().enumerate() {
        if !in_reach(batch * queries * keys * heads * width) {
            continue;
        }
        let shape = AttentionShape {
            batch,
            queries,
            keys,
            heads,
            width,
        };
        let mut numbers = Numbers::new(30 + index as u64);
        let q: Vec<T> = numbers
            .vec::<f32>(batch * queries * heads * width)
            .iter()
            .map(|x| T::from_f32(3.0 * x))
            .collect();
        let k: Vec<T> = numbers.vec(batch * keys * heads * width);
        let v: Vec<T> = numbers.vec(batch * keys * heads * width);
        let scale = 1.0 / (width as f32).sqrt();
        let want = reference(
            (&wide(&q), &wide(&k), &wide(&v)),
            &shape,
            f64::from(scale),
            |_, _, _, _| 0.0,
        );
        let mut out = vec![T::default(); q.len()];
        attention((&q, &k, &v), &shape, scale, AttentionMask::None, &mut out).unwrap();
        assert_close(&format!("{level:?} {shape:?}"), &out, &want, &[1.0], bound);
    }
}

#[test]
fn attention_matches_the_reference() {
    at_every_level(|level| {
        check::<f32>(if level == Isa::Amx { 3e-5 } else { 2e-6 }, level);
        check::<bf16>(if level >= Isa::Avx512Bf16 { 6e-3 } else { 1e-5 }, level);
    });
}

#[test]
fn masks_match_the_reference() {
    at_every_level(|level| {
        let tokens = if cfg!(miri) { 5 } else { 45 };
        let shape = AttentionShape {
            batch: 2,
            queries: tokens,
            keys: tokens,
            heads: 2,
            width: 24,
        };
        let len = shape.batch * shape.queries * shape.heads * shape.width;
        let mut numbers = Numbers::new(77);
        let (q, k, v): (Vec<f32>, Vec<f32>, Vec<f32>) = (numbers.vec(len), numbers.vec(len), numbers.vec(len));
        let wide = (wide(&q), wide(&k), wide(&v));
        let mut out = vec![0f32; len];

        attention((&q, &k, &v), &shape, 0.3, AttentionMask::Causal, &mut out).unwrap();
        let hidden = |_, _, query, key| if key > query { f64::NEG_INFINITY } else { 0.0 };
        let want = reference((&wide.0, &wide.1, &wide.2), &shape, f64::from(0.3f32), hidden);
        assert_close(&format!("{level:?} causal"), &out, &want, &[1.0], 2e-6);

        for (per_batch, per_head) in [(false, false), (true, false), (false, true), (true, true)] {
            let (images, heads) = (if per_batch { 2 } else { 1 }, if per_head { 2 } else { 1 });
            let mut values: Vec<f32> = numbers.vec(images * heads * tokens * tokens);
            values.iter_mut().step_by(5).for_each(|x| *x = f32::NEG_INFINITY);
            let mask = AttentionMask::Add {
                values: &values,
                per_batch,
                per_head,
            };
            attention((&q, &k, &v), &shape, 0.3, mask, &mut out).unwrap();
            let added = |image: usize, head: usize, query: usize, key: usize| {
                let at = (image % images * heads + head % heads) * tokens + query;
                f64::from(values[at * tokens + key])
            };
            let want = reference((&wide.0, &wide.1, &wide.2), &shape, f64::from(0.3f32), added);
            assert_close(&format!("{level:?} added"), &out, &want, &[1.0], 2e-6);
        }
    });
}

#[test]
fn threads_do_not_change_attention() {
    let (queries, keys, heads, width) = if cfg!(miri) { (3, 35, 2, 4) } else { (100, 300, 2, 40) };
    let shape = AttentionShape {
        batch: 1,
        queries,
        keys,
        heads,
        width,
    };
    let mut numbers = Numbers::new(78);
    let mut tokens = |count| numbers.vec::<f32>(count * heads * width);
    let (q, k, v) = (tokens(queries), tokens(keys), tokens(keys));
    same_for_any_threads(|| {
        let mut out = vec![0f32; q.len()];
        attention((&q, &k, &v), &shape, 0.2, AttentionMask::None, &mut out).unwrap();
        out
    });
}

#[test]
fn wrong_lengths_are_errors() {
    let shape = AttentionShape {
        batch: 1,
        queries: 2,
        keys: 3,
        heads: 1,
        width: 4,
    };
    let mut out = vec![0f32; 8];
    let (q, kv) = (vec![0f32; 8], vec![0f32; 12]);
    assert!(attention((&q, &q, &kv), &shape, 1.0, AttentionMask::None, &mut out).is_err());
    assert!(attention((&q, &kv, &kv), &shape, 1.0, AttentionMask::Causal, &mut out).is_err());
    let short = AttentionMask::Add {
        values: &[0.0; 5],
        per_batch: false,
        per_head: false,
    };
    assert!(attention((&q, &kv, &kv), &shape, 1.0, short, &mut out).is_err());
    for scale in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        assert!(attention((&q, &kv, &kv), &shape, scale, AttentionMask::None, &mut out).is_err());
    }
    let none = AttentionShape { heads: 0, ..shape };
    assert!(attention((&q, &kv, &kv), &none, 1.0, AttentionMask::None, &mut out).is_err());
}
