//! LoRAs: every format changes the weights as its makers' code does, and taking it off gives the same bits back.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use sd_worker::domain::request::LoraRef;
use sd_worker::weights::lora::{Applied, Layers, LoraDir, LoraError, Loras};
use sd_worker::weights::{Folder, LayerTable, Precision, SafeTensors, SlotLayout, TensorSource, Weight, WeightSlot};
use tempfile::TempDir;

use crate::support::{Given, f32s, safetensors, write};

/// Largest distance to PEFT's merged weights, relative to the largest change of the layer.
const TOLERANCE: f32 = 2e-3;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// The layers of a component of the tiny Stable Diffusion 1 pipeline, as the models enter them.
fn table(component: &str, dtype: DType) -> Rc<LayerTable> {
    let folder = Folder::open(&fixtures().join("pipelines/sd1"), Precision::Full).unwrap();
    let source = folder.tensors_in(component).unwrap();
    let table = LayerTable::default();
    for name in source.names() {
        let raw = source.read(&name).unwrap();
        if let (Some(layer), true) = (name.strip_suffix(".weight"), raw.shape.len() > 1) {
            let layout = if raw.shape.len() == 4 {
                SlotLayout::ConvNhwc
            } else {
                SlotLayout::AsStored
            };
            let weight = raw.to_tensor(&name, dtype, &Device::Cpu).unwrap();
            table.insert(
                layer.to_owned(),
                Rc::new(WeightSlot::of_dense(&weight, layout).unwrap()),
            );
        }
    }
    Rc::new(table)
}

fn tiny(dtype: DType) -> Layers {
    Layers {
        denoiser: table("unet", dtype),
        text_encoder: Some(table("text_encoder", dtype)),
        text_encoder_2: None,
    }
}

/// Layers of the given shapes with weights of small numbers.
fn made(shapes: &[(&str, &[usize])], quantised: bool) -> Layers {
    let table = LayerTable::default();
    for (name, shape) in shapes {
        let count: usize = shape.iter().product();
        let numbers: Vec<f32> = (0..count).map(|i| ((i * 29 % 83) as f32 - 41.0) / 41.0).collect();
        let weight = Tensor::from_vec(numbers, *shape, &Device::Cpu).unwrap();
        let slot = if quantised {
            WeightSlot::quantised(QTensor::quantize(&weight, GgmlDType::Q8_0).unwrap(), DType::F32)
        } else {
            let layout = if shape.len() == 4 {
                SlotLayout::ConvNhwc
            } else {
                SlotLayout::AsStored
            };
            WeightSlot::of_dense(&weight, layout).unwrap()
        };
        table.insert((*name).to_owned(), Rc::new(slot));
    }
    Layers {
        denoiser: Rc::new(table),
        text_encoder: None,
        text_encoder_2: None,
    }
}

/// What the layer computes with, as `f32` in the file's layout.
fn held(slot: &WeightSlot) -> Vec<f32> {
    let weight = slot.dense().unwrap().unwrap();
    let weight = if weight.rank() == 4 {
        weight.permute((0, 3, 1, 2)).unwrap()
    } else {
        weight
    };
    weight
        .to_dtype(DType::F32)
        .unwrap()
        .contiguous()
        .unwrap()
        .flatten_all()
        .unwrap()
        .to_vec1()
        .unwrap()
}

fn every(layers: &Layers) -> BTreeMap<String, Vec<f32>> {
    let mut all = BTreeMap::new();
    let tables = [
        ("unet", Some(&layers.denoiser)),
        ("text_encoder", layers.text_encoder.as_ref()),
    ];
    for (component, table) in tables {
        for name in table.iter().flat_map(|table| table.names()) {
            all.insert(format!("{component}.{name}"), held(&table.unwrap().get(&name).unwrap()));
        }
    }
    all
}

fn named(name: &str, strength: f32) -> LoraRef {
    LoraRef {
        name: name.to_owned(),
        strength,
    }
}

fn golden() -> Loras {
    Loras::new(Some(LoraDir::new(fixtures().join("weights"))))
}

