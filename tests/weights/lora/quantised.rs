//! What is quantised keeps its blocks: the change is computed beside them.

use candle_core::{Device, Tensor};
use sd_worker::weights::{Factors, Weight};

use crate::support::f32s;

use super::support::{folder_with, made, named};

#[test]
fn quantised_weights_keep_their_blocks_and_get_the_change_beside_them() {
    let layers = made(&[("transformer_blocks.0.attn.to_q", &[64, 32])], true);
    let slot = layers.denoiser.get("transformer_blocks.0.attn.to_q").unwrap();
    let at = "transformer.transformer_blocks.0.attn.to_q";
    let (_root, mut loras) = folder_with(&[
        f32s(&format!("{at}.lora_A.weight"), &[2, 32], &[0.1; 64]),
        f32s(&format!("{at}.lora_B.weight"), &[64, 2], &[0.2; 128]),
        f32s(&format!("{at}.alpha"), &[], &[1.0]),
    ]);
    loras.apply(&[named("x", 0.8)], &layers).unwrap();
    assert!(matches!(slot.current(), Weight::Quantised(_)));
    let sides = slot.sides();
    let Factors::LowRank { down, up } = &sides[0].factors else {
        panic!("{sides:?}")
    };
    assert_eq!(
        (sides.len(), down.dims(), up.dims()),
        (1, [2, 32].as_slice(), [64, 2].as_slice())
    );
    assert!((sides[0].scale - 0.4).abs() < 1e-6, "{}", sides[0].scale);
    loras.apply(&[], &layers).unwrap();
    assert!(!slot.is_patched());
}

/// `n` rows of numbers for a layer of 32 inputs.
fn tokens(n: usize) -> Tensor {
    let numbers: Vec<f32> = (0..n * 32).map(|i| ((i * 13 % 37) as f32 - 18.0) / 18.0).collect();
    Tensor::from_vec(numbers, (n, 32), &Device::Cpu).unwrap()
}

fn numbers(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn loha_and_lokr_stand_beside_quantised_weights_too_and_a_whole_difference_takes_a_copy() {
    let shapes: &[(&str, &[usize])] = &[("transformer_blocks.0.attn.to_q", &[64, 32])];
    let at = "lora_unet_transformer_blocks_0_attn_to_q";
    let some = |count: usize| {
        (0..count)
            .map(|i| ((i * 7 % 11) as f32 - 5.0) / 10.0)
            .collect::<Vec<f32>>()
    };
    let of = |param: &str, shape: &[usize]| f32s(&format!("{at}.{param}"), shape, &some(shape.iter().product()));
    let loha = vec![
        of("hada_w1_a", &[64, 2]),
        of("hada_w1_b", &[2, 32]),
        of("hada_w2_a", &[64, 3]),
        of("hada_w2_b", &[3, 32]),
    ];
    let lokr = vec![
        of("lokr_w1", &[4, 8]),
        of("lokr_w2_a", &[16, 2]),
        of("lokr_w2_b", &[2, 4]),
        f32s(&format!("{at}.alpha"), &[], &[1.0]),
    ];
    let large_loha = vec![
        of("hada_w1_a", &[64, 8]),
        of("hada_w1_b", &[8, 32]),
        of("hada_w2_a", &[64, 8]),
        of("hada_w2_b", &[8, 32]),
    ];
    let diff = vec![of("diff", &[64, 32])];
    for (kind, file, beside) in [
        ("loha", loha, true),
        ("lokr", lokr, true),
        ("loha of a rank that makes it larger than the weight", large_loha, false),
        ("diff", diff, false),
    ] {
        let (_root, mut loras) = folder_with(&file);
        let dense = made(shapes, false);
        let plain = dense.denoiser.get(shapes[0].0).unwrap();
        let before = plain.original_f32().unwrap();
        loras.apply(&[named("x", 0.5)], &dense).unwrap();
        let delta = (plain.dense().unwrap().unwrap() - before).unwrap();

        let layers = made(shapes, true);
        let slot = layers.denoiser.get(shapes[0].0).unwrap();
        loras.apply(&[named("x", 0.5)], &layers).unwrap();
        let expected = numbers(&tokens(5).matmul(&delta.t().unwrap()).unwrap());
        let got = if beside {
            assert!(matches!(slot.current(), Weight::Quantised(_)), "{kind}");
            let side = &slot.sides()[0];
            numbers(&(side.factors.product(&tokens(5)).unwrap() * side.scale).unwrap())
        } else {
            let delta = (slot.dense().unwrap().unwrap() - slot.original_f32().unwrap()).unwrap();
            numbers(&tokens(5).matmul(&delta.t().unwrap()).unwrap())
        };
        let largest = expected.iter().fold(0.0_f32, |m, n| m.max(n.abs()));
        for (got, expected) in got.iter().zip(&expected) {
            assert!((got - expected).abs() <= 1e-4 * largest, "{kind}: {got} {expected}");
        }
        loras.apply(&[], &layers).unwrap();
        assert!(!slot.is_patched() && slot.quantisation().is_some(), "{kind}");
    }
}
