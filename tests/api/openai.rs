//! OpenAI's image API: generations, edits, streams, models, errors.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use image::{ImageFormat, Rgba, RgbaImage};
use sd_worker::domain::request::Operation;
use serde_json::{Value, json};

use crate::support::{Answer, Worker, wait_until};

const PATH: &str = "/v1/images/generations";

/// Parts of a form: name, file name if it is a file, bytes.
type Part<'a> = (&'a str, Option<&'a str>, Vec<u8>);

fn post_form(worker: &Worker, parts: &[Part<'_>]) -> Answer {
    let mut body = Vec::new();
    for (name, file, bytes) in parts {
        let file = file.map_or_else(String::new, |file| format!("; filename=\"{file}\""));
        let head = format!("--XX\r\nContent-Disposition: form-data; name=\"{name}\"{file}\r\n\r\n");
        body.extend_from_slice(head.as_bytes());
        body.extend_from_slice(bytes);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(b"--XX--\r\n");
    worker.post_bytes(
        "/v1/images/edits",
        &[("content-type", "multipart/form-data; boundary=XX")],
        &body,
    )
}

fn text<'a>(name: &'a str, value: &str) -> Part<'a> {
    (name, None, value.as_bytes().to_vec())
}

fn file<'a>(name: &'a str, alpha: impl Fn(u32) -> u8) -> Part<'a> {
    let pixels = RgbaImage::from_fn(16, 8, |x, _| Rgba([200, 100, 50, alpha(x)]));
    let mut bytes = std::io::Cursor::new(Vec::new());
    pixels.write_to(&mut bytes, ImageFormat::Png).unwrap();
    (name, Some("x.png"), bytes.into_inner())
}

fn picture(item: &Value) -> image::DynamicImage {
    image::load_from_memory(&STANDARD.decode(item["b64_json"].as_str().unwrap()).unwrap()).unwrap()
}

#[test]
fn generations_answer_as_clients_expect() {
    let worker = Worker::start();
    let body = json!({
        "model": "fake", "prompt": "a cat", "n": 2, "size": "128x64", "seed": 5, "steps": 3, "guidance_scale": 4,
        "negative_prompt": "dog", "quality": "auto", "background": "auto", "moderation": "auto", "user": "u-1",
    });
    let answer = worker.post(PATH, &body);
    assert_eq!(answer.status, 200, "{}", answer.text());
    let json = answer.json();
    assert!(json["created"].as_u64().unwrap() > 1_700_000_000);
    assert_eq!(
        (&json["size"], &json["output_format"]),
        (&json!("128x64"), &json!("png"))
    );
    let data = json["data"].as_array().unwrap();
    assert_eq!((data.len(), &data[1]["seed"]), (2, &json!(6)));
    assert_eq!((picture(&data[0]).width(), picture(&data[0]).height()), (128, 64));
    let request = worker.script.requests.lock().unwrap()[0].clone();
    assert_eq!(
        (request.steps, request.guidance_scale, request.negative_prompt.as_str()),
        (3, 4.0, "dog")
    );
}

#[test]
fn a_url_leads_to_the_picture() {
    let worker = Worker::start();
    let answer = worker.post(PATH, &json!({"prompt": "x", "response_format": "url", "size": "auto"}));
    let url = answer.json()["data"][0]["url"].as_str().unwrap().to_owned();
    let path = url.strip_prefix(&format!("http://127.0.0.1:{}", worker.port)).unwrap();
    let picture = worker.get(path);
    assert_eq!((picture.status, picture.header("content-type")), (200, "image/png"));
}

#[test]
fn jpeg_may_be_compressed() {
    let worker = Worker::start();
    let size = |quality: Value| {
        let body = json!({"prompt": "x", "output_format": "jpeg", "output_compression": quality, "size": "256x256"});
        let answer = worker.post(PATH, &body);
        assert_eq!(answer.status, 200, "{}", answer.text());
        let bytes = STANDARD
            .decode(answer.json()["data"][0]["b64_json"].as_str().unwrap())
            .unwrap();
        assert_eq!(image::guess_format(&bytes).unwrap(), ImageFormat::Jpeg);
        bytes.len()
    };
    assert!(size(json!(5)) <= size(json!(95)));
    size(json!(100));
    size(Value::Null);
}

#[test]
fn streams_have_partial_images_and_one_completed_a_picture() {
    let worker = Worker::start();
    let body = json!({"prompt": "x", "stream": true, "partial_images": 2, "steps": 9, "n": 2, "seed": 1});
    let events = stream(&worker.post(PATH, &body).text());
    let names: Vec<_> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    assert_eq!(
        names,
        [
            "image_generation.partial_image",
            "image_generation.partial_image",
            "image_generation.completed",
            "image_generation.completed",
        ]
    );
    assert_eq!(
        (&events[0]["partial_image_index"], &events[1]["partial_image_index"]),
        (&json!(0), &json!(1))
    );
    assert_eq!(picture(&events[3]).width(), 64);
    for event in &events {
        assert!(event["created_at"].is_u64());
        assert_eq!(
            (&event["size"], &event["output_format"]),
            (&json!("64x64"), &json!("png"))
        );
    }
    assert_eq!(events[2]["usage"]["total_tokens"], 0);

    let failed = stream(
        &worker
            .post(PATH, &json!({"prompt": "panic now", "stream": true}))
            .text(),
    );
    assert_eq!(
        (&failed[0]["type"], &failed[0]["error"]["type"]),
        (&json!("error"), &json!("server_error"))
    );
}

