//! Linear layers, convolutions and their epilogues.

use half::{bf16, f16};
use sd_kernels::*;

use crate::support::*;

fn activate(act: Activation, x: f64) -> f64 {
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    match act {
        Activation::None => x,
        Activation::Silu => x * sigmoid(x),
        Activation::GeluErf => 0.5 * x * (1.0 + erf(x / std::f64::consts::SQRT_2)),
        Activation::GeluTanh => 0.5 * x * (1.0 + (0.797_884_560_802_865_4 * (x + 0.044_715 * x * x * x)).tanh()),
        Activation::QuickGelu => x * sigmoid(1.702 * x),
    }
}

/// Series and continued fraction of the error function.
fn erf(x: f64) -> f64 {
    if x.abs() > 4.0 {
        return x.signum();
    }
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        term *= -x * x / n as f64;
        sum += term / (2 * n + 1) as f64;
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}

/// Sums and sums of magnitudes.
fn product(a: &[f64], w: &[f64], (m, n, k): (usize, usize, usize)) -> (Vec<f64>, Vec<f64>) {
    let mut out = (vec![0.0; m * n], vec![0.0; m * n]);
    for i in 0..m {
        for j in 0..n {
            for x in 0..k {
                let term = a[i * k + x] * w[j * k + x];
                out.0[i * n + j] += term;
                out.1[i * n + j] += term.abs();
            }
        }
    }
    out
}

/// Relative error of a sum of `k` terms, against the sum of their magnitudes.
fn sum_bound(k: usize) -> f64 {
    (k as f64).sqrt().max(4.0) * 2.0 * f64::from(f32::EPSILON)
}

/// As [`sum_bound`], with what the products of a type leave out.
fn bound(kind: WeightType, k: usize) -> f64 {
    sum_bound(k) + if kind == WeightType::Split { 2f64.powi(-15) } else { 0.0 }
}

/// Weights of a type that came back are those that were packed, to as many bits as the type keeps.
fn assert_kept(what: &str, kind: WeightType, got: &[f32], want: &[f64]) {
    let rounding = match kind {
        WeightType::Split => 2f64.powi(-17),
        _ => 0.0,
    };
    for (got, want) in wide(got).iter().zip(want) {
        assert!((got - want).abs() <= rounding * want.abs(), "{what}: {got} for {want}");
    }
}

const SHAPES: [(usize, usize, usize); 17] = [
    (1, 1, 1),
    (2, 5, 3),
    (1, 40, 17),
    (13, 33, 5),
    (2, 1, 800),
    (13, 33, 31),
    (16, 32, 32),
    (17, 16, 33),
    (31, 65, 64),
    (33, 70, 100),
    (77, 96, 320),
    (50, 48, 1100),
    (260, 100, 40),
    (300, 35, 800),
    (50, 48, 1024),
    (271, 70, 1056),
    (70, 40, 6180),
];

fn check_linear<A: Element, O: Element>(kind: WeightType, level: Isa) {
    for (index, &(m, n, k)) in SHAPES.iter().enumerate() {
        if !in_reach(m * n * k) {
            continue;
        }
        let mut numbers = Numbers::new(index as u64 + 1);
        let a: Vec<A> = numbers.vec(m * k);
        let w: Vec<f32> = numbers.vec(n * k);
        let packed = PackedWeights::pack(WeightSource::F32(&w), (n, k), kind, Columns::Plain).unwrap();
        let (a_used, w_used) = match kind {
            WeightType::F32 | WeightType::Split => (wide(&a), wide(&w)),
            WeightType::Bf16 => (
                wide(&rounded(&a.iter().map(|x| x.to_f32()).collect::<Vec<_>>())),
                wide(&rounded(&w)),
            ),
        };
        assert_kept("unpacked weights", kind, &packed.unpack::<f32>(), &w_used);
        let (sums, scale) = product(&a_used, &w_used, (m, n, k));
        let mut out = vec![O::default(); m * n];
        linear(&a, m, &packed, &Epilogue::default(), &mut out).unwrap();
        assert_close(
            &format!("{level:?} {kind:?} {m}x{n}x{k}"),
            &out,
            &sums,
            &scale,
            bound(kind, k),
        );
    }
}

