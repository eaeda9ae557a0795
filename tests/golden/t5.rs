//! T5's encoder and tokenizer against transformers and sentencepiece. Recipe: `tests/fixtures/flux/make_flux.py`.

use std::rc::Rc;

use candle_core::{DType, Device, Tensor};
use sd_worker::models::t5::{T5Config, T5Encoder};
use sd_worker::pipeline::flux::T5Tokenizer;
use sd_worker::weights::{TensorSource, Weights};
use serde_json::Value;

use crate::flux::{close, fixture, json, tensors, worst};

/// Largest difference over the largest value: one pass through three blocks in f32.
const TOLERANCE: f32 = 1e-4;
/// The same with bf16's eight bits.
const TOLERANCE_BF16: f32 = 0.08;

fn encoder(dtype: DType) -> (T5Encoder, T5Config) {
    let config: T5Config = serde_json::from_value(json("shared/text_encoder_2/config.json")).unwrap();
    let source: Rc<dyn TensorSource> = Rc::new(tensors("shared/text_encoder_2/model.safetensors"));
    let weights = Weights::new(source, Device::Cpu, dtype);
    let guessed = T5Config::from_weights(&weights).unwrap();
    assert_eq!(guessed, config);
    (T5Encoder::load(&weights, &config).unwrap(), config)
}

/// 300 tokens, so that distances reach past the last bucket; 20 of padding.
fn encoded(dtype: DType) -> Tensor {
    let data = tensors("t5.safetensors");
    let ids = ids(&data, "ids");
    let tokens = Tensor::from_vec(ids.clone(), (1, ids.len()), &Device::Cpu).unwrap();
    let hidden = encoder(dtype).0.forward(&tokens).unwrap();
    assert_eq!(hidden.dtype(), dtype);
    let rows = ids_tensor(&data);
    hidden
        .squeeze(0)
        .unwrap()
        .to_dtype(DType::F32)
        .unwrap()
        .index_select(&rows, 0)
        .unwrap()
}

fn ids(data: &dyn TensorSource, name: &str) -> Vec<u32> {
    let raw = data.read(name).unwrap();
    raw.bytes
        .as_chunks::<8>()
        .0
        .iter()
        .map(|b| i64::from_le_bytes(*b) as u32)
        .collect()
}

fn ids_tensor(data: &dyn TensorSource) -> Tensor {
    let rows = ids(data, "rows");
    Tensor::from_vec(rows.clone(), rows.len(), &Device::Cpu).unwrap()
}

#[test]
fn hidden_states_match_transformers() {
    close("t5", &encoded(DType::F32), &fixture("t5.safetensors", "out"), TOLERANCE);
}

#[test]
fn bf16_stays_close_and_f16_is_refused() {
    close(
        "t5 bf16",
        &encoded(DType::BF16),
        &fixture("t5.safetensors", "out"),
        TOLERANCE_BF16,
    );
    let source: Rc<dyn TensorSource> = Rc::new(tensors("shared/text_encoder_2/model.safetensors"));
    let weights = Weights::new(source, Device::Cpu, DType::F16);
    let error = T5Encoder::load(&weights, &T5Config::default()).unwrap_err().to_string();
    assert!(error.contains("bf16 or f32"), "{error}");
}

#[test]
fn token_ids_match_transformers_from_either_file() {
    let file = |name: &str| std::fs::read(crate::flux::path(name)).unwrap();
    let json_file = T5Tokenizer::from_json(&file("shared/tokenizer_2/tokenizer.json")).unwrap();
    let spiece = T5Tokenizer::from_sentencepiece(&file("spiece/spiece.model")).unwrap();
    for row in json("spiece/expected.json").as_array().unwrap() {
        let prompt = row["prompt"].as_str().unwrap();
        let expected: Vec<u32> = row["ids"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(Value::as_u64)
            .map(|id| id as u32)
            .collect();
        for tokenizer in [&json_file, &spiece] {
            let tokens = tokenizer.encode([(prompt, 1.0)], expected.len()).unwrap();
            assert_eq!(tokens.ids, expected, "{prompt:?}");
            assert!(tokens.dropped == 0 || expected.last() == Some(&1), "{prompt:?}");
        }
    }
}

#[test]
fn the_difference_is_measured_against_the_largest_value() {
    let a = Tensor::new(&[1.0f32, 2.0], &Device::Cpu).unwrap();
    let b = Tensor::new(&[1.0f32, 4.0], &Device::Cpu).unwrap();
    assert_eq!(worst(&a, &b), 0.5);
}
