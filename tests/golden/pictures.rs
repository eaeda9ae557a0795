//! Whole pictures as diffusers paints them with the same tiny models: at most 2/255 apart, in f32.
//! Recipe: `tests/fixtures/pipelines/make_pipelines.py`.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use image::RgbImage;
use sd_worker::domain::event::{Generation, Step};
use sd_worker::domain::load::{DeviceChoice, DtypeChoice, LoadOptions};
use sd_worker::domain::picture::{InputImage, InputMask, OutputFormat, Size};
use sd_worker::domain::request::{GenerationRequest, Operation, PromptSyntax, SizeConditioning, StepCache};
use sd_worker::pipeline::{LoadWatch, Pipeline, PipelineError, Watch, load};
use serde_json::Value;
use tempfile::TempDir;

const TOLERANCE: u8 = 2;

fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/pipelines")
}

/// Copies a model's folder; those that hold only what differs go over their base.
pub fn folder(model: &str) -> TempDir {
    let base = match model {
        "sd2" | "sd1-inpaint" => Some("sd1"),
        "sdxl-turbo" | "sdxl-inpaint" => Some("sdxl"),
        _ => None,
    };
    let target = tempfile::tempdir().unwrap();
    for source in base.into_iter().chain([model]) {
        copy(&fixtures().join(source), target.path());
    }
    target
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

pub struct Silent;

impl LoadWatch for Silent {
    fn progress(&mut self, _stage: &str, _fraction: f32) {}
}

/// Loads a model in the given type.
fn model(name: &str, dtype: DtypeChoice) -> Box<dyn Pipeline> {
    let folder = folder(name);
    let options = LoadOptions {
        model: Some(folder.path().to_str().unwrap().to_owned()),
        device: DeviceChoice::Cpu,
        dtype,
        ..LoadOptions::default()
    };
    load(&options, &mut Silent).unwrap()
}

/// Keeps what it is told; cancels after `stop_after` steps.
#[derive(Default)]
struct Recorder {
    steps: Vec<Step>,
    previews: Vec<RgbImage>,
    stop_after: Option<usize>,
}

impl Watch for Recorder {
    fn cancelled(&self) -> bool {
        self.stop_after.is_some_and(|count| self.steps.len() >= count)
    }

    fn step(&mut self, step: Step) {
        self.steps.push(step);
    }

    fn preview(&mut self, _step: Step, image: RgbImage) {
        self.previews.push(image);
    }
}

fn size(value: &Value) -> Size {
    Size {
        width: value[0].as_u64().unwrap() as u32,
        height: value[1].as_u64().unwrap() as u32,
    }
}

pub fn request(case: &Value) -> GenerationRequest {
    let number = |name: &str, default: f64| case[name].as_f64().unwrap_or(default);
    let text = |name: &str| case[name].as_str().unwrap_or_default().to_owned();
    let image = || {
        let name = case["image"].as_str().unwrap_or("image.png");
        InputImage(image::open(fixtures().join("inputs").join(name)).unwrap().into_rgb8())
    };
    let strength = number("strength", 1.0) as f32;
    let operation = match case["operation"].as_str().unwrap() {
        "txt2img" => Operation::TextToImage,
        "img2img" => Operation::ImageToImage {
            image: image(),
            strength,
        },
        _ => Operation::Inpaint {
            image: image(),
            mask: InputMask(image::open(fixtures().join("inputs/mask.png")).unwrap().into_luma8()),
            strength,
            feather: 0,
        },
    };
    let crop = |i: usize| case["crop"][i].as_u64().unwrap() as u32;
    GenerationRequest {
        operation,
        prompt: text("prompt"),
        negative_prompt: text("negative_prompt"),
        prompt_syntax: PromptSyntax::A1111,
        size: Size {
            width: number("width", 64.0) as u32,
            height: number("height", 64.0) as u32,
        },
        steps: number("steps", 6.0) as u32,
        guidance_scale: number("guidance_scale", 5.0) as f32,
        guidance_interval: (0.0, 1.0),
        true_cfg_scale: 1.0,
        seed: case["seed"].as_u64().unwrap(),
        count: number("n", 1.0) as u32,
        sampler: case["sampler"].as_str().unwrap().parse().unwrap(),
        schedule: case["schedule"].as_str().unwrap_or("default").parse().unwrap(),
        loras: Vec::new(),
        clip_skip: number("clip_skip", 1.0) as u32,
        eta: number("eta", 0.0) as f32,
        preview_every: 0,
        size_conditioning: case.get("original_size").map(|original| SizeConditioning {
            original: size(original),
            crop_top_left: (crop(0), crop(1)),
            target: size(&case["target_size"]),
        }),
        step_cache: StepCache::Off,
        output_format: OutputFormat::Png,
    }
}

fn cases() -> Vec<Value> {
    serde_json::from_slice(&fs::read(fixtures().join("pictures.json")).unwrap()).unwrap()
}

pub fn case(model: &str, operation: &str) -> Value {
    let fits = |case: &Value| case["model"] == model && case["operation"] == operation;
    cases().into_iter().find(fits).unwrap()
}

pub fn paint(pipeline: &mut dyn Pipeline, request: &GenerationRequest) -> Generation {
    pipeline.generate(request, &mut Recorder::default()).unwrap()
}

pub fn decoded(generation: &Generation, index: usize) -> RgbImage {
    image::load_from_memory(&generation.images[index].bytes)
        .unwrap()
        .into_rgb8()
}

/// Largest difference of two pictures; with a mask only where it is white.
fn difference(found: &RgbImage, expected: &RgbImage, mask: Option<&InputMask>) -> u8 {
    assert_eq!(found.dimensions(), expected.dimensions());
    let pixels = found
        .enumerate_pixels()
        .filter(|(x, y, _)| mask.is_none_or(|m| m.0.get_pixel(*x, *y).0[0] >= 128));
    let worst = pixels.flat_map(|(x, y, pixel)| {
        let other = expected.get_pixel(x, y).0;
        (0..3).map(move |c| pixel.0[c].abs_diff(other[c]))
    });
    worst.max().unwrap()
}

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

#[test]
fn the_same_seed_gives_the_same_bytes_and_a_batch_counts_up() {
    let mut pipeline = model("sd1", DtypeChoice::F32);
    let one = request(&case("sd1", "txt2img"));
    let first = paint(pipeline.as_mut(), &one);
    assert_eq!(first.images, paint(pipeline.as_mut(), &one).images);
    let three = GenerationRequest {
        count: 3,
        seed: one.seed.wrapping_sub(2),
        ..one.clone()
    };
    let batch = paint(pipeline.as_mut(), &three);
    let seeds: Vec<u64> = batch.images.iter().map(|image| image.seed).collect();
    assert_eq!(seeds, [one.seed - 2, one.seed - 1, one.seed]);
    assert_eq!(decoded(&batch, 2), decoded(&first, 0));
    assert_ne!(decoded(&batch, 1), decoded(&first, 0));
}

#[test]
fn steps_and_previews_are_told_over_the_whole_job() {
    let mut pipeline = model("sdxl", DtypeChoice::F32);
    let request = GenerationRequest {
        count: 2,
        preview_every: 3,
        ..request(&case("sdxl", "txt2img"))
    };
    let mut recorder = Recorder::default();
    let generation = pipeline.generate(&request, &mut recorder).unwrap();
    let told: Vec<u32> = recorder.steps.iter().map(|step| step.step).collect();
    assert_eq!(told, (1..=12).collect::<Vec<_>>());
    assert!(recorder.steps.iter().all(|step| step.total == 12));
    assert_eq!(recorder.previews.len(), 4);
    assert!(recorder.previews.iter().all(|preview| preview.dimensions() == (8, 8)));
    let timings = generation.timings;
    assert!(timings.text_encode_s > 0.0 && timings.denoise_s > 0.0 && timings.vae_decode_s > 0.0);
    assert!(timings.total_s >= timings.denoise_s + timings.vae_decode_s);
}

#[test]
fn a_cancelled_job_stops_within_a_step() {
    let mut pipeline = model("sd1", DtypeChoice::F32);
    let request = GenerationRequest {
        steps: 50,
        ..request(&case("sd1", "txt2img"))
    };
    let mut recorder = Recorder {
        stop_after: Some(2),
        ..Recorder::default()
    };
    let error = pipeline.generate(&request, &mut recorder).unwrap_err();
    assert!(matches!(error, PipelineError::Cancelled));
    assert_eq!(recorder.steps.len(), 2);
}