/// A folder with one LoRA of these tensors, named `x`.
fn folder_with(tensors: &[Given]) -> (TempDir, Loras) {
    let root = tempfile::tempdir().unwrap();
    write(root.path(), "x.safetensors", safetensors(tensors));
    let loras = Loras::new(Some(LoraDir::new(root.path().to_owned())));
    (root, loras)
}

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
fn several_at_once_add_up_and_a_text_encoder_is_reported() {
    let layers = tiny(DType::F32);
    let before = every(&layers);
    let mut loras = golden();
    let alone = |loras: &mut Loras, wanted: &[LoraRef]| {
        loras.apply(wanted, &layers).unwrap();
        every(&layers)
    };
    let one = alone(&mut loras, &[named("lora-lora", 0.7)]);
    let other = alone(&mut loras, &[named("lora-loha", -0.3)]);
    let both = alone(&mut loras, &[named("lora-lora", 0.7), named("lora-loha", -0.3)]);
    for (layer, numbers) in &both {
        for (i, number) in numbers.iter().enumerate() {
            let expected = one[layer][i] + other[layer][i] - before[layer][i];
            assert!((number - expected).abs() < 1e-5, "{layer}");
        }
    }
    assert!(loras.apply(&[named("lora-lora", 1.0)], &layers).unwrap().touches_text);
    let applied = loras.apply(&[named("lora-loha", 1.0)], &layers).unwrap();
    assert!(applied.touches_text, "the text encoder got its own weights back");
    assert!(!loras.apply(&[named("lora-loha", 0.5)], &layers).unwrap().touches_text);
}

#[test]
fn the_same_loras_again_cost_nothing_and_none_gives_the_original_back() {
    let layers = tiny(DType::BF16);
    let before = every(&layers);
    let mut loras = golden();
    assert!(!loras.apply(&[], &layers).unwrap().changed);
    assert!(loras.apply(&[named("lora-lora", 1.0)], &layers).unwrap().changed);
    assert!(!loras.apply(&[named("lora-lora", 1.0)], &layers).unwrap().changed);
    assert!(loras.apply(&[named("lora-lora", 0.9)], &layers).unwrap().changed);
    let off = loras.apply(&[], &layers).unwrap();
    assert!(off.changed && off.touches_text);
    assert_eq!(every(&layers), before);
}

#[test]
fn a_thousand_swaps_leave_the_same_bits() {
    let shapes: &[(&str, &[usize])] = &[("mid_block.attentions.0.proj_in", &[16, 8])];
    let layers = made(shapes, false);
    let slot = layers.denoiser.get(shapes[0].0).unwrap();
    let before = held(&slot);
    let at = "lora_unet_mid_block_attentions_0_proj_in";
    let (_root, mut loras) = folder_with(&[
        f32s(&format!("{at}.lora_down.weight"), &[2, 8], &[0.1; 16]),
        f32s(&format!("{at}.lora_up.weight"), &[16, 2], &[0.2; 32]),
    ]);
    for round in 0..1000 {
        let strength = (round % 17) as f32 * 0.1 - 0.75;
        loras.apply(&[named("x", strength)], &layers).unwrap();
        if round % 100 == 0 {
            assert_ne!(held(&slot), before);
            loras.apply(&[], &layers).unwrap();
        }
    }
    loras.apply(&[], &layers).unwrap();
    assert!(held(&slot).iter().zip(&before).all(|(a, b)| a.to_bits() == b.to_bits()));
}

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
    assert_eq!(
        (sides.len(), sides[0].down.dims(), sides[0].up.dims()),
        (1, [2, 32].as_slice(), [64, 2].as_slice())
    );
    assert!((sides[0].scale - 0.4).abs() < 1e-6, "{}", sides[0].scale);
    loras.apply(&[], &layers).unwrap();
    assert!(!slot.is_patched());
}

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

