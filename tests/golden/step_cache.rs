//! Reuse of deep features: exact when off, near when on, forgotten between pictures.

use candle_core::DType;
use sd_worker::domain::event::Generation;
use sd_worker::domain::load::{DtypeChoice, Residency};
use sd_worker::domain::request::{GenerationRequest, StepCache};
use sd_worker::models::Plan;
use sd_worker::models::unet::{Added, DeepCache, UNet, UNetConfig};
use sd_worker::pipeline::Pipeline;

use crate::models::{Model, close, worst};
use crate::{flux_pipeline, painting};

/// Least PSNR of a tiny model's picture with the step cache to the one without, in dB. With random weights deep features
/// move more than trained ones.
const NEAR: f64 = 20.0;

const STEPS: u32 = 12;

fn with(request: &GenerationRequest, step_cache: StepCache) -> GenerationRequest {
    GenerationRequest {
        step_cache,
        steps: STEPS,
        ..request.clone()
    }
}

fn psnr(found: &Generation, expected: &Generation) -> f64 {
    let (found, expected) = (painting::decoded(found, 0), painting::decoded(expected, 0));
    let pairs = found.as_raw().iter().zip(expected.as_raw());
    let squares: f64 = pairs.map(|(a, b)| f64::from(a.abs_diff(*b)).powi(2)).sum();
    10.0 * (255.0f64.powi(2) * expected.as_raw().len() as f64 / squares).log10()
}

fn saves_steps_and_stays_near(pipeline: &mut dyn Pipeline, request: &GenerationRequest, threshold: f32) {
    let mut paint = |choice| painting::paint(pipeline, &with(request, choice));
    let full = paint(StepCache::Off);
    assert_eq!(full.timings.steps_reused, 0);

    let never = paint(StepCache::Threshold(1e-9));
    assert_eq!(never.timings.steps_reused, 0);
    assert_eq!(painting::decoded(&never, 0), painting::decoded(&full, 0));

    let cached = paint(StepCache::Threshold(threshold));
    let reused = cached.timings.steps_reused;
    assert!(reused > 0 && reused <= STEPS - 2, "{reused} reused");
    let near = psnr(&cached, &full);
    assert!(near > NEAR, "{near} dB with {reused} steps reused");
    assert!(near.is_finite(), "reuse changed nothing");

    // What a picture leaves behind is not seen by the next one.
    assert_eq!(paint(StepCache::Threshold(threshold)).images, cached.images);
    assert_eq!(paint(StepCache::Off).images, full.images);
}

#[test]
fn stable_diffusion_saves_steps_and_stays_near() {
    let mut pipeline = painting::model("sd1", DtypeChoice::F32);
    let request = painting::request(&painting::case("sd1", "txt2img"));
    saves_steps_and_stays_near(pipeline.as_mut(), &request, 0.3);
}

#[test]
fn sdxl_saves_steps_and_stays_near() {
    let mut pipeline = painting::model("sdxl", DtypeChoice::F32);
    let request = painting::request(&painting::case("sdxl", "txt2img"));
    saves_steps_and_stays_near(pipeline.as_mut(), &request, 0.3);
}

#[test]
fn flux_saves_steps_and_stays_near() {
    let mut pipeline = flux_pipeline::model("dev", Residency::Keep);
    for case in ["dev_txt2img", "dev_true_cfg"] {
        let request = flux_pipeline::request(&flux_pipeline::case(case));
        saves_steps_and_stays_near(pipeline.as_mut(), &request, 1.0);
    }
}

#[test]
fn each_picture_of_a_batch_begins_anew() {
    let mut pipeline = painting::model("sd1", DtypeChoice::F32);
    let request = with(
        &painting::request(&painting::case("sd1", "txt2img")),
        StepCache::Threshold(0.3),
    );
    let two = painting::paint(
        pipeline.as_mut(),
        &GenerationRequest {
            count: 2,
            ..request.clone()
        },
    );
    let second = painting::paint(
        pipeline.as_mut(),
        &GenerationRequest {
            seed: request.seed + 1,
            ..request
        },
    );
    assert!(second.timings.steps_reused > 0);
    assert_eq!(two.images[1], second.images[0]);
}

#[test]
fn a_unet_computes_the_same_with_the_cache_until_it_reuses() {
    let model = Model::open("unet_sd1");
    let config = UNetConfig::parse(&model.config()).unwrap();
    let unet = UNet::load(&model.weights(DType::F32), &config).unwrap();
    let prompt = unet.prepare(&model.case("text")).unwrap();
    let (x, t) = (model.case("x"), model.case("t").to_vec1::<f32>().unwrap()[0]);
    let told = Added::default();
    let full = |x| unet.forward(x, t, &prompt, &told).unwrap();
    let mut cache = DeepCache::new(0.5);
    let mut cached = |x, plan| {
        cache.plan(plan);
        let found = unet.forward_cached(x, t, &prompt, &told, Some(&mut cache)).unwrap();
        (found, cache.reused())
    };
    let (found, reused) = cached(&x, Plan::Measure);
    assert!(!reused);
    close("first", &found, &full(&x), 0.0);

    // The same input again: what lies below would have been the same to the bit.
    let (found, reused) = cached(&x, Plan::Measure);
    assert!(reused);
    close("again", &found, &full(&x), 0.0);

    let near = (&x * 1.02).unwrap();
    let (found, reused) = cached(&near, Plan::Measure);
    assert!(reused);
    let apart = worst(&found, &full(&near));
    assert!(apart > 0.0 && apart < 0.05, "{apart}");

    let (found, reused) = cached(&near, Plan::Full);
    assert!(!reused);
    close("when told to", &found, &full(&near), 0.0);

    let far = (&x * -1.0).unwrap();
    let (found, reused) = cached(&far, Plan::Measure);
    assert!(!reused);
    close("far", &found, &full(&far), 0.0);
}