#[test]
fn linear_matches_the_reference() {
    at_every_level(|level| {
        check_linear::<f32, f32>(WeightType::F32, level);
        check_linear::<f32, f32>(WeightType::Split, level);
        check_linear::<bf16, f32>(WeightType::Split, level);
        check_linear::<bf16, bf16>(WeightType::F32, level);
        check_linear::<bf16, bf16>(WeightType::Bf16, level);
        check_linear::<f32, f32>(WeightType::Bf16, level);
        check_linear::<bf16, f32>(WeightType::Bf16, level);
    });
}

fn check_epilogues<O: Element>(kind: WeightType) {
    let (m, n, k, group) = if cfg!(miri) { (5, 6, 11, 2) } else { (45, 44, 70, 7) };
    let mut numbers = Numbers::new(9);
    let a: Vec<O> = numbers.vec(m * k);
    let w: Vec<O> = numbers.vec(2 * n * k);
    let bias: Vec<f32> = numbers.vec(2 * n);
    let groups = m.div_ceil(group);
    let (row_bias, gate): (Vec<f32>, Vec<f32>) = (numbers.vec(groups * n), numbers.vec(groups * n));
    let residual: Vec<O> = numbers.vec(m * n);
    let source = match kind {
        WeightType::F32 | WeightType::Split => w.iter().map(|x| x.to_f32()).collect::<Vec<_>>(),
        WeightType::Bf16 => w.iter().map(|x| bf16::from_f32(x.to_f32()).to_f32()).collect(),
    };
    let a_used: Vec<f64> = match kind {
        WeightType::F32 | WeightType::Split => wide(&a),
        WeightType::Bf16 => wide(&rounded(&a.iter().map(|x| x.to_f32()).collect::<Vec<_>>())),
    };
    let (sums, _) = product(&a_used, &wide(&source), (m, 2 * n, k));
    for act in [
        Activation::None,
        Activation::Silu,
        Activation::GeluErf,
        Activation::GeluTanh,
        Activation::QuickGelu,
    ] {
        let mut out = vec![O::default(); m * n];
        let plain = PackedWeights::pack(WeightSource::F32(&source[..n * k]), (n, k), kind, Columns::Plain).unwrap();
        let ep = Epilogue {
            scale: 0.5,
            bias: Some(&bias[..n]),
            row_bias: Some(&row_bias),
            gate: Some(&gate),
            rows_per_group: group,
            activation: act,
            residual: Some(&residual),
        };
        linear(&a, m, &plain, &ep, &mut out).unwrap();
        let want: Vec<f64> = (0..m * n)
            .map(|at| {
                let (i, j) = (at / n, at % n);
                let grouped = i / group * n + j;
                let x = 0.5 * sums[i * 2 * n + j] + f64::from(bias[j]) + f64::from(row_bias[grouped]);
                f64::from(residual[at].to_f32()) + f64::from(gate[grouped]) * activate(act, x)
            })
            .collect();
        let bound = if kind == WeightType::Split { 1e-5 } else { 1e-6 };
        assert_close(&format!("epilogue {act:?}"), &out, &want, &[10.0], bound);

        let gated = PackedWeights::pack(WeightSource::F32(&source), (2 * n, k), kind, Columns::Gated).unwrap();
        let ep = Epilogue {
            bias: Some(&bias),
            activation: act,
            residual: Some(&residual),
            ..Epilogue::default()
        };
        linear(&a, m, &gated, &ep, &mut out).unwrap();
        let want: Vec<f64> = (0..m * n)
            .map(|at| {
                let (i, j) = (at / n, at % n);
                let value = sums[i * 2 * n + j] + f64::from(bias[j]);
                let gate = sums[i * 2 * n + n + j] + f64::from(bias[n + j]);
                f64::from(residual[at].to_f32()) + value * activate(act, gate)
            })
            .collect();
        assert_close(&format!("gated {act:?}"), &out, &want, &[30.0], 2.0 * bound);
        assert_kept("gated weights", kind, &gated.unpack::<f32>(), &wide(&source));
    }
}

