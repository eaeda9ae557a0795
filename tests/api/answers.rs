//! The three kinds of answer to a request that is painted while its caller waits.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::support::{Event, Worker, names};

fn body() -> Value {
    json!({"prompt": "a cat", "width": 64, "height": 128, "steps": 4, "seed": 7, "n": 2, "preview_every": 2})
}

#[test]
fn events_tell_every_step_and_end_once() {
    let worker = Worker::start();
    worker.script.gate();
    let mut stream = worker.follow("/txt2img", &body());
    assert!(
        stream.headers["content-type"]
            .to_str()
            .unwrap()
            .starts_with("text/event-stream")
    );
    let job_id = stream.headers["x-job-id"].to_str().unwrap().to_owned();
    let mut events: Vec<Event> = vec![stream.next().unwrap(), stream.next().unwrap()];
    for _ in 0..4 {
        worker.script.allow(1);
        events.push(stream.until("progress"));
    }
    events.extend(stream.rest());

    assert_eq!(names(&events[..2]), ["queued", "started"]);
    assert_eq!(events[0].data["position"], 0);
    let steps: Vec<_> = events
        .iter()
        .filter(|event| event.name == "progress")
        .map(|event| &event.data)
        .collect();
    assert_eq!(steps.len(), 4);
    for (index, data) in steps.iter().enumerate() {
        assert_eq!(data["step"], index + 1);
        assert_eq!(data["total"], 4);
        assert_eq!(data["percent"], (index + 1) as f64 * 25.0);
        assert!(data["elapsed_ms"].is_u64() && data["eta_ms"].is_u64());
    }
    assert!(events.windows(2).all(|pair| pair[0].id < pair[1].id));
    assert!(events.iter().all(|event| event.data["job_id"] == job_id.as_str()));
    assert_eq!(events.iter().filter(|event| event.name == "complete").count(), 1);
    let complete = &events.last().unwrap().data;
    assert_eq!(complete["images"].as_array().unwrap().len(), 2);
    assert_eq!(complete["images"][1]["seed"], 8);
    assert!(complete["timings"]["total_s"].is_f64());
}

#[test]
fn previews_come_when_asked_for() {
    let worker = Worker::start();
    let events = worker.follow("/txt2img", &body()).rest();
    let previews: Vec<_> = events.iter().filter(|event| event.name == "preview").collect();
    assert_eq!(previews.len(), 2);
    assert_eq!(previews[0].data["step"], 2);
    assert_eq!(previews[0].data["format"], "png");
    let bytes = STANDARD.decode(previews[0].data["image"].as_str().unwrap()).unwrap();
    assert_eq!(image::load_from_memory(&bytes).unwrap().width(), 8);
}

#[test]
fn json_waits_for_all_pictures() {
    let worker = Worker::start();
    let answer = worker.paint("/txt2img", &body());
    assert_eq!(answer.status, 200, "{}", answer.text());
    let json = answer.json();
    assert_eq!(json["job_id"], answer.header("x-job-id"));
    for (index, picture) in json["images"].as_array().unwrap().iter().enumerate() {
        assert_eq!(picture["seed"], 7 + index);
        assert_eq!((&picture["width"], &picture["height"]), (&json!(64), &json!(128)));
        assert_eq!(picture["format"], "png");
        let bytes = STANDARD.decode(picture["b64_json"].as_str().unwrap()).unwrap();
        let pixels = image::load_from_memory(&bytes).unwrap();
        assert_eq!((pixels.width(), pixels.height()), (64, 128));
    }
    assert!(json["timings"]["queued_s"].is_f64());
}

#[test]
fn a_pictures_type_gives_the_first_pictures_bytes() {
    let worker = Worker::start();
    for (accept, format) in [
        ("image/png", image::ImageFormat::Png),
        ("image/jpeg", image::ImageFormat::Jpeg),
        ("image/webp", image::ImageFormat::WebP),
    ] {
        let answer = worker.post_with("/txt2img", &[("accept", accept)], &body());
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.header("content-type"), accept);
        assert_eq!(answer.header("x-seed"), "7");
        assert_eq!(answer.header("x-job-id").len(), 36);
        assert_eq!(image::guess_format(&answer.body).unwrap(), format);
    }
}

#[test]
fn a_bare_picture_tells_warnings_in_headers() {
    let worker = Worker::start();
    let body = json!({ "prompt": "warn café\nis not known" });
    let answer = worker.post_with("/txt2img", &[("accept", "image/png")], &body);
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.header("x-warning"), "caf??is not known");
}

#[test]
fn an_unasked_seed_is_told() {
    let worker = Worker::start();
    for seed in [Value::Null, json!(-1)] {
        let answer = worker.paint("/txt2img", &json!({"prompt": "x", "seed": seed}));
        assert!(answer.json()["images"][0]["seed"].is_u64());
    }
    let largest = worker.paint("/txt2img", &json!({"prompt": "x", "seed": u64::MAX, "n": 2}));
    assert_eq!(largest.json()["images"][0]["seed"], u64::MAX);
    assert_eq!(largest.json()["images"][1]["seed"], 0);
}

#[test]
fn a_stream_that_has_nothing_to_say_is_kept_alive() {
    use std::io::Read;
    let worker = Worker::with(|plan| plan.settings.server.keep_alive_s = 1);
    worker.script.gate();
    let mut socket = worker.raw_post("/txt2img", "*/*", &json!({"prompt": "x"}));
    let mut text = String::new();
    let mut buffer = [0; 1024];
    while !text.contains(": keep-alive") {
        let count = socket.read(&mut buffer).unwrap();
        assert!(count > 0, "closed: {text}");
        text.push_str(&String::from_utf8_lossy(&buffer[..count]));
    }
}