/// The change of one layer of `made`, row by row.
fn changes(layers: &Layers, before: &BTreeMap<String, Vec<f32>>, name: &str) -> Vec<f32> {
    let after = held(&layers.denoiser.get(name).unwrap());
    after
        .iter()
        .zip(&before[&format!("unet.{name}")])
        .map(|(a, b)| a - b)
        .collect()
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

#[test]
fn keys_that_match_nothing_are_reported_and_none_matching_is_an_error() {
    let layers = made(&[("conv_in", &[2, 3])], false);
    let (_root, mut loras) = folder_with(&[
        f32s("lora_unet_conv_in.lora_down.weight", &[1, 3], &[1.0; 3]),
        f32s("lora_unet_conv_in.lora_up.weight", &[2, 1], &[1.0; 2]),
        f32s("lora_unet_elsewhere.lora_down.weight", &[1, 3], &[1.0; 3]),
        f32s("lora_unet_elsewhere.lora_up.weight", &[2, 1], &[1.0; 2]),
        f32s("something.bias", &[1], &[1.0]),
    ]);
    let Applied { warnings, .. } = loras.apply(&[named("x", 1.0)], &layers).unwrap();
    assert_eq!(
        warnings,
        ["lora `x`: 2 of 3 keys match nothing in this model: `something.bias`, `lora_unet_elsewhere`"]
    );
    let (_root, mut loras) = folder_with(&[f32s("lora_unet_elsewhere.lora_down.weight", &[1, 3], &[1.0; 3])]);
    let error = loras.apply(&[named("x", 1.0)], &layers).unwrap_err();
    assert!(
        matches!(error, LoraError::NothingMatches { .. }) && error.is_callers(),
        "{error}"
    );
    assert!(error.to_string().contains("lora_unet_elsewhere"), "{error}");
}

#[test]
fn a_lora_of_another_model_or_with_damage_leaves_the_weights_alone() {
    let layers = made(&[("conv_in", &[2, 3]), ("conv_out", &[2, 3])], false);
    let before = every(&layers);
    let good = |tensors: Vec<Given>| {
        let mut all = tensors;
        all.push(f32s("lora_unet_conv_in.lora_down.weight", &[1, 3], &[1.0; 3]));
        all.push(f32s("lora_unet_conv_in.lora_up.weight", &[2, 1], &[1.0; 2]));
        all
    };
    let down = |shape: &[usize]| {
        f32s(
            "lora_unet_conv_out.lora_down.weight",
            shape,
            &vec![1.0; shape.iter().product()],
        )
    };
    let up = |shape: &[usize]| {
        f32s(
            "lora_unet_conv_out.lora_up.weight",
            shape,
            &vec![1.0; shape.iter().product()],
        )
    };
    let cases: Vec<(Vec<Given>, &str)> = vec![
        (
            vec![down(&[1, 5]), up(&[2, 1])],
            "is for another model: `lora_unet_conv_out` changes 10 numbers",
        ),
        (vec![down(&[1, 3])], "incomplete: it has only Down"),
        (vec![down(&[2, 3]), up(&[2, 1])], "do not fit together"),
        (vec![f32s("lora_unet_conv_out.diff", &[2, 3], &[f32::NAN; 6])], "NaN"),
    ];
    for (tensors, expected) in cases {
        let (_root, mut loras) = folder_with(&good(tensors));
        let error = loras.apply(&[named("x", 1.0)], &layers).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
        assert_eq!(every(&layers), before);
    }
    let root = tempfile::tempdir().unwrap();
    write(root.path(), "x.safetensors", b"cut short");
    let mut loras = Loras::new(Some(LoraDir::new(root.path().to_owned())));
    let error = loras.apply(&[named("x", 1.0)], &layers).unwrap_err();
    assert!(matches!(error, LoraError::File { .. }), "{error}");
}

#[test]
fn only_files_below_the_folder_are_opened() {
    let root = tempfile::tempdir().unwrap();
    let bytes = safetensors(&[f32s("lora_unet_conv_in.diff", &[1], &[1.0])]);
    write(root.path(), "loras/styles/ink.safetensors", &bytes);
    write(root.path(), "loras/plain.safetensors", &bytes);
    write(root.path(), "secret.safetensors", &bytes);
    symlink("../secret.safetensors", root.path().join("loras/link.safetensors")).unwrap();
    symlink("..", root.path().join("loras/up")).unwrap();
    symlink("styles/ink.safetensors", root.path().join("loras/inner.safetensors")).unwrap();
    let dir = LoraDir::new(root.path().join("loras"));
    for name in ["plain", "plain.safetensors", "styles/ink", "ink", "INK", "inner"] {
        assert!(dir.find(name).is_ok(), "{name}");
    }
    for name in [
        "../secret",
        "/etc/passwd",
        "styles/../../secret",
        "link",
        "up/secret",
        "",
        "a\\b",
        "./plain",
    ] {
        let error = dir.find(name).unwrap_err();
        assert!(matches!(error, LoraError::Outside { .. }), "{name}: {error}");
    }
    let error = dir.find("nothing").unwrap_err().to_string();
    assert!(error.contains("plain") && error.contains("styles/ink"), "{error}");
    write(root.path(), "loras/other/ink.safetensors", &bytes);
    assert!(matches!(dir.find("ink").unwrap_err(), LoraError::Ambiguous { .. }));
    let names: Vec<String> = dir.list().into_iter().map(|info| info.name).collect();
    assert_eq!(names, ["inner", "other/ink", "plain", "styles/ink"]);
    let layers = made(&[("conv_in", &[1, 1])], false);
    let error = Loras::new(None).apply(&[named("plain", 1.0)], &layers).unwrap_err();
    assert!(matches!(error, LoraError::NoFolder { .. }), "{error}");
    let error = Loras::new(Some(dir))
        .apply(&[named("plain", f32::NAN)], &layers)
        .unwrap_err();
    assert!(matches!(error, LoraError::Strength { .. }), "{error}");
}

#[test]
fn metadata_gives_the_words_that_trigger() {
    let list = golden().list();
    let kohya = list.iter().find(|info| info.name == "lora-kohya").unwrap();
    assert_eq!(kohya.trigger_words, ["rusty robot", "beach"]);
    assert_eq!(kohya.base_model.as_deref(), Some("sd_v1"));
    let plain = list.iter().find(|info| info.name == "lora-loha").unwrap();
    assert_eq!((plain.trigger_words.len(), plain.base_model.as_deref()), (0, None));
}
