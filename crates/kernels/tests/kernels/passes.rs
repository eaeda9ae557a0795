//! Norms, rotary positions and the other passes over whole tensors.

use half::bf16;
use sd_kernels::*;

use crate::support::*;

fn group_reference(
    x: &[f64],
    (b, p, c): (usize, usize, usize),
    groups: usize,
    scale: &[f64],
    shift: &[f64],
    eps: f64,
) -> Vec<f64> {
    let mut out = vec![0.0; x.len()];
    let per = c / groups;
    for image in 0..b {
        for group in 0..groups {
            let places: Vec<usize> = (0..p)
                .flat_map(|pixel| (group * per..(group + 1) * per).map(move |ch| (image * p + pixel) * c + ch))
                .collect();
            let mean = places.iter().map(|&i| x[i]).sum::<f64>() / places.len() as f64;
            let variance = places.iter().map(|&i| (x[i] - mean).powi(2)).sum::<f64>() / places.len() as f64;
            for i in places {
                out[i] = (x[i] - mean) / (variance + eps).sqrt() * scale[i % c] + shift[i % c];
            }
        }
    }
    out
}

fn check_norms<T: Element>() {
    for (index, dims) in [(1, 1, 8), (2, 77, 40), (1, 300, 96), (2, 130, 20), (1, 10, 6)]
        .into_iter()
        .enumerate()
    {
        let (b, p, c) = dims;
        if !in_reach(b * p * c) {
            continue;
        }
        let groups = [4, 8, 32, 5, 3][index];
        let mut numbers = Numbers::new(index as u64 + 40);
        // An offset far larger than the spread: one-pass sums of squares would lose it.
        let x: Vec<T> = numbers
            .vec::<f32>(b * p * c)
            .iter()
            .map(|x| T::from_f32(x + 20.0))
            .collect();
        let (scale, shift): (Vec<f32>, Vec<f32>) = (numbers.vec(c), numbers.vec(c));
        let mut out = vec![T::default(); x.len()];
        let want = group_reference(&wide(&x), dims, groups, &wide(&scale), &wide(&shift), 1e-5);
        group_norm(&x, dims, groups, (&scale, &shift), 1e-5, Activation::None, &mut out).unwrap();
        assert_close("group norm", &out, &want, &[1.0], 2e-5);
        let want: Vec<f64> = want.iter().map(|x| x / (1.0 + (-x).exp())).collect();
        group_norm(&x, dims, groups, (&scale, &shift), 1e-5, Activation::Silu, &mut out).unwrap();
        assert_close("group norm and silu", &out, &want, &[1.0], 2e-5);
    }
    for (index, (rows, width)) in [(1, 3), (5, 16), (70, 40), (9, 333), (300, 320)]
        .into_iter()
        .enumerate()
    {
        if !in_reach(rows * width) {
            continue;
        }
        let mut numbers = Numbers::new(index as u64 + 50);
        let x: Vec<T> = numbers
            .vec::<f32>(rows * width)
            .iter()
            .map(|x| T::from_f32(2.0 * x + 3.0))
            .collect();
        let per = rows.div_ceil(2);
        let (scale, shift): (Vec<f32>, Vec<f32>) = (numbers.vec(2 * width), numbers.vec(2 * width));
        let mut out = vec![T::default(); x.len()];
        let wide_x = wide(&x);
        let plain: Vec<f64> = wide_x
            .chunks(width)
            .flat_map(|row| {
                let mean = row.iter().sum::<f64>() / width as f64;
                let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / width as f64;
                row.iter()
                    .map(move |x| (x - mean) / (variance + 1e-6).sqrt())
                    .collect::<Vec<_>>()
            })
            .collect();
        layer_norm(&x, width, NormAffine::None, 1e-6, &mut out).unwrap();
        assert_close("layer norm", &out, &plain, &[1.0], 1e-5);
        let shared = NormAffine::Shared {
            scale: &scale[..width],
            shift: &shift[..width],
        };
        layer_norm(&x, width, shared, 1e-6, &mut out).unwrap();
        let want: Vec<f64> = (0..x.len())
            .map(|i| plain[i] * f64::from(scale[i % width]) + f64::from(shift[i % width]))
            .collect();
        assert_close("layer norm, scaled", &out, &want, &[1.0], 1e-5);
        let groups = rows.div_ceil(per);
        let modulated = NormAffine::Modulated {
            scale: &scale[..groups * width],
            shift: &shift[..groups * width],
            rows_per_group: per,
        };
        layer_norm(&x, width, modulated, 1e-6, &mut out).unwrap();
        let want: Vec<f64> = (0..x.len())
            .map(|i| {
                let at = i / width / per * width + i % width;
                plain[i] * (1.0 + f64::from(scale[at])) + f64::from(shift[at])
            })
            .collect();
        assert_close("layer norm, modulated", &out, &want, &[1.0], 1e-5);
        rms_norm(&x, &scale[..width], 1e-6, &mut out).unwrap();
        let want: Vec<f64> = wide_x
            .chunks(width)
            .flat_map(|row| {
                let mean = row.iter().map(|x| x * x).sum::<f64>() / width as f64;
                row.iter()
                    .zip(&scale)
                    .map(move |(x, w)| x / (mean + 1e-6).sqrt() * f64::from(*w))
                    .collect::<Vec<_>>()
            })
            .collect();
        assert_close("rms norm", &out, &want, &[1.0], 1e-5);
    }
}

