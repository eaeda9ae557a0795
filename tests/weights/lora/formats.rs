//! Every format changes the weights as its makers' code does.

use candle_core::DType;
use sd_worker::weights::{SafeTensors, TensorSource};

use crate::support::f32s;

use super::support::{changes, every, fixtures, folder_with, golden, held, made, named, tiny};

/// Largest distance to PEFT's merged weights, relative to the largest change of the layer.
const TOLERANCE: f32 = 2e-3;

fn check_against(kind: &str, file: &str, strength: f32, factor: f32) {
    let layers = tiny(DType::F32);
    let before = every(&layers);
    let applied = golden().apply(&[named(file, strength)], &layers).unwrap();
    assert_eq!(applied.warnings, Vec::<String>::new(), "{kind}");
    let after = every(&layers);
    let expected = SafeTensors::open(&fixtures().join("weights/lora-expected.safetensors")).unwrap();
    let mut seen = 0;
    for (layer, numbers) in &after {
        let change: Vec<f32> = numbers.iter().zip(&before[layer]).map(|(a, b)| a - b).collect();
        let name = format!("{kind}/{layer}");
        let Some(_) = expected.describe(&name) else {
            assert!(change.iter().all(|c| *c == 0.0), "{layer} must not change");
            continue;
        };
        let theirs = expected.read(&name).unwrap().to_f32(&name).unwrap();
        let largest = theirs.iter().fold(0.0_f32, |m, n| m.max(n.abs()));
        let apart = change
            .iter()
            .zip(&theirs)
            .fold(0.0_f32, |m, (a, b)| m.max((a - b * factor).abs()));
        assert!(apart <= largest * TOLERANCE, "{name}: {apart} of {largest}");
        seen += 1;
    }
    assert_eq!(
        seen,
        expected
            .names()
            .iter()
            .filter(|name| name.starts_with(&format!("{kind}/")))
            .count(),
        "{kind}"
    );
    assert_eq!(applied.layers, seen);
}

#[test]
fn files_of_peft_and_diffusers_change_what_peft_changes() {
    for kind in ["lora", "dora", "loha", "lokr"] {
        check_against(kind, &format!("lora-{kind}"), 1.0, 1.0);
    }
    check_against("lora", "lora-lora", -0.5, -0.5);
    // Alpha 2 over rank 4 halves it.
    check_against("lora", "lora-kohya", 1.0, 0.5);
}

#[test]
fn a_convolution_s_core_and_kronecker_and_column_magnitudes_follow_their_formulas() {
    let (o, i, r, k) = (3, 2, 2, 3);
    let layers = made(&[("conv_in", &[o, i, k, k]), ("mid", &[4, 6])], false);
    let before = every(&layers);
    let number = |n: usize| ((n * 7 % 11) as f32 - 5.0) / 10.0;
    let numbers = |count: usize| (0..count).map(number).collect::<Vec<f32>>();
    let (down, mid, up) = (numbers(r * i), numbers(r * r * k * k), numbers(o * r));
    let (_root, mut loras) = folder_with(&[
        f32s("lora_unet_conv_in.lora_down.weight", &[r, i, 1, 1], &down),
        f32s("lora_unet_conv_in.lora_mid.weight", &[r, r, k, k], &mid),
        f32s("lora_unet_conv_in.lora_up.weight", &[o, r, 1, 1], &up),
    ]);
    loras.apply(&[named("x", 1.0)], &layers).unwrap();
    let found = changes(&layers, &before, "conv_in");
    for (at, found) in found.iter().enumerate() {
        let (out, input, place) = (at / (i * k * k), at / (k * k) % i, at % (k * k));
        let mut expected = 0.0;
        for a in 0..r {
            for b in 0..r {
                expected += up[out * r + a] * mid[(a * r + b) * k * k + place] * down[b * i + input];
            }
        }
        assert!((found - expected).abs() < 1e-5, "{at}: {found} {expected}");
    }

    let (w1, w2) = (numbers(4), numbers(6));
    let (_root, mut loras) = folder_with(&[
        f32s("lora_unet_mid.lokr_w1", &[2, 2], &w1),
        f32s("lora_unet_mid.lokr_w2", &[2, 3], &w2),
        f32s("lora_unet_mid.alpha", &[], &[3.0]),
    ]);
    loras.apply(&[named("x", 2.0)], &layers).unwrap();
    for (at, found) in changes(&layers, &before, "mid").iter().enumerate() {
        let (row, column) = (at / 6, at % 6);
        let expected = 2.0 * w1[row / 2 * 2 + column / 3] * w2[row % 2 * 3 + column % 3];
        assert!((found - expected).abs() < 1e-5, "{at}: {found} {expected}");
    }

    let (down, up, magnitude) = (numbers(6), numbers(4), [1.0, 2.0, 0.5, 1.5, 1.0, 3.0]);
    let (_root, mut loras) = folder_with(&[
        f32s("lora_unet_mid.lora_down.weight", &[1, 6], &down),
        f32s("lora_unet_mid.lora_up.weight", &[4, 1], &up),
        f32s("lora_unet_mid.dora_scale", &[1, 6], &magnitude),
    ]);
    loras.apply(&[named("x", 1.0)], &layers).unwrap();
    let after = held(&layers.denoiser.get("mid").unwrap());
    for (column, magnitude) in magnitude.iter().enumerate() {
        let length = (0..4).map(|row| after[row * 6 + column].powi(2)).sum::<f32>().sqrt();
        assert!((length - magnitude).abs() < 1e-4, "column {column}: {length}");
    }
}
