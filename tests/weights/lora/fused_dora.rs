//! DoRA of layers that are one in the file and several in the model.

use crate::support::f32s;

use super::support::{every, folder_with, held, made, named};

/// `m * (W + s * B A) / |W + s * B A|` with the length taken along each row: <https://arxiv.org/abs/2402.09353>.
fn expected(weight: &[f32], down: &[f32], up: f32, magnitude: f32, strength: f32) -> Vec<f32> {
    let changed: Vec<f32> = weight.iter().zip(down).map(|(w, d)| w + up * d).collect();
    let length = changed.iter().map(|n| n * n).sum::<f32>().sqrt();
    let full = changed.iter().map(|n| n * magnitude / length);
    weight
        .iter()
        .zip(full)
        .map(|(w, full)| w + strength * (full - w))
        .collect()
}

#[test]
fn each_row_gets_its_own_length() {
    let d = "transformer_blocks.0.attn";
    let qkv = [format!("{d}.to_q"), format!("{d}.to_k"), format!("{d}.to_v")];
    let cases = [
        ("lora_unet_double_blocks_0_img_attn_qkv", qkv.to_vec(), 4, false),
        (
            "lora_unet_final_layer_adaLN_modulation_1",
            vec!["norm_out.linear".to_owned()],
            8,
            true,
        ),
    ];
    for (at, ours, height, swapped) in cases {
        let shape = [height, 6];
        let shapes: Vec<(&str, &[usize])> = ours.iter().map(|name| (name.as_str(), shape.as_slice())).collect();
        let layers = made(&shapes, false);
        let before = every(&layers);
        let rows = ours.len() * height;
        let down: Vec<f32> = (0..6).map(|i| 0.3 - 0.1 * i as f32).collect();
        let up: Vec<f32> = (0..rows).map(|i| 0.5 + 0.25 * i as f32).collect();
        let magnitude: Vec<f32> = (0..rows).map(|i| 1.0 + 0.5 * i as f32).collect();
        let (_root, mut loras) = folder_with(&[
            f32s(&format!("{at}.lora_down.weight"), &[1, 6], &down),
            f32s(&format!("{at}.lora_up.weight"), &[rows, 1], &up),
            f32s(&format!("{at}.dora_scale"), &[rows, 1], &magnitude),
        ]);
        loras.apply(&[named("x", 0.8)], &layers).unwrap();
        for (part, name) in ours.iter().enumerate() {
            let after = held(&layers.denoiser.get(name).unwrap());
            for (row, found) in after.chunks(6).enumerate() {
                let theirs = if swapped {
                    (row + rows / 2) % rows
                } else {
                    part * height + row
                };
                let weight = &before[&format!("unet.{name}")][row * 6..][..6];
                let expected = expected(weight, &down, up[theirs], magnitude[theirs], 0.8);
                for (found, expected) in found.iter().zip(expected) {
                    assert!(
                        (found - expected).abs() < 1e-5 * expected.abs().max(1.0),
                        "{name} {row}: {found} {expected}"
                    );
                }
            }
        }
        loras.apply(&[], &layers).unwrap();
        assert_eq!(every(&layers), before);
    }
}

/// As [`expected`], with the length taken along each column of all the layers that are one in the file.
#[test]
fn each_column_gets_its_length_over_all_the_parts() {
    let d = "transformer_blocks.0.attn";
    let qkv = [format!("{d}.to_q"), format!("{d}.to_k"), format!("{d}.to_v")];
    let cases = [
        ("lora_unet_double_blocks_0_img_attn_qkv", qkv.to_vec(), 2, false),
        (
            "lora_unet_final_layer_adaLN_modulation_1",
            vec!["norm_out.linear".to_owned()],
            6,
            true,
        ),
    ];
    for (at, ours, height, swapped) in cases {
        for quantised in [false, true] {
            let columns = if quantised { 32 } else { 6 };
            let shape = [height, columns];
            let shapes: Vec<(&str, &[usize])> = ours.iter().map(|name| (name.as_str(), shape.as_slice())).collect();
            let layers = made(&shapes, quantised);
            let stored = |name: &String| layers.denoiser.get(name).unwrap().original_f32().unwrap();
            let before: Vec<Vec<f32>> = ours.iter().flat_map(|name| stored(name).to_vec2().unwrap()).collect();
            let rows = before.len();
            let theirs = |row: usize| if swapped { (row + rows / 2) % rows } else { row };
            let down: Vec<f32> = (0..columns).map(|i| 0.3 - 0.1 * i as f32).collect();
            let up: Vec<f32> = (0..rows).map(|i| 0.5 + 0.25 * i as f32).collect();
            let magnitude: Vec<f32> = (0..columns).map(|i| 1.0 + 0.5 * i as f32).collect();
            let (_root, mut loras) = folder_with(&[
                f32s(&format!("{at}.lora_down.weight"), &[1, columns], &down),
                f32s(&format!("{at}.lora_up.weight"), &[rows, 1], &up),
                f32s(&format!("{at}.dora_scale"), &[1, columns], &magnitude),
            ]);
            loras.apply(&[named("x", 1.0)], &layers).unwrap();
            let after: Vec<f32> = ours
                .iter()
                .flat_map(|name| held(&layers.denoiser.get(name).unwrap()))
                .collect();
            for column in 0..columns {
                let changed: Vec<f32> = (0..rows)
                    .map(|row| before[row][column] + up[theirs(row)] * down[column])
                    .collect();
                let length = changed.iter().map(|n| n * n).sum::<f32>().sqrt();
                for (row, changed) in changed.iter().enumerate() {
                    let (found, expected) = (after[row * columns + column], changed * magnitude[column] / length);
                    assert!(
                        (found - expected).abs() < 1e-5 * expected.abs().max(1.0),
                        "{at} {row} {column}: {found} {expected}"
                    );
                }
            }
            loras.apply(&[], &layers).unwrap();
            assert!(
                layers
                    .denoiser
                    .names()
                    .iter()
                    .all(|name| !layers.denoiser.get(name).unwrap().is_patched())
            );
        }
    }
}

/// Of a square weight only the shape of the lengths tells rows from columns.
#[test]
fn lengths_of_a_square_weight_are_told_apart_by_their_shape() {
    let layers = made(&[("mid", &[3, 3])], false);
    let magnitude = [1.0, 2.0, 3.0];
    for (name, shape, by_columns) in [
        ("dora_scale", [3, 1], false),
        ("dora_scale", [1, 3], true),
        ("lora_magnitude_vector", [1, 3], false),
    ] {
        let (_root, mut loras) = folder_with(&[
            f32s("lora_unet_mid.lora_down.weight", &[1, 3], &[0.1, 0.2, 0.3]),
            f32s("lora_unet_mid.lora_up.weight", &[3, 1], &[0.3, -0.2, 0.1]),
            f32s(&format!("lora_unet_mid.{name}"), &shape, &magnitude),
        ]);
        loras.apply(&[named("x", 1.0)], &layers).unwrap();
        let after = held(&layers.denoiser.get("mid").unwrap());
        for (line, magnitude) in magnitude.iter().enumerate() {
            let number = |i: usize| after[if by_columns { i * 3 + line } else { line * 3 + i }];
            let length = (0..3).map(|i| number(i).powi(2)).sum::<f32>().sqrt();
            assert!((length - magnitude).abs() < 1e-5, "{name} {shape:?} {line}: {length}");
        }
    }
}