#[test]
fn norms_match_the_reference() {
    at_every_level(|_| {
        check_norms::<f32>();
        check_norms::<bf16>();
    });
}

#[test]
fn threads_do_not_change_a_norm() {
    let mut numbers = Numbers::new(60);
    let x: Vec<f32> = numbers.vec(2 * 1000 * 64);
    let (scale, shift): (Vec<f32>, Vec<f32>) = (numbers.vec(64), numbers.vec(64));
    same_for_any_threads(|| {
        let mut out = vec![0f32; x.len()];
        group_norm(&x, (2, 1000, 64), 8, (&scale, &shift), 1e-5, Activation::Silu, &mut out).unwrap();
        out
    });
}

fn check_rope<T: Element>() {
    for (index, (batch, tokens, heads, width)) in [(1, 1, 1, 2), (2, 7, 3, 16), (1, 40, 2, 128), (1, 5, 4, 10)]
        .into_iter()
        .enumerate()
    {
        let mut numbers = Numbers::new(index as u64 + 70);
        let x: Vec<T> = numbers.vec(batch * tokens * heads * width);
        let angles: Vec<f32> = numbers.vec::<f32>(tokens * width / 2).iter().map(|x| 3.0 * x).collect();
        let (cos, sin): (Vec<f32>, Vec<f32>) = (
            angles.iter().map(|a| a.cos()).collect(),
            angles.iter().map(|a| a.sin()).collect(),
        );
        let scale: Vec<f32> = numbers.vec(width);
        for norm in [None, Some((scale.as_slice(), 1e-6f32))] {
            let mut out = vec![T::default(); x.len()];
            rope(&x, (batch, tokens, heads, width), (&cos, &sin), norm, &mut out).unwrap();
            let mut want = Vec::new();
            for (i, head) in wide(&x).chunks(width).enumerate() {
                let token = i / heads % tokens;
                let mean = head.iter().map(|x| x * x).sum::<f64>() / width as f64;
                let normed: Vec<f64> = match norm {
                    Some((scale, eps)) => {
                        let by = 1.0 / (mean + f64::from(eps)).sqrt();
                        head.iter().zip(scale).map(|(x, w)| x * by * f64::from(*w)).collect()
                    }
                    None => head.to_vec(),
                };
                for pair in 0..width / 2 {
                    let at = token * width / 2 + pair;
                    let (c, s) = (f64::from(cos[at]), f64::from(sin[at]));
                    let (a, b) = (normed[2 * pair], normed[2 * pair + 1]);
                    want.extend([a * c - b * s, a * s + b * c]);
                }
            }
            assert_close("rope", &out, &want, &[3.0], 1e-6);
        }
    }
}

#[test]
fn rotary_positions_match_the_reference() {
    at_every_level(|_| {
        check_rope::<f32>();
        check_rope::<bf16>();
    });
}

#[test]
fn passes_match_the_reference() {
    at_every_level(|_| {
        for len in [0, 1, 15, 16, 17, 100, 70_000] {
            let mut numbers = Numbers::new(len as u64);
            let (a, b): (Vec<f32>, Vec<f32>) = (numbers.vec(len), numbers.vec(len));
            let mut out = vec![0f32; len];
            add(&a, &b, &mut out).unwrap();
            assert!(out.iter().zip(a.iter().zip(&b)).all(|(o, (a, b))| *o == a + b));
            let mut narrow = vec![bf16::ZERO; len];
            convert(&a, &mut narrow).unwrap();
            assert_eq!(narrow, rounded(&a), "rounding to bf16");
            convert(&narrow, &mut out).unwrap();
            assert!(out.iter().zip(&narrow).all(|(o, n)| *o == n.to_f32()));
            activate(&a, Activation::Silu, &mut out).unwrap();
            let want: Vec<f64> = wide(&a).iter().map(|x| x / (1.0 + (-x).exp())).collect();
            if len > 0 {
                assert_close("silu", &out, &want, &[1.0], 3e-7);
            }
        }
        let mut numbers = Numbers::new(80);
        let x: Vec<f32> = numbers.vec(9 * 2 * 21);
        let mut out = vec![0f32; 9 * 21];
        gate(&x, 21, Activation::Silu, &mut out).unwrap();
        let want: Vec<f64> = (0..9 * 21)
            .map(|at| {
                let (v, g) = (
                    f64::from(x[at / 21 * 42 + at % 21]),
                    f64::from(x[at / 21 * 42 + 21 + at % 21]),
                );
                v * g / (1.0 + (-g).exp())
            })
            .collect();
        assert_close("gate", &out, &want, &[1.0], 3e-7);
    });
}

