//! A worker with a model from a folder paints, over HTTP, what diffusers paints with that folder.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use image::RgbImage;
use serde_json::{Value, json};

use crate::worker::{Worker, fixtures, folder};

const TOLERANCE: u8 = 2;

fn job(more: &Value) -> Value {
    let mut body = json!({
        "prompt": "a rusty robot, walking on the beach", "negative_prompt": "blurry", "width": 64, "height": 64,
        "steps": 6, "guidance_scale": 5.0, "seed": 42,
    });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

fn input(name: &str) -> String {
    STANDARD.encode(std::fs::read(fixtures().join("inputs").join(name)).unwrap())
}

fn check(found: &[u8], picture: &str) {
    let found = image::load_from_memory(found).unwrap().into_rgb8();
    let expected: RgbImage = image::open(fixtures().join("pictures").join(picture))
        .unwrap()
        .into_rgb8();
    assert_eq!(found.dimensions(), expected.dimensions());
    let apart = found
        .as_raw()
        .iter()
        .zip(expected.as_raw())
        .map(|(a, b)| a.abs_diff(*b));
    assert!(apart.max().unwrap() <= TOLERANCE, "{picture}");
}

#[test]
fn a_stream_tells_every_step_and_ends_with_the_picture_of_diffusers() {
    let folder = folder("sd1");
    let loras = fixtures().join("loras");
    let (model, loras) = (folder.path().to_str().unwrap(), loras.to_str().unwrap());
    let worker = Worker::start(&[
        "--sd-version",
        model,
        "--dtype",
        "f32",
        "--device",
        "cpu",
        "--lora-dir",
        loras,
    ]);

    let events = worker.events("/txt2img", &job(&json!({"sampler": "euler", "preview_every": 3})));
    let of = |kind: &str| events.iter().filter(|event| event["type"] == kind).collect::<Vec<_>>();
    let steps: Vec<u64> = of("progress")
        .iter()
        .map(|event| event["step"].as_u64().unwrap())
        .collect();
    assert_eq!(steps, [1, 2, 3, 4, 5, 6]);
    assert_eq!(of("preview").len(), 2);
    assert_eq!(of("complete").len(), 1);
    let image = &of("complete")[0]["images"][0];
    assert_eq!(image["seed"], 42);
    check(
        &STANDARD.decode(image["b64_json"].as_str().unwrap()).unwrap(),
        "04-sd1-txt2img-euler-0.png",
    );

    let (headers, bytes) = worker.post(
        "/img2img",
        "image/png",
        &job(&json!({"sampler": "ddim", "strength": 0.75, "image": input("image.png")})),
    );
    assert!(headers.contains(&("x-seed".to_owned(), "42".to_owned())), "{headers:?}");
    check(&bytes, "19-sd1-img2img-ddim-0.png");

    let lora = json!({"sampler": "euler", "loras": [{"name": "sd1-peft", "strength": 0.8}]});
    check(
        &worker.post("/txt2img", "image/png", &job(&lora)).1,
        "51-sd1-txt2img-euler-0.png",
    );
    check(
        &worker
            .post("/txt2img", "image/png", &job(&json!({"sampler": "euler"})))
            .1,
        "04-sd1-txt2img-euler-0.png",
    );

    let status = worker.get("/status");
    assert_eq!(status["model"]["family"], "sd1", "{status}");
    assert_eq!(worker.stop(), Some(0));
}
