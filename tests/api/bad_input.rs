//! Every row of the field table, wrong in every way: the answer names the field, its value and what is allowed.

use serde_json::{Value, json};

use crate::support::{Worker, png};

/// Path, field with a bad value, what the message must say.
type Row = (&'static str, Value, &'static [&'static str]);

fn rows() -> Vec<Row> {
    vec![
        (
            "/txt2img",
            json!({"prompt": 5}),
            &["5", "a whole number", "must be a string"],
        ),
        (
            "/txt2img",
            json!({"prompt": "x".repeat(10_001)}),
            &["10001 characters", "up to 10000"],
        ),
        ("/txt2img", json!({"prompt": null}), &["missing"]),
        ("/txt2img", json!({"negative_prompt": ["x"]}), &["must be a string"]),
        (
            "/txt2img",
            json!({"negative_prompt": "x".repeat(10_001)}),
            &["up to 10000"],
        ),
        (
            "/txt2img",
            json!({"prompt_syntax": "latex"}),
            &["latex", "a1111, plain"],
        ),
        (
            "/txt2img",
            json!({"width": 0}),
            &["0", "multiples of 8 from 64 to 2048"],
        ),
        ("/txt2img", json!({"width": 65}), &["65", "multiples of 8"]),
        ("/txt2img", json!({"width": 4096}), &["4096", "to 2048"]),
        ("/txt2img", json!({"width": -64}), &["-64"]),
        ("/txt2img", json!({"width": u64::MAX}), &["multiples of 8"]),
        ("/txt2img", json!({"width": "512"}), &["\"512\"", "a whole number"]),
        ("/txt2img", json!({"width": 512.5}), &["512.5", "a whole number"]),
        ("/txt2img", json!({"height": 63}), &["63", "multiples of 8"]),
        ("/txt2img", json!({"height": true}), &["true", "a boolean"]),
        ("/txt2img", json!({"steps": 0}), &["0", "1 to 150"]),
        ("/txt2img", json!({"steps": 151}), &["151", "1 to 150"]),
        ("/txt2img", json!({"steps": "many"}), &["many"]),
        ("/txt2img", json!({"guidance_scale": 30.5}), &["30.5", "0 to 30"]),
        ("/txt2img", json!({"guidance_scale": -1}), &["-1", "0 to 30"]),
        ("/txt2img", json!({"guidance_scale": "high"}), &["must be a number"]),
        ("/txt2img", json!({"guidance_start": 1.5}), &["1.5", "0 to 1"]),
        ("/txt2img", json!({"guidance_end": -0.5}), &["-0.5", "0 to 1"]),
        (
            "/txt2img",
            json!({"guidance_start": 0.5, "guidance_end": 0.25}),
            &["0.5", "guidance_end"],
        ),
        ("/txt2img", json!({"seed": -2}), &["-2", "-1 (random)"]),
        (
            "/txt2img",
            json!({"seed": 18446744073709551616.0}),
            &["18446744073709551616", "-1 (random)"],
        ),
        ("/txt2img", json!({"seed": 1.5}), &["1.5", "a whole number"]),
        ("/txt2img", json!({"seed": "lucky"}), &["lucky"]),
        ("/txt2img", json!({"n": 0}), &["0", "1 to 8"]),
        ("/txt2img", json!({"n": 9}), &["9", "1 to 8"]),
        ("/txt2img", json!({"sampler": "dpm9"}), &["dpm9", "dpmpp_2m_sde"]),
        ("/txt2img", json!({"sampler": 3}), &["must be a string"]),
        ("/txt2img", json!({"schedule": "curved"}), &["curved", "karras"]),
        (
            "/txt2img",
            json!({"schedule": "karras", "sampler": "pndm"}),
            &["karras", "pndm", "linspace"],
        ),
        (
            "/txt2img",
            json!({"schedule": "karras", "sampler": "DPM++ 2M Exponential"}),
            &["contradicts"],
        ),
        ("/txt2img", json!({"loras": "ink"}), &["a list of objects"]),
        ("/txt2img", json!({"loras": ["ink"]}), &["an object"]),
        ("/txt2img", json!({"clip_skip": 0}), &["0", "1 to 12"]),
        ("/txt2img", json!({"clip_skip": 13}), &["13", "1 to 12"]),
        ("/txt2img", json!({"eta": 2, "sampler": "ddim"}), &["2", "0 to 1"]),
        (
            "/txt2img",
            json!({"eta": 0.5, "sampler": "euler"}),
            &["0.5", "only to ddim"],
        ),
        ("/txt2img", json!({"true_cfg_scale": 2}), &["only to FLUX"]),
        ("/txt2img", json!({"original_size": [64, 64]}), &["only to sdxl"]),
        (
            "/txt2img",
            json!({"step_cache": "sometimes"}),
            &["sometimes", "off, auto"],
        ),
        ("/txt2img", json!({"step_cache": 0}), &["0", "threshold"]),
        ("/txt2img", json!({"step_cache": []}), &["off"]),
        ("/txt2img", json!({"preview_every": -1}), &["-1", "0 to 150"]),
        ("/txt2img", json!({"output_format": "gif"}), &["gif", "png, jpeg, webp"]),
        ("/txt2img", json!({"model": 1}), &["must be a string"]),
        ("/txt2img", json!({"image": "aGk="}), &["422"]),
        (
            "/txt2img",
            json!({"strength": 0.5}),
            &["does not apply to image_generation"],
        ),
        (
            "/txt2img",
            json!({"feather": 3}),
            &["does not apply to image_generation"],
        ),
        ("/txt2img", json!({"operation": "image_generation"}), &["unknown field"]),
        ("/txt2img", json!({"stepz": 3}), &["unknown field", "steps"]),
        ("/img2img", json!({"image": null}), &["missing"]),
        ("/img2img", json!({"image": 3}), &["must be a string"]),
        ("/img2img", json!({"strength": 1.5}), &["1.5", "0 to 1"]),
        ("/img2img", json!({"strength": "half"}), &["must be a number"]),
        (
            "/img2img",
            json!({"feather": 3}),
            &["does not apply to image_transform"],
        ),
        ("/inpaint", json!({"mask": null}), &["missing"]),
        ("/inpaint", json!({"feather": 257}), &["257", "0 to 256"]),
        ("/v1/jobs", json!({"operation": null}), &["missing", "image_inpaint"]),
        (
            "/v1/jobs",
            json!({"operation": "video"}),
            &["video", "image_generation, image_transform, image_inpaint"],
        ),
        ("/v1/jobs", json!({"width": 1}), &["multiples of 8"]),
    ]
}

fn complete(path: &str) -> Value {
    match path {
        "/img2img" => json!({"prompt": "x", "image": png(8, 8)}),
        "/inpaint" => json!({"prompt": "x", "image": png(8, 8), "mask": png(8, 8)}),
        "/v1/jobs" => json!({"operation": "image_generation", "prompt": "x"}),
        _ => json!({"prompt": "x"}),
    }
}

#[test]
fn each_is_refused_by_name_and_the_worker_goes_on() {
    let worker = Worker::start();
    for (path, bad, words) in rows() {
        let mut body = complete(path);
        let bad = bad.as_object().unwrap();
        for (name, value) in bad {
            body[name] = value.clone();
        }
        let answer = worker.post(path, &body);
        let expected = if words == ["422"] { 422 } else { 400 };
        assert_eq!(answer.status, expected, "{path} {bad:?}: {}", answer.text());
        assert!(bad.contains_key(&answer.param()), "{path} {bad:?}: {}", answer.text());
        for word in words.iter().filter(|word| **word != "422") {
            assert!(
                answer.message().contains(word),
                "{path} {bad:?} should say {word}: {}",
                answer.message()
            );
        }
        assert!(answer.message().len() < 1000);
    }
    assert_eq!(worker.script.count(|script| &script.runs), 0);
    assert_eq!(worker.paint("/txt2img", &json!({"prompt": ""})).status, 200);
}

#[test]
fn what_is_missing_is_named() {
    let worker = Worker::start();
    for (path, body, field) in [
        ("/txt2img", json!({}), "prompt"),
        ("/img2img", json!({"prompt": "x"}), "image"),
        ("/inpaint", json!({"prompt": "x", "image": png(8, 8)}), "mask"),
        ("/v1/jobs", json!({"prompt": "x"}), "operation"),
    ] {
        let answer = worker.post(path, &body);
        assert_eq!(
            (answer.status, answer.param().as_str()),
            (400, field),
            "{path}: {}",
            answer.text()
        );
    }
}

#[test]
fn bodies_that_are_no_json_objects_are_refused() {
    let worker = Worker::start();
    for body in [
        "",
        "{",
        "[]",
        "\"x\"",
        "{\"prompt\": \"x\"",
        "\u{0}",
        "{\"prompt\": NaN}",
    ] {
        let answer = worker.post_bytes("/txt2img", &[], body.as_bytes());
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (400, "invalid_json"),
            "{body:?}: {}",
            answer.text()
        );
    }
    let answer = worker.post_bytes("/txt2img", &[], &[b'"', 0xff, 0xfe, b'"']);
    assert_eq!(answer.status, 400);
}

#[test]
fn loras_are_known_by_name_only() {
    let worker = Worker::with(|plan| plan.loras = vec!["ink", "styles/night"]);
    let paint = |loras: Value| worker.paint("/txt2img", &json!({"prompt": "x", "loras": loras}));
    for good in [
        json!([{"name": "ink"}]),
        json!([{"path": "styles/night", "strength": -0.5}, {"name": "ink.safetensors", "strength": 2}]),
        json!([{"name": "Night"}]),
    ] {
        assert_eq!(paint(good.clone()).status, 200, "{good}");
    }
    let used = worker.script.requests.lock().unwrap()[1].loras.clone();
    assert_eq!(
        (used[0].name.as_str(), used[0].strength, used[1].strength),
        ("styles/night", -0.5, 2.0)
    );
    for (bad, field) in [
        (json!([{"name": "../ink"}]), "loras[0].name"),
        (json!([{"name": "ink"}, {"name": "/etc/passwd"}]), "loras[1].name"),
        (json!([{"name": ""}]), "loras[0].name"),
        (json!([{"strength": 1}]), "loras[0].name"),
        (json!([{"name": "ink", "strength": 11}]), "loras[0].strength"),
        (json!([{"name": "ink", "weight": 1}]), "loras[0].weight"),
        (json!([{"name": "ink", "path": "ink"}]), "loras[0].path"),
    ] {
        let answer = paint(bad.clone());
        assert_eq!(
            (answer.status, answer.param().as_str()),
            (400, field),
            "{bad}: {}",
            answer.text()
        );
    }
    let many: Vec<_> = (0..17).map(|_| json!({"name": "ink"})).collect();
    assert_eq!(paint(json!(many)).param(), "loras");
}

#[test]
fn another_model_is_a_conflict_that_names_the_loaded_one() {
    let worker = Worker::start();
    for (name, status) in [("fake", 200), ("Pretender", 200), ("xl", 409)] {
        let answer = worker.paint("/txt2img", &json!({"prompt": "x", "model": name}));
        assert_eq!(answer.status, status, "{name}");
    }
    let answer = worker.paint("/txt2img", &json!({"prompt": "x", "model": "xl"}));
    assert_eq!(
        (answer.code().as_str(), answer.param().as_str()),
        ("model_not_loaded", "model")
    );
    assert!(answer.message().contains("loaded: fake"), "{}", answer.message());
}