#[test]
fn extreme_numbers_keep_their_meaning() {
    at_every_level(|level| {
        let x = [
            0.0,
            -0.0,
            1e30,
            -1e30,
            f32::INFINITY,
            f32::NEG_INFINITY,
            1e-40,
            100.0,
            -100.0,
        ];
        let mut out = [0f32; 9];
        activate(&x, Activation::Silu, &mut out).unwrap();
        assert_eq!(
            [out[0], out[1], out[2], out[4]],
            [0.0, 0.0, 1e30, f32::INFINITY],
            "{level:?}"
        );
        assert!(out[3].abs() < 1e-6, "{level:?} {out:?}");
        assert!(
            (out[7] - 100.0).abs() < 1e-4 && out[8].abs() < 1e-30,
            "{level:?} {out:?}"
        );
        let special = [
            f32::NAN,
            f32::INFINITY,
            f32::NEG_INFINITY,
            3.4e38,
            1.0 + 1.0 / 256.0,
            1.0 + 3.0 / 256.0,
        ];
        let mut narrow = [bf16::ZERO; 6];
        convert(&special, &mut narrow).unwrap();
        assert!(narrow[0].is_nan());
        assert_eq!(narrow[1..].to_vec(), rounded(&special[1..]), "{level:?}");
    });
}

#[test]
fn layouts_move_every_number() {
    let mut numbers = Numbers::new(90);
    let (b, h, w, c) = (2, 3, 5, 7);
    let x: Vec<f32> = numbers.vec(b * h * w * c);
    let mut up = vec![0f32; 4 * x.len()];
    upsample2x(&x, (b, h, w, c), &mut up).unwrap();
    for (at, value) in up.iter().enumerate() {
        let (ch, px) = (at % c, at / c);
        let (ox, oy, image) = (px % (2 * w), px / (2 * w) % (2 * h), px / (4 * w * h));
        assert_eq!(*value, x[((image * h + oy / 2) * w + ox / 2) * c + ch]);
    }
    let other: Vec<f32> = numbers.vec(b * h * w * 4);
    let mut both = vec![0f32; x.len() + other.len()];
    concat(&x, &other, (c, 4), &mut both).unwrap();
    assert!(both.iter().enumerate().all(|(at, v)| {
        let (row, column) = (at / (c + 4), at % (c + 4));
        *v == if column < c {
            x[row * c + column]
        } else {
            other[row * 4 + column - c]
        }
    }));
    let (rows, columns) = (45, 70);
    let y: Vec<f32> = numbers.vec(2 * rows * columns);
    let (mut turned, mut back) = (vec![0f32; y.len()], vec![0f32; y.len()]);
    transpose(&y, (2, rows, columns), &mut turned).unwrap();
    assert_eq!(
        turned[rows * columns + 3 * rows + 5],
        y[rows * columns + 5 * columns + 3]
    );
    transpose(&turned, (2, columns, rows), &mut back).unwrap();
    assert_eq!(y, back);
}

#[test]
fn wrong_lengths_are_errors() {
    let mut out = [0f32; 12];
    assert!(
        group_norm(
            &[0.0; 12],
            (1, 2, 6),
            4,
            (&[0.0; 6], &[0.0; 6]),
            1e-5,
            Activation::None,
            &mut out
        )
        .is_err()
    );
    assert!(
        group_norm(
            &[0.0; 12],
            (1, 2, 6),
            3,
            (&[0.0; 5], &[0.0; 6]),
            1e-5,
            Activation::None,
            &mut out
        )
        .is_err()
    );
    assert!(layer_norm(&[0.0; 12], 5, NormAffine::None, 1e-5, &mut out).is_err());
    assert!(layer_norm(&[0.0; 12], 0, NormAffine::None, 1e-5, &mut out).is_err());
    assert!(rms_norm(&[0.0; 12], &[], 1e-5, &mut out).is_err());
    assert!(rope(&[0.0; 12], (1, 2, 2, 3), (&[0.0; 2], &[0.0; 2]), None, &mut out).is_err());
    assert!(add(&[0.0; 12], &[0.0; 11], &mut out).is_err());
    assert!(gate(&[0.0; 12], 5, Activation::Silu, &mut out).is_err());
    assert!(concat(&[0.0; 4], &[0.0; 4], (3, 3), &mut out).is_err());
    assert!(upsample2x(&[0.0; 4], (1, 1, 1, 4), &mut out).is_err());
    assert!(transpose(&[0.0; 4], (1, 2, 2), &mut out).is_err());
}
