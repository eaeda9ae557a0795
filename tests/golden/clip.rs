//! CLIP text encoders against transformers.

use std::rc::Rc;

use candle_core::{DType, Device};
use sd_worker::models::clip::{ClipConfig, ClipText};
use sd_worker::weights::{RawTensor, StoredType, TensorSource, Weights, WeightsError};

use crate::models::{Model, close, numbers, psnr};

/// Largest difference over the largest value, in f32.
const TOLERANCE: f32 = 1e-4;
/// Least PSNR of 16-bit types, in dB.
const NEAR: f32 = 30.0;

fn tokens(model: &Model) -> Vec<Vec<u32>> {
    let rows: Vec<Vec<f32>> = model.case("tokens").to_vec2().unwrap();
    rows.iter()
        .map(|row| row.iter().map(|id| *id as u32).collect())
        .collect()
}

fn encoder(model: &Model, dtype: DType) -> ClipText {
    ClipText::load(&model.weights(dtype), &ClipConfig::parse(&model.config()).unwrap()).unwrap()
}

fn matches(name: &'static str) {
    let model = Model::open(name);
    let (encoder, tokens) = (encoder(&model, DType::F32), tokens(&model));
    let layers = encoder.config().num_hidden_layers;
    for skip in 0..=layers {
        let expected = model.case(&format!("hidden.{}", layers - skip));
        close(
            &format!("{name}, {skip} skipped"),
            &encoder.hidden(&tokens, skip).unwrap(),
            &expected,
            TOLERANCE,
        );
        let (hidden, pooled) = encoder.hidden_and_pooled(&tokens, skip).unwrap();
        close(&format!("{name}, {skip} skipped"), &hidden, &expected, TOLERANCE);
        close(&format!("{name} pooled"), &pooled, &model.case("pooled"), TOLERANCE);
    }
    let normed = encoder.normed(&encoder.hidden(&tokens, 0).unwrap()).unwrap();
    close(&format!("{name} normed"), &normed, &model.case("normed"), TOLERANCE);
}

#[test]
fn vit_l_matches() {
    matches("clip_l");
}

#[test]
fn vit_h_matches() {
    matches("clip_h");
}

#[test]
fn big_g_with_its_projection_matches() {
    matches("clip_g");
}

#[test]
fn sixteen_bit_types_come_near() {
    let model = Model::open("clip_g");
    for dtype in [DType::BF16, DType::F16] {
        let (hidden, pooled) = encoder(&model, dtype).hidden_and_pooled(&tokens(&model), 1).unwrap();
        assert_eq!(hidden.dtype(), dtype);
        let (hidden, pooled) = (
            psnr(&hidden, &model.case("hidden.2")),
            psnr(&pooled, &model.case("pooled")),
        );
        assert!(hidden > NEAR && pooled > NEAR, "{dtype:?}: {hidden} dB, {pooled} dB");
    }
}

#[test]
fn its_layers_are_in_the_table_and_a_patch_changes_the_output_and_goes_away() {
    let model = Model::open("clip_l");
    let weights = model.weights(DType::F32);
    let encoder = ClipText::load(&weights, &ClipConfig::parse(&model.config()).unwrap()).unwrap();
    let before = encoder.hidden(&tokens(&model), 0).unwrap();
    let slot = weights
        .layers()
        .get("text_model.encoder.layers.0.self_attn.q_proj")
        .unwrap();
    assert_eq!(slot.shape(), [16, 16]);
    slot.replace(&(slot.original_f32().unwrap() * 1.5).unwrap()).unwrap();
    assert_ne!(numbers(&before), numbers(&encoder.hidden(&tokens(&model), 0).unwrap()));
    weights.layers().restore_all();
    assert_eq!(numbers(&before), numbers(&encoder.hidden(&tokens(&model), 0).unwrap()));
}

/// A file of transformers 5, whose names have no `text_model.`.
struct Shortened(Rc<dyn TensorSource>);

impl TensorSource for Shortened {
    fn names(&self) -> Vec<String> {
        let names = self.0.names();
        names
            .iter()
            .filter_map(|name| name.strip_prefix("text_model.").map(str::to_owned))
            .collect()
    }

    fn describe(&self, name: &str) -> Option<(Vec<usize>, StoredType)> {
        self.0.describe(&format!("text_model.{name}"))
    }

    fn read(&self, name: &str) -> Result<RawTensor, WeightsError> {
        self.0.read(&format!("text_model.{name}"))
    }
}

#[test]
fn a_file_without_the_outer_name_gives_the_same_model_and_table() {
    let model = Model::open("clip_l");
    let weights = Weights::new(Rc::new(Shortened(model.source())), Device::Cpu, DType::F32);
    let short = ClipText::load(&weights, &ClipConfig::parse(&model.config()).unwrap()).unwrap();
    close(
        "hidden",
        &short.hidden(&tokens(&model), 0).unwrap(),
        &model.case("hidden.3"),
        TOLERANCE,
    );
    assert!(weights.layers().get("text_model.encoder.layers.2.mlp.fc2").is_some());
}

#[test]
fn rows_that_do_not_fit_are_refused() {
    let encoder = encoder(&Model::open("clip_l"), DType::F32);
    assert!(encoder.hidden(&[], 0).is_err());
    assert!(encoder.hidden(&[vec![1; 13]], 0).is_err());
    assert!(encoder.hidden(&[vec![1; 3], vec![1; 4]], 0).is_err());
    assert!(encoder.hidden(&[vec![1; 3]], 4).is_err());
    assert!(encoder.hidden(&[vec![40; 3]], 0).is_err());
}

#[test]
fn an_unknown_activation_is_refused_by_name() {
    let error = ClipConfig::parse(r#"{"hidden_act": "mish"}"#).unwrap_err().to_string();
    assert!(error.contains("hidden_act") && error.contains("mish"), "{error}");
}
