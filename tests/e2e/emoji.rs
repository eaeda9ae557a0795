//! The built-in model paints what it is asked: subjects, places, colours, edits, seeds and a LoRA, over HTTP with its defaults.

use std::path::PathBuf;

use image::RgbImage;
use serde_json::json;

use crate::asked::{Asked, base64_of, inpainted_heart, mean};
use crate::subjects::Subjects;
use crate::worker::Worker;

fn worker() -> Worker {
    let loras = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("models/emoji-lora");
    Worker::start(&["--device", "cpu", "--lora-dir", loras.to_str().unwrap()])
}

#[test]
fn a_picture_shows_the_subject_and_the_background_of_the_prompt() {
    let (worker, subjects) = (worker(), Subjects::new());
    for (seed, (subject, background)) in [
        ("panda", "blue"),
        ("strawberry", "white"),
        ("rocket", "black"),
        ("frog", "pink"),
        ("yellow heart", "brown"),
        ("penguin", "yellow"),
        ("cactus", "orange"),
        ("crown", "purple"),
    ]
    .into_iter()
    .enumerate()
    {
        let prompt = format!("a {subject} on a {background} background");
        let picture = worker.paint("/txt2img", &json!({"prompt": prompt, "seed": seed, "steps": 12}));
        assert_eq!(picture.dimensions(), (128, 128));
        subjects.check(&picture, subject, background);
    }
}

#[test]
fn a_seed_is_one_picture_and_another_seed_another() {
    let worker = worker();
    let body = json!({"prompt": "a fox on a green background", "seed": 7, "steps": 4});
    let first = worker.paint("/txt2img", &body);
    assert_eq!(worker.paint("/txt2img", &body), first);
    let both = worker.paint_all(
        "/txt2img",
        &json!({"prompt": "a fox on a green background", "seed": 6, "steps": 4, "n": 2}),
    );
    assert_eq!(both.len(), 2);
    assert_ne!(both[0], both[1]);
    // Pictures of one job count seeds up; painting two at once may round differently in the last bit.
    let apart = both[1].as_raw().iter().zip(first.as_raw()).map(|(a, b)| a.abs_diff(*b));
    assert!(apart.max().unwrap() <= 2);
}

#[test]
fn guidance_brings_the_picture_nearer_to_the_prompt() {
    let (worker, subjects) = (worker(), Subjects::new());
    let far = |guidance: f32| {
        let each = ["panda", "tiger", "crown", "rocket"].map(|subject| {
            let prompt = format!("a {subject} on a blue background");
            let body = json!({"prompt": prompt, "seed": 1, "steps": 10, "guidance_scale": guidance});
            subjects.nearest(&worker.paint("/txt2img", &body), "blue").1
        });
        each.iter().sum::<f32>() / each.len() as f32
    };
    let (without, with) = (far(1.0), far(3.0));
    assert!(with < without, "{with} with guidance, {without} without");
}

#[test]
fn a_negative_prompt_takes_away_and_needs_guidance() {
    let worker = worker();
    let paint = |negative: &str, guidance: f32| {
        let body = json!({"prompt": "a panda", "negative_prompt": negative, "seed": 0, "steps": 10, "guidance_scale": guidance});
        worker.paint("/txt2img", &body)
    };
    let blueness = |picture: &RgbImage| mean(picture, |pixel| f32::from(pixel[2]) - f32::from(pixel[0]));
    let (plain, less_blue) = (paint("", 4.0), paint("blue background", 4.0));
    assert!(blueness(&less_blue) < blueness(&plain) - 5.0);
    assert_eq!(paint("blue background", 1.0), paint("", 1.0));
}

#[test]
fn img2img_keeps_the_layout_and_changes_what_is_asked() {
    let worker = worker();
    let prompt = |colour: &str| format!("a small {colour} apple on the left, sky blue background");
    let red = worker.paint("/txt2img", &json!({"prompt": prompt("red"), "seed": 3}));
    let body = json!({"prompt": prompt("green"), "image": base64_of(&red), "strength": 0.7, "seed": 1});
    let green = worker.paint("/img2img", &body);
    let redness = |picture: &RgbImage, left: u32| {
        let part = image::imageops::crop_imm(picture, left, 40, 48, 48).to_image();
        mean(&part, |pixel| f32::from(pixel[0]) - f32::from(pixel[1]))
    };
    assert!(
        redness(&red, 12) > 80.0 && redness(&green, 12) < -20.0,
        "the apple turns green"
    );
    assert!(
        (redness(&red, 76) - redness(&green, 76)).abs() < 4.0,
        "the right side stays"
    );
}

#[test]
fn inpainting_changes_the_masked_part_only() {
    let [red, _, blue] = inpainted_heart(&worker(), 28..100, 12);
    assert!(blue > red + 60.0, "red {red}, blue {blue}");
}

#[test]
fn the_night_lora_cools_the_colours_and_is_gone_afterwards() {
    let (worker, subjects) = (worker(), Subjects::new());
    let body =
        |prompt: &str, loras: serde_json::Value| json!({"prompt": prompt, "seed": 5, "steps": 12, "loras": loras});
    let panda = "a panda on an orange background";
    let warmth = |picture: &RgbImage| mean(picture, |pixel| f32::from(pixel[0]) - f32::from(pixel[2]));

    let day = worker.paint("/txt2img", &body(panda, json!([])));
    let night = worker.paint("/txt2img", &body(panda, json!([{"name": "night", "strength": 1.0}])));
    let (by_day, by_night) = (warmth(&day), warmth(&night));
    assert!(by_night < by_day - 80.0, "{by_night} by night, {by_day} by day");
    let tag = worker.paint("/txt2img", &body(&format!("{panda} <lora:night:1>"), json!([])));
    assert_eq!(tag, night, "a tag in the prompt is the same as the field");
    assert_eq!(
        worker.paint("/txt2img", &body(panda, json!([{"name": "night", "strength": 0.0}]))),
        day
    );
    assert_eq!(
        worker.paint("/txt2img", &body(panda, json!([]))),
        day,
        "removing it leaves nothing behind"
    );
    subjects.check(&day, "panda", "orange");
}