#[test]
fn epilogues_match_the_reference() {
    at_every_level(|_| {
        check_epilogues::<f32>(WeightType::F32);
        check_epilogues::<f32>(WeightType::Split);
        check_epilogues::<bf16>(WeightType::Bf16);
        check_epilogues::<f32>(WeightType::Bf16);
    });
}

fn convolve(x: &[f64], w: &[f64], (b, h, width): (usize, usize, usize), s: &ConvShape) -> (Vec<f64>, Vec<f64>) {
    let (oh, ow) = s.output(h, width).unwrap();
    let double = if s.upsample { 2 } else { 1 };
    let (mut out, mut scale) = (Vec::new(), Vec::new());
    for image in 0..b {
        for oy in 0..oh {
            for ox in 0..ow {
                for o in 0..s.out_channels {
                    let (mut sum, mut magnitude) = (0.0, 0.0);
                    for ky in 0..s.kernel.0 {
                        for kx in 0..s.kernel.1 {
                            let y = (oy * s.stride.0 + ky) as isize - s.padding.0 as isize;
                            let xx = (ox * s.stride.1 + kx) as isize - s.padding.2 as isize;
                            if y < 0 || xx < 0 || y >= (h * double) as isize || xx >= (width * double) as isize {
                                continue;
                            }
                            let (y, xx) = (y as usize / double, xx as usize / double);
                            for c in 0..s.in_channels {
                                let left = x[((image * h + y) * width + xx) * s.in_channels + c];
                                let right = w[((o * s.in_channels + c) * s.kernel.0 + ky) * s.kernel.1 + kx];
                                sum += left * right;
                                magnitude += (left * right).abs();
                            }
                        }
                    }
                    out.push(sum);
                    scale.push(magnitude);
                }
            }
        }
    }
    (out, scale)
}

fn conv_shapes() -> Vec<((usize, usize, usize), ConvShape)> {
    let same = ConvShape::same;
    vec![
        ((1, 5, 7), same(4, 3, 3)),
        (
            (1, 2, 3),
            ConvShape {
                upsample: true,
                ..same(3, 2, 3)
            },
        ),
        ((2, 8, 8), same(32, 40, 3)),
        ((1, 9, 6), same(64, 33, 1)),
        ((2, 3, 5), same(17, 9, 3)),
        (
            (1, 6, 6),
            ConvShape {
                upsample: true,
                ..same(32, 16, 3)
            },
        ),
        (
            (1, 8, 10),
            ConvShape {
                stride: (2, 2),
                ..same(16, 24, 3)
            },
        ),
        (
            (2, 7, 8),
            ConvShape {
                stride: (2, 2),
                padding: (0, 1, 0, 1),
                ..same(32, 5, 3)
            },
        ),
        (
            (1, 6, 5),
            ConvShape {
                kernel: (2, 3),
                stride: (2, 1),
                padding: (1, 0, 2, 1),
                ..same(9, 4, 3)
            },
        ),
        ((1, 12, 11), same(96, 70, 3)),
        (
            (2, 16, 18),
            ConvShape {
                upsample: true,
                ..same(32, 40, 3)
            },
        ),
        (
            (1, 17, 32),
            ConvShape {
                upsample: true,
                ..same(64, 9, 3)
            },
        ),
        ((1, 9, 48), same(32, 3, 3)),
        ((2, 20, 32), same(32, 70, 3)),
        (
            (1, 4, 4),
            ConvShape {
                kernel: (4, 4),
                stride: (4, 4),
                padding: (0, 0, 0, 0),
                ..same(3, 8, 3)
            },
        ),
    ]
}

