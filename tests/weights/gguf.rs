//! GGUF files: numbers as PyPI's `gguf` expands them, models under their makers' names, and damaged files.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use sd_worker::domain::model::Family;
use sd_worker::weights::{
    Component, Gguf, ModelFiles, OpenOptions, RawTensor, SafeTensors, StoredType, TensorSource, WeightsError,
};

use crate::support::{f32s, safetensors, write};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/weights")
        .join(name)
}

/// Largest distance between GGUF's own expansion and ours, relative to the largest number.
const TOLERANCE: f32 = 1e-6;

#[test]
fn every_type_expands_to_what_the_reference_says() {
    let file = Gguf::open(&fixture("types.gguf")).unwrap();
    let expected = SafeTensors::open(&fixture("types.safetensors")).unwrap();
    assert_eq!(file.names().len(), 14);
    assert_eq!(file.metadata()["general.architecture"], "flux");
    for name in expected.names() {
        let (ours, theirs) = (file.read(&name).unwrap(), expected.read(&name).unwrap());
        assert_eq!(ours.shape, theirs.shape, "{name}");
        let (a, b) = (ours.to_f32(&name).unwrap(), theirs.to_f32(&name).unwrap());
        let largest = b.iter().fold(0.0_f32, |m, n| m.max(n.abs()));
        let apart = a.iter().zip(&b).fold(0.0_f32, |m, (x, y)| m.max((x - y).abs()));
        assert!(apart <= largest * TOLERANCE, "{name}: {apart} of {largest}");
        let bf16 = ours.to_tensor(&name, DType::BF16, &Device::Cpu).unwrap();
        assert_eq!((bf16.dims(), bf16.dtype()), (theirs.shape.as_slice(), DType::BF16));
    }
}

#[test]
fn rows_of_blocks_are_the_rows_of_the_whole() {
    let file = Gguf::open(&fixture("types.gguf")).unwrap();
    for name in file.names() {
        let whole = file.read(&name).unwrap().to_f32(&name).unwrap();
        let part = file.read_rows(&name, 1..3).unwrap();
        assert_eq!(part.shape[0], 2, "{name}");
        assert_eq!(part.to_f32(&name).unwrap(), whole[whole.len() / 3..], "{name}");
    }
}

pub fn gguf(path: &Path, tensors: &[(String, QTensor)]) {
    let named: Vec<(&str, &QTensor)> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let architecture = Value::String("test".to_owned());
    let mut file = std::fs::File::create(path).unwrap();
    gguf_file::write(&mut file, &[("general.architecture", &architecture)], &named).unwrap();
}

fn blocks(shape: &[usize], kind: GgmlDType) -> QTensor {
    let count: usize = shape.iter().product();
    let numbers: Vec<f32> = (0..count).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect();
    QTensor::quantize(&Tensor::from_vec(numbers, shape.to_vec(), &Device::Cpu).unwrap(), kind).unwrap()
}

/// A FLUX transformer of one double and one single block, 64 wide, under the makers' names.
pub fn flux(prefix: &str, kind: GgmlDType) -> Vec<(String, QTensor)> {
    let (w, h) = (64, 32);
    let mut shapes: Vec<(String, Vec<usize>)> = vec![
        ("img_in.weight".into(), vec![w, 64]),
        ("txt_in.weight".into(), vec![w, 96]),
        ("time_in.in_layer.weight".into(), vec![w, 256]),
        ("vector_in.in_layer.weight".into(), vec![w, 32]),
        ("guidance_in.in_layer.weight".into(), vec![w, 256]),
        ("final_layer.linear.weight".into(), vec![64, w]),
        ("final_layer.adaLN_modulation.1.weight".into(), vec![2 * w, w]),
        ("single_blocks.0.linear1.weight".into(), vec![7 * w, w]),
        ("single_blocks.0.norm.query_norm.scale".into(), vec![h]),
    ];
    for side in ["img", "txt"] {
        shapes.push((format!("double_blocks.0.{side}_attn.qkv.weight"), vec![3 * w, w]));
        shapes.push((format!("double_blocks.0.{side}_attn.norm.query_norm.scale"), vec![h]));
        shapes.push((format!("double_blocks.0.{side}_mlp.0.weight"), vec![4 * w, w]));
    }
    shapes
        .into_iter()
        .map(|(name, shape)| {
            let kind = if shape.len() == 1 { GgmlDType::F32 } else { kind };
            (format!("{prefix}{name}"), blocks(&shape, kind))
        })
        .collect()
}

