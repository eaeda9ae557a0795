//! Fields that belong to one family of models: taken there, refused by name elsewhere.

use sd_worker::domain::model::Family;
use sd_worker::domain::request::{PromptSyntax, StepCache};
use sd_worker::domain::sampling::{Sampler, Schedule};
use serde_json::{Value, json};

use crate::support::{Worker, info};

fn worker(family: Family) -> Worker {
    Worker::with(|plan| plan.info = info(family))
}

fn paint(worker: &Worker, mut body: Value) -> crate::support::Answer {
    body["prompt"] = "x".into();
    worker.paint("/txt2img", &body)
}

#[test]
fn every_field_of_stable_diffusion_reaches_the_pipeline() {
    let worker = worker(Family::Sd1);
    let body = json!({
        "negative_prompt": "blurry", "prompt_syntax": "plain", "width": 128, "height": 192, "steps": 9,
        "guidance_scale": 5.5, "guidance_start": 0.1, "guidance_end": 0.9, "seed": 3, "n": 2,
        "sampler": "DPM++ 2M Karras", "clip_skip": 2, "step_cache": 0.1, "preview_every": 3,
        "output_format": "jpeg", "model": "fake",
    });
    assert_eq!(paint(&worker, body).status, 200);
    let request = worker.script.requests.lock().unwrap()[0].clone();
    assert_eq!(
        (request.prompt.as_str(), request.negative_prompt.as_str()),
        ("x", "blurry")
    );
    assert_eq!(request.prompt_syntax, PromptSyntax::Plain);
    assert_eq!((request.size.width, request.size.height, request.steps), (128, 192, 9));
    assert_eq!((request.guidance_scale, request.guidance_interval), (5.5, (0.1, 0.9)));
    assert_eq!((request.seed, request.count, request.clip_skip), (3, 2, 2));
    assert_eq!(
        (request.sampler, request.schedule),
        (Sampler::Dpmpp2m, Schedule::Karras)
    );
    assert_eq!(
        (request.step_cache, request.preview_every),
        (StepCache::Threshold(0.1), 3)
    );
}

#[test]
fn what_is_left_out_comes_from_the_model() {
    let worker = worker(Family::Sd2);
    assert_eq!(paint(&worker, json!({"width": null})).status, 200);
    let request = worker.script.requests.lock().unwrap()[0].clone();
    assert_eq!((request.size.width, request.size.height, request.steps), (64, 64, 4));
    assert_eq!((request.guidance_scale, request.guidance_interval), (7.5, (0.0, 1.0)));
    assert_eq!((request.sampler, request.schedule), (Sampler::Euler, Schedule::Default));
    assert_eq!((request.eta, request.true_cfg_scale, request.count), (0.0, 1.0, 1));
    assert_eq!((request.step_cache, request.size_conditioning), (StepCache::Off, None));
}

#[test]
fn a_workers_step_cache_is_the_default() {
    let worker = Worker::with(|plan| plan.settings.model.step_cache = "auto".into());
    paint(&worker, json!({}));
    paint(&worker, json!({"step_cache": "off"}));
    let caches: Vec<_> = worker
        .script
        .requests
        .lock()
        .unwrap()
        .iter()
        .map(|request| request.step_cache)
        .collect();
    assert_eq!(caches, [StepCache::Auto, StepCache::Off]);
}

#[test]
fn ddim_takes_eta() {
    let worker = worker(Family::Sd1);
    assert_eq!(paint(&worker, json!({"sampler": "ddim", "eta": 0.5})).status, 200);
    assert_eq!(paint(&worker, json!({"sampler": "euler", "eta": 0})).status, 200);
    assert_eq!(worker.script.requests.lock().unwrap()[0].eta, 0.5);
}

#[test]
fn sdxl_takes_its_sizes() {
    let worker = worker(Family::Sdxl);
    assert_eq!(
        paint(&worker, json!({"original_size": [1024, 768], "crop_top_left": [8, 16]})).status,
        200
    );
    let sizes = worker.script.requests.lock().unwrap()[0].size_conditioning.unwrap();
    assert_eq!((sizes.original.width, sizes.original.height), (1024, 768));
    assert_eq!(sizes.crop_top_left, (8, 16));
    assert_eq!((sizes.target.width, sizes.target.height), (64, 64));
    for bad in [
        json!([1]),
        json!([0, 5]),
        json!("64x64"),
        json!([64, 64, 64]),
        json!([99999, 1]),
    ] {
        let answer = paint(&worker, json!({"target_size": bad}));
        assert_eq!((answer.status, answer.param().as_str()), (400, "target_size"), "{bad}");
    }
}

#[test]
fn flux_refuses_what_it_has_not() {
    for (family, body, field) in [
        (Family::FluxDev, json!({"negative_prompt": "x"}), "negative_prompt"),
        (Family::FluxDev, json!({"clip_skip": 1}), "clip_skip"),
        (Family::FluxDev, json!({"width": 72}), "width"),
        (Family::FluxDev, json!({"guidance_start": 0.5}), "guidance_start"),
        (Family::FluxDev, json!({"sampler": "ddim"}), "sampler"),
        (Family::FluxDev, json!({"crop_top_left": [0, 0]}), "crop_top_left"),
        (Family::FluxDev, json!({"true_cfg_scale": 31}), "true_cfg_scale"),
        (Family::FluxSchnell, json!({"guidance_scale": 3.5}), "guidance_scale"),
    ] {
        let answer = paint(&worker(family), body.clone());
        assert_eq!(
            (answer.status, answer.param().as_str()),
            (400, field),
            "{body}: {}",
            answer.text()
        );
    }
}

#[test]
fn flux_takes_true_guidance() {
    let worker = worker(Family::FluxDev);
    let body = json!({"negative_prompt": "x", "true_cfg_scale": 4, "guidance_end": 0.5, "guidance_scale": 3.5});
    assert_eq!(paint(&worker, body).status, 200);
    let request = worker.script.requests.lock().unwrap()[0].clone();
    assert_eq!((request.true_cfg_scale, request.guidance_interval.1), (4.0, 0.5));
}

#[test]
fn an_operation_that_the_model_lacks_is_refused() {
    let worker = Worker::with(|plan| {
        plan.info.operations.retain(|kind| kind.name() != "image_inpaint");
    });
    let image = crate::support::png(8, 8);
    let answer = worker.post("/inpaint", &json!({"prompt": "x", "image": image, "mask": image}));
    assert_eq!((answer.status, answer.param().as_str()), (400, "operation"));
    assert!(answer.message().contains("image_transform"));
}