fn check_conv<T: Element>(kind: WeightType, level: Isa) {
    for (index, (size, shape)) in conv_shapes().into_iter().enumerate() {
        let weights = shape.out_channels * shape.in_channels * shape.kernel.0 * shape.kernel.1;
        if !in_reach(size.0 * size.1 * size.2 * weights) {
            continue;
        }
        let mut numbers = Numbers::new(100 + index as u64);
        let x: Vec<T> = numbers.vec(size.0 * size.1 * size.2 * shape.in_channels);
        let w: Vec<T> = numbers.vec(weights);
        let (want, scale) = convolve(&wide(&x), &wide(&w), size, &shape);
        let w32: Vec<f32> = w.iter().map(|x| x.to_f32()).collect();
        let conv = PackedWeights::pack_conv(WeightSource::F32(&w32), &shape, kind).unwrap();
        assert_kept("convolution's weights", kind, &conv.unpack::<f32>(), &wide(&w));
        let mut out = vec![T::default(); want.len()];
        conv2d(&x, size, &conv, &shape, &Epilogue::default(), &mut out).unwrap();
        let inner = shape.in_channels * shape.kernel.0 * shape.kernel.1;
        // Over a doubled picture, sums of weights are rounded where the reference has the sums of their products.
        let summed = match kind {
            WeightType::Bf16 if shape.upsample => epsilon::<bf16>() / 2.0,
            _ => 0.0,
        };
        assert_close(
            &format!("{level:?} {kind:?} conv {index}"),
            &out,
            &want,
            &scale,
            bound(kind, inner) + summed,
        );
    }
}

#[test]
fn convolution_matches_the_reference() {
    at_every_level(|level| {
        check_conv::<f32>(WeightType::F32, level);
        check_conv::<f32>(WeightType::Split, level);
        check_conv::<bf16>(WeightType::Split, level);
        check_conv::<bf16>(WeightType::Bf16, level);
        check_conv::<bf16>(WeightType::F32, level);
    });
}

#[test]
fn threads_do_not_change_a_product() {
    let mut numbers = Numbers::new(5);
    let (side, from, to) = if cfg!(miri) { (3, 4, 33) } else { (20, 100, 70) };
    let x: Vec<f32> = numbers.vec(2 * side * side * from);
    let shape = ConvShape::same(from, to, 3);
    let w: Vec<f32> = numbers.vec(from * to * 9);
    for kind in [WeightType::F32, WeightType::Split, WeightType::Bf16] {
        let conv = PackedWeights::pack_conv(WeightSource::F32(&w), &shape, kind).unwrap();
        same_for_any_threads(|| {
            let mut out = vec![0f32; 2 * side * side * to];
            conv2d(&x, (2, side, side), &conv, &shape, &Epilogue::default(), &mut out).unwrap();
            out
        });
    }
}

#[test]
fn activation_products_and_half_precision_weights() {
    let mut numbers = Numbers::new(6);
    let (m, n, k) = if cfg!(miri) { (3, 35, 11) } else { (37, 50, 65) };
    let (a, b): (Vec<f32>, Vec<f32>) = (numbers.vec(m * k), numbers.vec(n * k));
    let (sums, scale) = product(&wide(&a), &wide(&b), (m, n, k));
    let want: Vec<f64> = sums.iter().map(|x| x * 0.25).collect();
    let mut out = vec![0f32; m * n];
    matmul_nt(&a, &b, (m, n, k), 0.25, &mut out).unwrap();
    assert_close("activation product", &out, &want, &scale, sum_bound(k));

    let halves: Vec<f16> = b.iter().map(|&x| f16::from_f32(x)).collect();
    let packed = PackedWeights::pack(WeightSource::F16(&halves), (n, k), WeightType::F32, Columns::Plain).unwrap();
    let back: Vec<f16> = packed.unpack::<f32>().into_iter().map(f16::from_f32).collect();
    assert_eq!(back, halves);
}

/// Rows of `w`, as one who reads them from a file would bring them.
fn bring(w: &[f32], inputs: usize, rows: std::ops::Range<usize>, into: ViewMut<'_>) {
    let numbers = &w[rows.start * inputs..rows.end * inputs];
    match into {
        ViewMut::F32(into) => into.copy_from_slice(numbers),
        ViewMut::Bf16(into) => into
            .iter_mut()
            .zip(numbers)
            .for_each(|(to, from)| *to = bf16::from_f32(*from)),
    }
}

#[test]
fn weights_brought_row_by_row_are_packed_like_whole_ones() {
    at_every_level(|_| compare_brought_weights());
}