/// The parts of a FLUX model that lie beside its transformer.
fn others(root: &Path) {
    let one = |name: &str, shape: &[usize]| f32s(name, shape, &vec![0.5; shape.iter().product()]);
    let vae = [
        one("decoder.mid.block_1.norm1.weight", &[4]),
        one("decoder.conv_in.weight", &[4, 16, 3, 3]),
        one("encoder.down.0.block.0.conv1.weight", &[4, 4, 3, 3]),
    ];
    write(root, "ae.safetensors", safetensors(&vae));
    let clip = [
        one("text_model.embeddings.token_embedding.weight", &[8, 64]),
        one("text_model.embeddings.position_embedding.weight", &[77, 64]),
        one("text_model.encoder.layers.0.layer_norm1.weight", &[64]),
        one("text_model.encoder.layers.0.mlp.fc1.weight", &[128, 64]),
    ];
    write(root, "clip_l.safetensors", safetensors(&clip));
}

fn t5(kind: GgmlDType, llama: bool) -> Vec<(String, QTensor)> {
    let attention = "encoder.block.0.layer.0.SelfAttention";
    let names: [(&str, &str, &[usize]); 4] = [
        ("token_embd.weight", "shared.weight", &[40, 64]),
        ("enc.blk.0.attn_q.weight", &format!("{attention}.q.weight"), &[64, 64]),
        (
            "enc.blk.0.attn_rel_b.weight",
            &format!("{attention}.relative_attention_bias.weight"),
            &[32, 2],
        ),
        (
            "enc.blk.0.ffn_gate.weight",
            "encoder.block.0.layer.1.DenseReluDense.wi_0.weight",
            &[128, 64],
        ),
    ];
    names
        .iter()
        .map(|(theirs, ours, shape)| {
            let kind = if shape[1] < 32 { GgmlDType::F32 } else { kind };
            ((if llama { *theirs } else { *ours }).to_owned(), blocks(shape, kind))
        })
        .collect()
}

fn same(ours: &RawTensor, expected: &Tensor, what: &str) {
    assert_eq!(ours.shape, expected.dims(), "{what}");
    let expected: Vec<f32> = expected.flatten_all().unwrap().to_vec1().unwrap();
    assert_eq!(ours.to_f32(what).unwrap(), expected, "{what}");
}

#[test]
fn a_flux_transformer_with_or_without_prefix_keeps_its_blocks() {
    for (prefix, kind) in [
        ("", GgmlDType::Q4_0),
        ("model.diffusion_model.", GgmlDType::Q8_0),
        ("", GgmlDType::Q5_1),
    ] {
        for llama in [true, false] {
            let root = tempfile::tempdir().unwrap();
            let tensors = flux(prefix, kind);
            gguf(&root.path().join("flux1-dev.gguf"), &tensors);
            others(root.path());
            gguf(&root.path().join("t5xxl.gguf"), &t5(GgmlDType::Q8_0, llama));
            let files = ModelFiles::open_path(&root.path().join("flux1-dev.gguf"), &OpenOptions::default()).unwrap();
            assert_eq!(files.family(), Family::FluxDev);
            assert_eq!(files.quantization().unwrap(), format!("{kind:?}").to_lowercase());
            let transformer = files.tensors(Component::Transformer).unwrap();
            let fused = &tensors
                .iter()
                .find(|(name, _)| name.ends_with("img_attn.qkv.weight"))
                .unwrap()
                .1;
            let fused = fused.dequantize(&Device::Cpu).unwrap();
            for (i, part) in ["to_q", "to_k", "to_v"].iter().enumerate() {
                let raw = transformer
                    .read(&format!("transformer_blocks.0.attn.{part}.weight"))
                    .unwrap();
                assert_eq!(raw.stored, StoredType::Ggml(kind), "blocks stay blocks");
                same(&raw, &fused.narrow(0, i * 64, 64).unwrap(), part);
            }
            let last = &tensors.iter().find(|(name, _)| name.contains("adaLN")).unwrap().1;
            let last = last.dequantize(&Device::Cpu).unwrap();
            let swapped = Tensor::cat(&[last.narrow(0, 64, 64).unwrap(), last.narrow(0, 0, 64).unwrap()], 0).unwrap();
            same(
                &transformer.read("norm_out.linear.weight").unwrap(),
                &swapped,
                "norm_out",
            );
            let config: serde_json::Value =
                serde_json::from_str(files.config(Component::Transformer).unwrap()).unwrap();
            assert_eq!(
                (config["num_layers"].as_u64(), config["guidance_embeds"].as_bool()),
                (Some(1), Some(true))
            );
            let text = files.tensors(Component::TextEncoder2).unwrap();
            assert_eq!(
                text.describe("shared.weight").unwrap(),
                (vec![40, 64], StoredType::Ggml(GgmlDType::Q8_0))
            );
            let config: serde_json::Value =
                serde_json::from_str(files.config(Component::TextEncoder2).unwrap()).unwrap();
            assert_eq!(
                (config["d_model"].as_u64(), config["num_heads"].as_u64()),
                (Some(64), Some(2))
            );
        }
    }
}

