//! Whole pictures as diffusers paints them with the same tiny models: at most 2/255 apart, in f32.
//! Recipe: `tests/fixtures/pipelines/make_pipelines.py`.

use std::collections::HashMap;

use sd_worker::domain::load::DtypeChoice;
use sd_worker::domain::request::Operation;
use sd_worker::pipeline::Pipeline;

use crate::painting::{cases, decoded, difference, fixtures, model, paint, request};

/// Largest difference, of 255.
pub const TOLERANCE: u8 = 2;

fn check(family: &str) {
    let mut models: HashMap<String, Box<dyn Pipeline>> = HashMap::new();
    let mut wrong = Vec::new();
    let mut count = 0;
    for case in cases() {
        let name = case["model"].as_str().unwrap();
        if name.split('-').next() != Some(family) {
            continue;
        }
        let pipeline = models
            .entry(name.to_owned())
            .or_insert_with(|| model(name, DtypeChoice::F32));
        let request = request(&case);
        let generation = paint(pipeline.as_mut(), &request);
        let picture = case["picture"].as_str().unwrap();
        for index in 0..request.count as usize {
            let path = fixtures().join(format!("pictures/{picture}-{index}.png"));
            let expected = image::open(path).unwrap().into_rgb8();
            let found = decoded(&generation, index);
            let mask = match &request.operation {
                Operation::Inpaint { mask, image, .. } => {
                    for (x, y, pixel) in found.enumerate_pixels() {
                        let kept = mask.0.get_pixel(x, y).0[0] < 128;
                        assert!(
                            !kept || pixel == image.0.get_pixel(x, y),
                            "{picture}: a kept pixel changed"
                        );
                    }
                    Some(mask)
                }
                Operation::TextToImage | Operation::ImageToImage { .. } => None,
            };
            let apart = difference(&found, &expected, mask);
            if apart > TOLERANCE {
                wrong.push(format!("{picture}-{index}: {apart}/255 apart"));
            }
            count += 1;
        }
    }
    assert!(count > 0);
    assert!(
        wrong.is_empty(),
        "{} of {count} pictures differ:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

#[test]
fn stable_diffusion_1_paints_what_diffusers_paints() {
    check("sd1");
}

#[test]
fn stable_diffusion_2_paints_what_diffusers_paints() {
    check("sd2");
}

#[test]
fn sdxl_paints_what_diffusers_paints() {
    check("sdxl");
}
