//! The preview decoder against diffusers.

use candle_core::DType;
use sd_worker::models::taesd::{Taesd, TaesdConfig};

use crate::models::{Model, close};

/// Largest difference over the largest value, in f32.
const TOLERANCE: f32 = 1e-4;

#[test]
fn decodes_as_diffusers_does() {
    let model = Model::open("taesd");
    let config = TaesdConfig::parse(&model.config()).unwrap();
    let decoder = Taesd::load(&model.weights(DType::F32), &config).unwrap();
    let decoded = decoder.decode(&model.case("latents")).unwrap();
    close("taesd", &decoded, &model.case("decoded"), TOLERANCE);
}

#[test]
fn what_is_not_built_here_is_refused_by_field() {
    for (field, json) in [
        ("act_fn", r#"{"act_fn": "gelu"}"#),
        ("num_decoder_blocks", r#"{"num_decoder_blocks": [1]}"#),
    ] {
        let error = TaesdConfig::parse(json).unwrap_err().to_string();
        assert!(error.contains(field), "{error}");
    }
}