#[test]
fn what_a_bare_transformer_lacks_is_named() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("flux1-schnell-Q4_0.gguf");
    gguf(&path, &flux("", GgmlDType::Q4_0));
    let refusal = || {
        ModelFiles::open_path(&path, &OpenOptions::default())
            .map(|_| ())
            .unwrap_err()
            .to_string()
    };
    assert!(
        refusal().contains("VAE") && refusal().contains("ae.safetensors"),
        "{}",
        refusal()
    );
    others(root.path());
    assert!(
        refusal().contains("T5") && refusal().contains("t5xxl.safetensors"),
        "{}",
        refusal()
    );
}

#[test]
fn a_stable_diffusion_unet_lies_under_its_makers_names() {
    let root = tempfile::tempdir().unwrap();
    let kind = GgmlDType::Q8_0;
    let unet = [
        ("input_blocks.0.0.weight", vec![32, 4, 3, 3], GgmlDType::F16),
        ("input_blocks.1.0.in_layers.0.weight", vec![32], GgmlDType::F32),
        (
            "input_blocks.1.0.in_layers.2.weight",
            vec![32, 32, 3, 3],
            GgmlDType::F16,
        ),
        ("input_blocks.1.1.norm.weight", vec![32], GgmlDType::F32),
        ("input_blocks.1.1.proj_in.weight", vec![32, 32, 1, 1], GgmlDType::F16),
        (
            "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight",
            vec![32, 768],
            kind,
        ),
        (
            "input_blocks.1.1.transformer_blocks.0.norm1.weight",
            vec![32],
            GgmlDType::F32,
        ),
        ("out.2.weight", vec![4, 32, 3, 3], GgmlDType::F16),
    ];
    let unet: Vec<_> = unet
        .into_iter()
        .map(|(name, shape, kind)| (name.to_owned(), blocks(&shape, kind)))
        .collect();
    gguf(&root.path().join("unet.gguf"), &unet);
    others(root.path());
    std::fs::rename(root.path().join("ae.safetensors"), root.path().join("vae.safetensors")).unwrap();
    let files = ModelFiles::open_path(&root.path().join("unet.gguf"), &OpenOptions::default()).unwrap();
    assert_eq!((files.family(), files.quantization()), (Family::Sd1, Some("q8_0")));
    let source: Rc<dyn TensorSource> = files.tensors(Component::Unet).unwrap();
    let name = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight";
    assert_eq!(source.describe(name).unwrap(), (vec![32, 768], StoredType::Ggml(kind)));
    same(
        &source.read("conv_in.weight").unwrap(),
        &unet[0].1.dequantize(&Device::Cpu).unwrap(),
        "conv_in",
    );
}

fn damaged(bytes: &[u8]) -> Result<Gguf, WeightsError> {
    let file = tempfile::Builder::new().suffix(".gguf").tempfile().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    Gguf::open(file.path())
}

fn header(version: u32, tensors: u64, values: u64, rest: &[u8]) -> Vec<u8> {
    [
        b"GGUF",
        &version.to_le_bytes()[..],
        &tensors.to_le_bytes(),
        &values.to_le_bytes(),
        rest,
    ]
    .concat()
}

fn info(name: &str, shape: &[u64], kind: u32, offset: u64) -> Vec<u8> {
    let mut bytes = [
        &(name.len() as u64).to_le_bytes(),
        name.as_bytes(),
        &(shape.len() as u32).to_le_bytes(),
    ]
    .concat();
    shape.iter().for_each(|size| bytes.extend(size.to_le_bytes()));
    bytes.extend(kind.to_le_bytes());
    bytes.extend(offset.to_le_bytes());
    bytes
}