fn compare_brought_weights() {
    let mut numbers = Numbers::new(9);
    for (outputs, channels, taps, columns) in [
        (70, 33, 1, Columns::Plain),
        (64, 40, 1, Columns::Plain),
        (80, 34, 1, Columns::Gated),
        (88, 48, 1, Columns::Gated),
        (33, 10, 9, Columns::Plain),
        (65, 16, 9, Columns::Plain),
        (7, 12, 9, Columns::Plain),
        (5, 3, 9, Columns::Plain),
        (40, 6, 4, Columns::Plain),
    ] {
        let inputs = channels * taps;
        let w: Vec<f32> = numbers.vec(outputs * inputs);
        for kind in [WeightType::F32, WeightType::Split, WeightType::Bf16] {
            let brought = PackedWeights::pack_rows((outputs, inputs), kind, columns, taps, |rows, into| {
                bring(&w, inputs, rows, into);
                Ok::<_, KernelError>(())
            })
            .unwrap();
            let source = WeightSource::F32(&w);
            let side = ConvShape {
                kernel: (1, taps),
                ..ConvShape::same(channels, outputs, 1)
            };
            let whole = match columns {
                Columns::Plain => PackedWeights::pack_conv(source, &side, kind),
                Columns::Gated => PackedWeights::pack(source, (outputs, inputs), kind, columns),
            }
            .unwrap();
            let expected = match kind {
                WeightType::F32 | WeightType::Split => wide(&w),
                WeightType::Bf16 => wide(&rounded(&w)),
            };
            assert_kept("rows brought", kind, &brought.unpack::<f32>(), &expected);
            assert_eq!(brought.unpack::<f32>(), whole.unpack::<f32>());
            if taps == 1 {
                let x: Vec<f32> = numbers.vec(3 * inputs);
                let run = |weights: &PackedWeights| {
                    let mut out = vec![0f32; 3 * weights.out_columns()];
                    linear(&x, 3, weights, &Epilogue::default(), &mut out).unwrap();
                    out
                };
                assert_eq!(run(&brought), run(&whole), "padding is zero in both");
            }
        }
    }
}

#[test]
fn rows_that_cannot_be_brought_are_an_error() {
    let failed = PackedWeights::pack_rows((100, 8), WeightType::Bf16, Columns::Plain, 1, |rows, _| {
        if rows.contains(&70) {
            return Err(KernelError::Zero("row 70"));
        }
        Ok(())
    });
    assert_eq!(failed.unwrap_err(), KernelError::Zero("row 70"));
}

#[test]
fn wrong_lengths_are_errors() {
    let w = vec![0f32; 12];
    let packed = PackedWeights::pack(WeightSource::F32(&w), (3, 4), WeightType::F32, Columns::Plain).unwrap();
    let mut out = vec![0f32; 6];
    let plain = Epilogue::default();
    assert!(linear(&[0f32; 7], 2, &packed, &plain, &mut out).is_err());
    assert!(linear(&[0f32; 8], 2, &packed, &plain, &mut out[..5]).is_err());
    let short = Epilogue {
        bias: Some(&[0.0; 2]),
        ..plain
    };
    assert!(linear(&[0f32; 8], 2, &packed, &short, &mut out).is_err());
    let lone = Epilogue {
        row_bias: Some(&[0.0; 3]),
        rows_per_group: 1,
        ..plain
    };
    assert!(linear(&[0f32; 8], 2, &packed, &lone, &mut out).is_err());
    assert!(PackedWeights::pack(WeightSource::F32(&w), (3, 4), WeightType::F32, Columns::Gated).is_err());
    assert!(PackedWeights::pack(WeightSource::F32(&w), (0, 4), WeightType::F32, Columns::Plain).is_err());
    assert!(PackedWeights::pack(WeightSource::F32(&w), (usize::MAX, 4), WeightType::F32, Columns::Plain).is_err());
    let conv = PackedWeights::pack_conv(WeightSource::F32(&w), &ConvShape::same(4, 3, 1), WeightType::F32).unwrap();
    assert!(
        conv2d(
            &[0f32; 3],
            (1, 1, 1),
            &conv,
            &ConvShape::same(4, 3, 1),
            &plain,
            &mut [0f32; 3]
        )
        .is_err()
    );
    assert!(
        ConvShape {
            padding: (0, 0, 0, 0),
            ..ConvShape::same(4, 3, 3)
        }
        .output(2, 5)
        .is_err()
    );
}
