//! What files that people have do beside the rules.

use candle_core::DType;
use sd_worker::weights::lora::LoraError;

use crate::support::{Given, f32s};

use super::support::{changes, every, folder_with, made, named, tiny};

fn integer(name: &str, number: i64) -> Given {
    Given {
        name: name.to_owned(),
        dtype: "I64",
        shape: vec![],
        bytes: number.to_le_bytes().to_vec(),
    }
}

#[test]
fn an_alpha_may_be_an_integer() {
    // diffusers' `convert_state_dict_to_kohya` writes `torch.tensor(len(weight))`.
    let layers = made(&[("conv_out", &[2, 3])], false);
    let before = every(&layers);
    let (_root, mut loras) = folder_with(&[
        f32s("lora_unet_conv_out.lora_down.weight", &[2, 3], &[1.0; 6]),
        f32s("lora_unet_conv_out.lora_up.weight", &[2, 2], &[1.0; 4]),
        integer("lora_unet_conv_out.alpha", 1),
    ]);
    loras.apply(&[named("x", 1.0)], &layers).unwrap();
    let changed = changes(&layers, &before, "conv_out");
    assert!(changed.iter().all(|c| (c - 1.0).abs() < 1e-4), "{changed:?}");
}

#[test]
fn an_integer_in_the_place_of_a_matrix_is_refused() {
    let layers = made(&[("conv_out", &[1, 1])], false);
    let (_root, mut loras) = folder_with(&[
        integer("lora_unet_conv_out.lora_down.weight", 1),
        f32s("lora_unet_conv_out.lora_up.weight", &[1, 1], &[1.0]),
    ]);
    let error = loras.apply(&[named("x", 1.0)], &layers).unwrap_err();
    assert!(matches!(error, LoraError::File { .. }), "{error}");
}

/// diffusers' `_maybe_expand_lora_state_dict`: a LoRA of FLUX.1 dev on FLUX.1 Fill, of SD 1.5 on its inpainting model.
#[test]
fn the_entrance_of_an_inpainting_model_is_changed_as_far_as_the_lora_goes() {
    let layers = made(
        &[
            ("conv_in", &[2, 3, 2, 2]),
            ("x_embedder", &[2, 5]),
            ("conv_out", &[2, 5]),
        ],
        false,
    );
    let before = every(&layers);
    let pair = |layer: &str, shape: &[usize]| {
        let count = shape.iter().product::<usize>();
        let numbers: Vec<f32> = (1..=count).map(|n| n as f32).collect();
        let ones = vec![1; shape.len() - 2];
        let up: Vec<usize> = [2, 1].into_iter().chain(ones).collect();
        [
            f32s(&format!("{layer}.lora_down.weight"), shape, &numbers),
            f32s(&format!("{layer}.lora_up.weight"), &up, &[1.0, 10.0]),
        ]
    };
    let tensors = [
        pair("lora_unet_conv_in", &[1, 2, 2, 2]),
        pair("transformer.x_embedder", &[1, 3]),
    ];
    let (_root, mut loras) = folder_with(&tensors.concat());
    loras.apply(&[named("x", 1.0)], &layers).unwrap();
    let near = |name: &str, expected: &[f32]| {
        let changed = changes(&layers, &before, name);
        assert_eq!(changed.len(), expected.len());
        let far = changed
            .iter()
            .zip(expected)
            .any(|(a, b)| (a - b).abs() > 1e-4 * (1.0 + b.abs())); // 17 bits are held with AMX
        assert!(!far, "{name}: {changed:?}");
    };
    let row = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 0.0, 0.0, 0.0, 0.0];
    near("conv_in", &[row, row.map(|n| n * 10.0)].concat());
    let row = [1.0, 2.0, 3.0, 0.0, 0.0];
    near("x_embedder", &[row, row.map(|n| n * 10.0)].concat());
    let (_root, mut loras) = folder_with(&pair("lora_unet_conv_out", &[1, 3]));
    let error = loras.apply(&[named("x", 1.0)], &layers).unwrap_err();
    assert!(matches!(error, LoraError::OtherModel { .. }), "{error}");
}

#[test]
fn a_change_that_a_file_has_under_two_names_counts_once() {
    let layers = made(&[("mid_block.attentions.0.proj_in", &[2, 3])], false);
    let before = every(&layers);
    let names = [
        "unet.mid_block.attentions.0.proj_in",
        "lora_unet_mid_block_attentions_0_proj_in",
    ];
    let tensors = names.map(|layer| {
        [
            f32s(&format!("{layer}.lora_down.weight"), &[1, 3], &[1.0; 3]),
            f32s(&format!("{layer}.lora_up.weight"), &[2, 1], &[0.5; 2]),
        ]
    });
    let (_root, mut loras) = folder_with(&tensors.concat());
    let applied = loras.apply(&[named("x", 1.0)], &layers).unwrap();
    assert_eq!(
        applied.warnings,
        [
            "lora `x`: 1 of 2 keys change what others of the file change, and were left out: \
             `unet.mid_block.attentions.0.proj_in`"
        ]
    );
    let changed = changes(&layers, &before, "mid_block.attentions.0.proj_in");
    assert!(changed.iter().all(|c| (c - 0.5).abs() < 1e-4), "{changed:?}");
}

/// diffusers' `DIFFUSERS_OLD_TO_PEFT`.
#[test]
fn early_names_of_a_text_encoder_s_projections_are_known() {
    let layers = tiny(DType::F32);
    let before = every(&layers);
    let early = "text_encoder.text_model.encoder.layers.0.self_attn";
    for (theirs, ours) in [
        ("to_q", "q_proj"),
        ("to_k", "k_proj"),
        ("to_v", "v_proj"),
        ("to_out", "out_proj"),
    ] {
        let name = format!("{early}.{ours}");
        let width = (before[&name].len() as f64).sqrt() as usize;
        let (_root, mut loras) = folder_with(&[
            f32s(
                &format!("{early}.{theirs}_lora.down.weight"),
                &[1, width],
                &vec![1.0; width],
            ),
            f32s(
                &format!("{early}.{theirs}_lora.up.weight"),
                &[width, 1],
                &vec![0.5; width],
            ),
        ]);
        let applied = loras.apply(&[named("x", 1.0)], &layers).unwrap();
        assert_eq!((applied.layers, applied.touches_text), (1, true), "{theirs}");
        let after = every(&layers);
        let changed = after[&name].iter().zip(&before[&name]).map(|(a, b)| a - b);
        assert!(changed.into_iter().all(|c| (c - 0.5).abs() < 1e-4), "{theirs}");
        loras.apply(&[], &layers).unwrap();
    }
}