#[test]
fn each_damage_is_named() {
    let two = |a: Vec<u8>, b: Vec<u8>| header(3, 2, 0, &[a, b, vec![0; 256]].concat());
    let one = |a: Vec<u8>| header(3, 1, 0, &[a, vec![0; 256]].concat());
    let cases: &[(&str, Vec<u8>, &str)] = &[
        ("empty", Vec::new(), "beyond its end"),
        (
            "another file",
            b"PK\x03\x04 zip file with some text".to_vec(),
            "does not start as a GGUF",
        ),
        ("an old version", header(1, 0, 0, &[]), "version 1"),
        (
            "too many tensors",
            header(3, u64::MAX, 0, &[]),
            "more than it has room for",
        ),
        (
            "too many values",
            header(3, 0, 1 << 40, &[]),
            "more than it has room for",
        ),
        (
            "a name without end",
            header(3, 1, 0, &[&(1_u64 << 40).to_le_bytes()[..], &[0; 64]].concat()),
            "beyond its end",
        ),
        ("an unknown type", one(info("a", &[32], 20, 0)), "IQ4_NL (20)"),
        ("half a block", one(info("a", &[33], 8, 0)), "blocks of 32"),
        ("a tensor beyond the end", one(info("a", &[4096], 0, 0)), "cut short"),
        (
            "a shape that overflows",
            one(info("a", &[1 << 40, 1 << 40], 0, 0)),
            "tensor `a`",
        ),
        (
            "an offset that overflows",
            one(info("a", &[8], 0, u64::MAX - 31)),
            "cut short",
        ),
        ("an odd offset", one(info("a", &[8], 0, 5)), "multiple of 32"),
        (
            "five dimensions",
            one(info("a", &[1, 1, 1, 1, 1], 0, 0)),
            "5 dimensions",
        ),
        (
            "overlapping ranges",
            two(info("a", &[16], 0, 0), info("b", &[16], 0, 32)),
            "overlaps",
        ),
        (
            "a name that comes twice",
            two(info("a", &[8], 0, 0), info("a", &[8], 0, 32)),
            "`a` is there twice",
        ),
        (
            "an unknown value",
            header(
                3,
                0,
                1,
                &[&1_u64.to_le_bytes()[..], b"k", &99_u32.to_le_bytes(), &[0; 16]].concat(),
            ),
            "type 99",
        ),
    ];
    for (what, bytes, expected) in cases {
        match damaged(bytes) {
            Err(error @ WeightsError::Damaged { .. }) => {
                assert!(error.to_string().contains(expected), "{what}: {error}");
            }
            other => panic!("{what}: {other:?}"),
        }
    }
}

#[test]
fn every_cut_and_every_flipped_byte_is_an_error_or_readable_but_no_panic() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("x.gguf");
    gguf(
        &path,
        &[
            ("a".to_owned(), blocks(&[2, 32], GgmlDType::Q4_0)),
            ("b".to_owned(), blocks(&[3], GgmlDType::F32)),
        ],
    );
    let whole = std::fs::read(&path).unwrap();
    let padding = 31;
    for length in 0..whole.len() - padding {
        assert!(
            matches!(damaged(&whole[..length]), Err(WeightsError::Damaged { .. })),
            "{length} bytes"
        );
    }
    for at in 0..whole.len() {
        for flip in [0x01, 0x80, 0xff] {
            let mut bytes = whole.clone();
            bytes[at] ^= flip;
            if let Ok(file) = damaged(&bytes) {
                assert!(file.names().len() <= 2);
            }
        }
    }
}

#[test]
fn a_scale_that_is_not_finite_names_its_tensor() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("x.gguf");
    gguf(&path, &[("layer.weight".to_owned(), blocks(&[2, 32], GgmlDType::Q4_0))]);
    let mut bytes = std::fs::read(&path).unwrap();
    let data = bytes.len() - 64;
    bytes[data..data + 2].copy_from_slice(&[0x00, 0x7e]);
    std::fs::write(&path, bytes).unwrap();
    let error = Gguf::open(&path).unwrap().read("layer.weight").unwrap_err();
    assert!(
        matches!(&error, WeightsError::NotFinite { name, .. } if name == "layer.weight"),
        "{error}"
    );
}
