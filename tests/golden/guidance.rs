//! Guidance in a part of the run only, against diffusers with a callback that turns it on and off: at most 2/255 apart.
//! Recipe: `tests/fixtures/guidance/make_guidance.py`.

use std::path::PathBuf;

use sd_worker::domain::load::{DtypeChoice, Residency};
use sd_worker::domain::request::GenerationRequest;
use sd_worker::pipeline::Pipeline;
use serde_json::Value;

use crate::pictures::TOLERANCE;
use crate::{flux_pipeline, painting};

fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/guidance")
}

fn within(request: &GenerationRequest, start: f32, end: f32) -> GenerationRequest {
    GenerationRequest {
        guidance_interval: (start, end),
        ..request.clone()
    }
}

#[test]
fn a_part_of_the_run_is_guided_as_with_diffusers_callback() {
    let cases: Value = serde_json::from_slice(&std::fs::read(fixtures().join("cases.json")).unwrap()).unwrap();
    for case in cases.as_array().unwrap() {
        let model = case["model"].as_str().unwrap();
        let mut pipeline = painting::model(model, DtypeChoice::F32);
        let edge = |name: &str| case[name].as_f64().unwrap() as f32;
        let request = within(&painting::request(case), edge("start"), edge("end"));
        let found = painting::decoded(&painting::paint(pipeline.as_mut(), &request), 0);
        let picture = case["picture"].as_str().unwrap();
        let expected = image::open(fixtures().join(format!("{picture}.png")))
            .unwrap()
            .into_rgb8();
        let apart = painting::difference(&found, &expected, None);
        assert!(apart <= TOLERANCE, "{picture}: {apart}/255 apart");
    }
}

/// Nothing guided is the picture without guidance, all guided the usual one, and a half neither.
fn lies_between(pipeline: &mut dyn Pipeline, request: &GenerationRequest, unguided: &GenerationRequest) {
    let mut paint = |request: &GenerationRequest| painting::decoded(&painting::paint(pipeline, request), 0);
    let (with, without) = (paint(request), paint(unguided));
    assert_ne!(with, without);
    assert_eq!(paint(&within(request, 0.0, 1.0)), with);
    let half = paint(&within(request, 0.0, 0.5));
    assert!(half != with && half != without);
    // One half of the batch alone sums in another order.
    let apart = painting::difference(&paint(&within(request, 0.0, 0.0)), &without, None);
    assert!(apart <= 1, "{apart}/255 apart");
}

#[test]
fn stable_diffusion_is_guided_in_the_interval() {
    let mut pipeline = painting::model("sd1", DtypeChoice::F32);
    let request = painting::request(&painting::case("sd1", "txt2img"));
    let unguided = GenerationRequest {
        guidance_scale: 1.0,
        ..request.clone()
    };
    lies_between(pipeline.as_mut(), &request, &unguided);
}

#[test]
fn flux_is_guided_in_the_interval() {
    let mut pipeline = flux_pipeline::model("dev", Residency::Keep);
    let request = flux_pipeline::request(&flux_pipeline::case("dev_true_cfg"));
    let unguided = GenerationRequest {
        true_cfg_scale: 1.0,
        negative_prompt: String::new(),
        ..request.clone()
    };
    lies_between(pipeline.as_mut(), &request, &unguided);
}
