//! Layers are found by every naming, fused ones among them.

use candle_core::DType;
use std::fs;

use crate::support::f32s;

use super::support::{changes, every, fixtures, folder_with, made, named, tiny};

#[test]
fn every_layer_is_found_by_its_original_name() {
    let names: serde_json::Value =
        serde_json::from_slice(&fs::read(fixtures().join("weights/names.json")).unwrap()).unwrap();
    let layers = tiny(DType::F32);
    let mut seen = 0;
    for row in names["sd1"].as_array().unwrap() {
        let (theirs, ours) = (row[0].as_str().unwrap(), row[2][0].as_str().unwrap());
        let layer = ours.strip_suffix(".weight").filter(|_| row[1] == "unet");
        let Some(slot) = layer.and_then(|layer| layers.denoiser.get(layer)) else {
            continue;
        };
        let own = theirs
            .strip_prefix("model.diffusion_model.")
            .unwrap()
            .strip_suffix(".weight")
            .unwrap();
        let shape = slot.shape();
        let inputs: usize = shape[1..].iter().product();
        for name in [
            format!("lora_unet_{}", own.replace('.', "_")),
            format!("diffusion_model.{own}"),
        ] {
            let (_root, mut loras) = folder_with(&[
                f32s(&format!("{name}.lora_down.weight"), &[1, inputs], &vec![1.0; inputs]),
                f32s(&format!("{name}.lora_up.weight"), &[shape[0], 1], &vec![1.0; shape[0]]),
            ]);
            let applied = loras.apply(&[named("x", 1.0)], &layers).unwrap();
            assert!(slot.is_patched() && applied.layers == 1, "{name} is {ours}");
            loras.apply(&[], &layers).unwrap();
        }
        seen += 1;
    }
    assert!(seen > 60, "{seen}");
}

#[test]
fn fused_layers_of_flux_are_taken_apart_in_every_naming() {
    let w = 4;
    let double = [
        "to_q",
        "to_k",
        "to_v",
        "add_q_proj",
        "add_k_proj",
        "add_v_proj",
        "to_out.0",
        "to_add_out",
    ];
    let mut shapes: Vec<(String, Vec<usize>)> = double
        .iter()
        .map(|layer| (format!("transformer_blocks.0.attn.{layer}"), vec![w, w]))
        .collect();
    for layer in ["attn.to_q", "attn.to_k", "attn.to_v"] {
        shapes.push((format!("single_transformer_blocks.0.{layer}"), vec![w, w]));
    }
    shapes.push(("single_transformer_blocks.0.proj_mlp".to_owned(), vec![4 * w, w]));
    shapes.push(("single_transformer_blocks.0.proj_out".to_owned(), vec![w, 5 * w]));
    shapes.push(("norm_out.linear".to_owned(), vec![2 * w, w]));
    let shapes: Vec<(&str, &[usize])> = shapes
        .iter()
        .map(|(name, shape)| (name.as_str(), shape.as_slice()))
        .collect();
    let layers = made(&shapes, false);
    let before = every(&layers);
    let d = "transformer_blocks.0.attn";
    let s = "single_transformer_blocks.0";
    let image = [format!("{d}.to_q"), format!("{d}.to_k"), format!("{d}.to_v")];
    let text = [
        format!("{d}.add_q_proj"),
        format!("{d}.add_k_proj"),
        format!("{d}.add_v_proj"),
    ];
    let linear1 = [
        format!("{s}.attn.to_q"),
        format!("{s}.attn.to_k"),
        format!("{s}.attn.to_v"),
        format!("{s}.proj_mlp"),
    ];
    let kohya = ("lora_down.weight", "lora_up.weight");
    let peft = ("lora_A.weight", "lora_B.weight");
    let xlabs = ("down.weight", "up.weight");
    let out = vec![format!("{s}.proj_out")];
    let cases: Vec<(&str, (&str, &str), Vec<String>)> = vec![
        ("lora_unet_double_blocks_0_img_attn_qkv", kohya, image.to_vec()),
        ("lora_unet_double_blocks_0_txt_attn_qkv", kohya, text.to_vec()),
        ("lora_unet_single_blocks_0_linear1", kohya, linear1.to_vec()),
        ("double_blocks.0.img_attn.qkv", peft, image.to_vec()),
        ("diffusion_model.double_blocks.0.txt_attn.qkv", peft, text.to_vec()),
        ("double_blocks.0.processor.qkv_lora1", xlabs, image.to_vec()),
        ("double_blocks.0.processor.qkv_lora2", xlabs, text.to_vec()),
        ("single_blocks.0.processor.qkv_lora", xlabs, linear1[..3].to_vec()),
        ("transformer.single_transformer_blocks.0.proj_out", peft, out),
        (
            "lora_transformer_transformer_blocks_0_attn_to_k",
            kohya,
            image[1..2].to_vec(),
        ),
    ];
    for (name, (down, up), ours) in cases {
        let heights: Vec<usize> = ours
            .iter()
            .map(|layer| layers.denoiser.get(layer).unwrap().shape()[0])
            .collect();
        let inputs = layers.denoiser.get(&ours[0]).unwrap().shape()[1];
        let rows: usize = heights.iter().sum();
        let ups: Vec<f32> = (0..rows).map(|row| row as f32 + 1.0).collect();
        let (_root, mut loras) = folder_with(&[
            f32s(&format!("{name}.{down}"), &[1, inputs], &vec![1.0; inputs]),
            f32s(&format!("{name}.{up}"), &[rows, 1], &ups),
        ]);
        let applied = loras
            .apply(&[named("x", 1.0)], &layers)
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(applied.layers, ours.len(), "{name}");
        let mut row = 0.0;
        for (layer, height) in ours.iter().zip(&heights) {
            for change in changes(&layers, &before, layer).chunks(inputs).take(*height) {
                row += 1.0;
                assert!(
                    change.iter().all(|c| (c - row).abs() < 1e-4),
                    "{name} {layer} {row}: {change:?}"
                );
            }
        }
        loras.apply(&[], &layers).unwrap();
    }
    let name = "lora_unet_final_layer_adaLN_modulation_1";
    let ups: Vec<f32> = (0..2 * w).map(|row| row as f32 + 1.0).collect();
    let (_root, mut loras) = folder_with(&[
        f32s(&format!("{name}.lora_down.weight"), &[1, w], &vec![1.0; w]),
        f32s(&format!("{name}.lora_up.weight"), &[2 * w, 1], &ups),
    ]);
    loras.apply(&[named("x", 1.0)], &layers).unwrap();
    let firsts: Vec<f32> = changes(&layers, &before, "norm_out.linear")
        .chunks(w)
        .map(|row| row[0].round())
        .collect();
    assert_eq!(
        firsts,
        [5.0, 6.0, 7.0, 8.0, 1.0, 2.0, 3.0, 4.0],
        "scale and shift change places"
    );
}
