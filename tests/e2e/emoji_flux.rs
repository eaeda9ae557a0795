//! A small trained FLUX (`models/emoji-flux`) paints what it is asked in all operations, from its folder and from GGUF files.

use std::path::{Path, PathBuf};

use image::RgbImage;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::asked::{Asked, base64_of, inpainted_heart, mean, only};
use crate::subjects::Subjects;
use crate::worker::Worker;

fn model() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("models/emoji-flux")
}

fn worker(model: &Path) -> Worker {
    Worker::start(&["--device", "cpu", "--model", model.to_str().unwrap()])
}

/// Subjects on backgrounds, painted and checked.
fn check(worker: &Worker, asked: &[(&str, &str)]) {
    let subjects = Subjects::new();
    for (seed, (subject, background)) in asked.iter().enumerate() {
        let prompt = format!("a {subject} on a {background} background");
        let picture = worker.paint("/txt2img", &json!({"prompt": prompt, "seed": seed}));
        assert_eq!(picture.dimensions(), (128, 128));
        subjects.check(&picture, subject, background);
    }
}

#[test]
fn a_picture_shows_the_subject_and_the_background_of_the_prompt() {
    let worker = worker(&model());
    check(&worker, &ASKED);
    assert_eq!(worker.get("/status")["model"]["family"], "flux-dev");
}

#[test]
fn the_transformer_may_come_as_gguf_in_q8_0_or_q4_0() {
    for kind in ["Q8_0", "Q4_0"] {
        let (_keep, file) = beside_its_folder(kind);
        let worker = worker(&file);
        assert_eq!(
            worker.get("/status")["model"]["quantization"],
            kind.to_ascii_lowercase()
        );
        check(&worker, &ASKED[..4]);
    }
}

#[test]
fn the_stream_tells_steps_and_previews_and_a_seed_is_one_picture() {
    let worker = worker(&model());
    let body = json!({"prompt": "a fox on a green background", "seed": 7, "steps": 6, "preview_every": 2});
    let events = worker.events("/txt2img", &body);
    let count = |kind: &str| events.iter().filter(|event| event["type"] == kind).count();
    assert_eq!((count("progress"), count("preview"), count("complete")), (6, 3, 1));
    let again = json!({"prompt": "a fox on a green background", "seed": 7, "steps": 6});
    assert_eq!(worker.paint("/txt2img", &again), worker.paint("/txt2img", &again));
}

#[test]
fn img2img_keeps_the_layout_and_changes_what_is_asked() {
    let worker = worker(&model());
    let prompt = |colour: &str| format!("a {colour} heart on a sky blue background");
    let red = worker.paint("/txt2img", &json!({"prompt": prompt("red"), "seed": 3}));
    let body = json!({"prompt": prompt("green"), "image": base64_of(&red), "strength": 0.8, "seed": 1});
    let green = worker.paint("/img2img", &body);
    let redness = |picture: &RgbImage| {
        let [red, green, _] = only(picture, 44, 40, 40);
        red - green
    };
    assert!(
        redness(&red) > 60.0 && redness(&green) < -20.0,
        "{} then {}",
        redness(&red),
        redness(&green)
    );
    let corner = |picture: &RgbImage| only(picture, 2, 2, 12);
    let apart = corner(&red).into_iter().zip(corner(&green)).map(|(a, b)| (a - b).abs());
    assert!(apart.fold(0.0, f32::max) < 12.0, "the background stays");
}

#[test]
fn inpainting_changes_the_masked_part_only() {
    let [red, _, blue] = inpainted_heart(&worker(&model()), 24..104, 28);
    assert!(blue > red + 40.0, "red {red}, blue {blue}");
}

#[test]
fn a_negative_prompt_takes_away_with_true_guidance() {
    let worker = worker(&model());
    let paint = |more: Value| {
        let mut body = json!({"prompt": "a panda", "seed": 0, "steps": 10});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        worker.paint("/txt2img", &body)
    };
    let blueness = |picture: &RgbImage| mean(picture, |pixel| f32::from(pixel[2]) - f32::from(pixel[0]));
    let plain = paint(json!({"negative_prompt": "", "true_cfg_scale": 3.0}));
    let less_blue = paint(json!({"negative_prompt": "blue background", "true_cfg_scale": 3.0}));
    assert!(blueness(&less_blue) < blueness(&plain) - 5.0);
}

/// The GGUF file of this kind, with the model's folder beside it for the rest.
fn beside_its_folder(kind: &str) -> (TempDir, PathBuf) {
    let name = format!("emoji-flux-{kind}");
    let place = tempfile::tempdir().unwrap();
    let fixture = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/emoji-flux");
    let file = place.path().join(format!("{name}.gguf"));
    std::fs::copy(fixture.join(format!("{name}.gguf")), &file).unwrap();
    std::os::unix::fs::symlink(model(), place.path().join(name)).unwrap();
    (place, file)
}

const ASKED: [(&str, &str); 6] = [
    ("panda", "blue"),
    ("strawberry", "white"),
    ("frog", "pink"),
    ("yellow heart", "brown"),
    ("rocket", "black"),
    ("penguin", "yellow"),
];
