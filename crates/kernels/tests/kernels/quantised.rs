//! Products with quantised weights, against the product with the numbers that their blocks stand for.

use half::{bf16, f16};
use sd_kernels::*;

use crate::support::*;

/// Random blocks whose scales are ordinary numbers, and some below f16's normal ones.
fn blocks(kind: QuantType, count: usize, numbers: &mut Numbers) -> Vec<u8> {
    let scales: &[usize] = match kind {
        QuantType::Q4_0 | QuantType::Q5_0 | QuantType::Q8_0 => &[0],
        QuantType::Q4_1 | QuantType::Q5_1 | QuantType::Q4K | QuantType::Q5K => &[0, 2],
        QuantType::Q2K => &[80, 82],
        QuantType::Q3K => &[108],
        QuantType::Q6K => &[208],
    };
    let mut bytes: Vec<u8> = (0..count * kind.block_bytes())
        .map(|_| ((numbers.next() + 1.0) * 128.0) as u8)
        .collect();
    for (i, block) in bytes.chunks_exact_mut(kind.block_bytes()).enumerate() {
        let size = if i % 3 == 2 { 1e-5 } else { 0.01 };
        for &at in scales {
            block[at..at + 2].copy_from_slice(&f16::from_f32(numbers.next() * size).to_le_bytes());
        }
    }
    bytes
}

fn check<T: Element>(kind: QuantType, rows: usize, level: Isa) {
    let outputs = if cfg!(miri) { 17 } else { 45 };
    let inputs = if kind.block_len() == 32 { 96 } else { 512 };
    let mut numbers = Numbers::new(rows as u64 + kind.block_bytes() as u64);
    let held = blocks(kind, outputs * inputs / kind.block_len(), &mut numbers);
    let weights = QuantWeights {
        blocks: &held,
        kind,
        outputs,
        inputs,
    };
    let mut dense = vec![0f32; outputs * inputs];
    dequantise(kind, &held, &mut dense).unwrap();
    let x: Vec<T> = numbers.vec(rows * inputs);
    let bias: Vec<f32> = numbers.vec(outputs);
    let residual: Vec<T> = numbers.vec(rows * outputs);
    let ep = Epilogue {
        bias: Some(&bias),
        residual: Some(&residual),
        ..Epilogue::default()
    };
    let mut out = vec![T::default(); rows * outputs];
    quant_linear(&x, rows, &weights, &ep, &mut out).unwrap();
    let (mut want, mut scale) = (Vec::new(), Vec::new());
    for r in 0..rows {
        for o in 0..outputs {
            let terms =
                || (0..inputs).map(|i| f64::from(x[r * inputs + i].to_f32()) * f64::from(dense[o * inputs + i]));
            let added = f64::from(bias[o]) + f64::from(residual[r * outputs + o].to_f32());
            want.push(terms().sum::<f64>() + added);
            scale.push(terms().map(f64::abs).sum::<f64>() + added.abs());
        }
    }
    // Many rows: both sides are rounded to bf16.
    let bound = if rows > 4 { 2.0 / 256.0 } else { 1e-6 };
    assert_close(&format!("{level:?} {kind:?} {rows} rows"), &out, &want, &scale, bound);
}

#[test]
fn quantised_products_match_the_reference() {
    at_every_level(|level| {
        for kind in QuantType::ALL {
            for rows in if cfg!(miri) { [1, 3, 5] } else { [1, 3, 40] } {
                check::<f32>(kind, rows, level);
                check::<bf16>(kind, rows, level);
            }
        }
    });
}

/// A product with the unit matrix gives the weights back.
#[test]
fn products_use_exactly_the_decoded_numbers() {
    let (outputs, inputs) = (45, 512);
    let mut unit = vec![0f32; inputs * inputs];
    for i in 0..inputs {
        unit[i * inputs + i] = 1.0;
    }
    at_every_level(|level| {
        for kind in QuantType::ALL {
            let mut numbers = Numbers::new(7);
            let held = blocks(kind, outputs * inputs / kind.block_len(), &mut numbers);
            let weights = QuantWeights {
                blocks: &held,
                kind,
                outputs,
                inputs,
            };
            let mut dense = vec![0f32; outputs * inputs];
            dequantise(kind, &held, &mut dense).unwrap();
            let steps = if cfg!(miri) { 1 } else { inputs };
            let product = |rows: usize, round: fn(f32) -> f32| {
                let mut out = vec![0f32; rows * outputs];
                for first in (0..inputs).step_by(rows).take(steps) {
                    let x = &unit[first * inputs..][..rows * inputs];
                    quant_linear(x, rows, &weights, &Epilogue::default(), &mut out).unwrap();
                    for (i, got) in out.iter().enumerate() {
                        let (row, output) = (first + i / outputs, i % outputs);
                        let want = round(dense[output * inputs + row]);
                        assert!(*got == want, "{level:?} {kind:?} {row} {output}: {got}, want {want}");
                    }
                }
            };
            product(1, |w| w);
            product(4, |w| w);
            product(if cfg!(miri) { 5 } else { inputs }, |w| bf16::from_f32(w).to_f32());
        }
    });
}

#[test]
fn every_level_decodes_the_same_bits() {
    let mut numbers = Numbers::new(3);
    for kind in QuantType::ALL {
        let held = blocks(kind, 7, &mut numbers);
        same_for_any_threads(|| {
            let mut out = vec![0f32; 7 * kind.block_len()];
            dequantise(kind, &held, &mut out).unwrap();
            out
        });
    }
}

#[test]
fn wrong_lengths_are_errors() {
    let ep = Epilogue::default();
    let weights = |blocks, inputs| QuantWeights {
        blocks,
        kind: QuantType::Q8_0,
        outputs: 2,
        inputs,
    };
    let mut out = [0f32; 2];
    assert!(quant_linear(&[0f32; 32], 1, &weights(&[0; 67], 32), &ep, &mut out).is_err());
    assert!(quant_linear(&[0f32; 33], 1, &weights(&[0; 68], 33), &ep, &mut out).is_err());
    assert!(quant_linear(&[0f32; 31], 1, &weights(&[0; 68], 32), &ep, &mut out).is_err());
    assert!(dequantise(QuantType::Q4K, &[0; 144], &mut [0f32; 255]).is_err());
}