fn stream(text: &str) -> Vec<Value> {
    text.split("\n\n")
        .filter(|frame| !frame.is_empty() && !frame.starts_with(": "))
        .map(|frame| {
            let (name, data) = frame.split_once('\n').unwrap();
            let data: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
            assert_eq!(name, format!("event: {}", data["type"].as_str().unwrap()));
            data
        })
        .collect()
}

#[test]
fn an_edit_paints_the_transparent_part_of_its_mask() {
    let worker = Worker::start();
    let answer = post_form(
        &worker,
        &[
            text("prompt", "a hat"),
            file("image", |_| 255),
            file("mask", |x| if x < 8 { 0 } else { 255 }),
            text("n", "2"),
            text("size", "64x128"),
            text("seed", "18446744073709551615"),
            text("strength", "0.5"),
        ],
    );
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.json()["data"].as_array().unwrap().len(), 2);
    let request = worker.script.requests.lock().unwrap()[0].clone();
    assert_eq!((request.seed, request.size.height), (u64::MAX, 128));
    let Operation::Inpaint { mask, strength, .. } = request.operation else {
        panic!("inpaint");
    };
    assert_eq!(
        (mask.0.get_pixel(0, 0).0[0], mask.0.get_pixel(15, 0).0[0], strength),
        (255, 0, 0.5)
    );
}

#[test]
fn without_a_mask_the_pictures_own_transparency_counts() {
    let worker = Worker::start();
    for (alpha, inpaint) in [(0, true), (255, false)] {
        let image = file("image[]", move |x| if x == 0 { alpha } else { 255 });
        let events = post_form(&worker, &[text("prompt", "x"), image, text("stream", "true")]);
        assert_eq!(events.status, 200, "{}", events.text());
        assert_eq!(stream(&events.text())[0]["type"], "image_edit.completed");
        let request = worker.script.requests.lock().unwrap().last().unwrap().clone();
        assert_eq!(matches!(request.operation, Operation::Inpaint { .. }), inpaint);
    }
}

#[test]
fn mistakes_are_named_in_openais_form() {
    let worker = Worker::start();
    for (body, status, param) in [
        (json!({}), 400, "prompt"),
        (json!({"prompt": "x", "size": "big"}), 400, "size"),
        (json!({"prompt": "x", "size": "65x64"}), 400, "size"),
        (json!({"prompt": "x", "n": 99}), 400, "n"),
        (
            json!({"prompt": "x", "partial_images": 4, "stream": true}),
            400,
            "partial_images",
        ),
        (json!({"prompt": "x", "partial_images": 1}), 400, "partial_images"),
        (
            json!({"prompt": "x", "output_compression": 50}),
            400,
            "output_compression",
        ),
        (
            json!({"prompt": "x", "output_compression": 101, "output_format": "jpeg"}),
            400,
            "output_compression",
        ),
        (
            json!({"prompt": "x", "response_format": "file"}),
            400,
            "response_format",
        ),
        (json!({"prompt": "x", "background": "transparent"}), 400, "background"),
        (json!({"prompt": "x", "style": "vivid"}), 400, "style"),
        (json!({"prompt": "x", "stream": "yes"}), 400, "stream"),
        (json!({"prompt": "x", "model": "dall-e-3"}), 409, "model"),
    ] {
        let answer = worker.post(PATH, &body);
        assert_eq!(
            (answer.status, answer.param().as_str()),
            (status, param),
            "{body}: {}",
            answer.text()
        );
        assert_eq!(answer.json()["error"]["type"], "invalid_request_error");
        assert!(!answer.message().is_empty() && !answer.code().is_empty());
    }
    let broken = worker.post_bytes(PATH, &[], b"{");
    assert_eq!((broken.status, &broken.json()["error"]["param"]), (400, &Value::Null));

    let opaque = post_form(
        &worker,
        &[text("prompt", "x"), file("image", |_| 255), file("mask", |_| 255)],
    );
    assert_eq!((opaque.status, opaque.param().as_str()), (422, "mask"));
    let bare = post_form(&worker, &[text("prompt", "x")]);
    assert_eq!((bare.status, bare.param().as_str()), (400, "image"));
    let twice = post_form(
        &worker,
        &[text("prompt", "x"), file("image", |_| 9), file("image", |_| 9)],
    );
    assert_eq!((twice.status, twice.param().as_str()), (400, "image"));
    let json = worker.post("/v1/images/edits", &json!({"prompt": "x"}));
    assert_eq!(json.status, 415, "{}", json.text());
    let noise = worker.post_bytes(
        "/v1/images/edits",
        &[("content-type", "multipart/form-data; boundary=XX")],
        b"hello",
    );
    assert_eq!(noise.status, 400, "{}", noise.text());
}

#[test]
fn a_caller_that_goes_away_cancels_its_job() {
    for stream in [true, false] {
        let worker = Worker::start();
        worker.script.gate();
        let socket = worker.raw_post(PATH, "*/*", &json!({"prompt": "x", "stream": stream}));
        worker.script.allow(1);
        wait_until("a step", || worker.script.count(|script| &script.steps) == 1);
        drop(socket);
        wait_until("cancelled", || worker.get("/status").json()["totals"]["cancelled"] == 1);
    }
}

#[test]
fn the_loaded_model_is_listed() {
    let worker = Worker::start();
    let models = worker.get("/v1/models").json();
    assert_eq!(
        (&models["object"], &models["data"][0]["id"]),
        (&json!("list"), &json!("fake"))
    );
}
