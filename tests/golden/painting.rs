//! What tests of whole pictures share: the tiny models, their cases, and a watcher that keeps what it is told.

use std::fs;
use std::path::{Path, PathBuf};

use image::RgbImage;
use sd_worker::domain::event::{Generation, Step};
use sd_worker::domain::load::{DeviceChoice, DtypeChoice, LoadOptions};
use sd_worker::domain::picture::{InputImage, InputMask, OutputFormat, Size};
use sd_worker::domain::request::{GenerationRequest, LoraRef, Operation, PromptSyntax, SizeConditioning, StepCache};
use sd_worker::pipeline::{LoadWatch, Pipeline, Watch, load};
use serde_json::Value;
use tempfile::TempDir;

pub fn fixtures() -> PathBuf {
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

pub fn copy(from: &Path, to: &Path) {
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
pub fn model(name: &str, dtype: DtypeChoice) -> Box<dyn Pipeline> {
    let lora_dir = Some(fixtures().join("loras"));
    model_with(
        name,
        dtype,
        LoadOptions {
            lora_dir,
            ..LoadOptions::default()
        },
    )
}

/// Loads a model in the given type, with other options.
pub fn model_with(name: &str, dtype: DtypeChoice, options: LoadOptions) -> Box<dyn Pipeline> {
    let folder = folder(name);
    let options = LoadOptions {
        model: Some(folder.path().to_str().unwrap().to_owned()),
        device: DeviceChoice::Cpu,
        dtype,
        ..options
    };
    load(&options, &mut Silent).unwrap()
}

/// Keeps what it is told; cancels after `stop_after` steps.
#[derive(Default)]
pub struct Recorder {
    pub steps: Vec<Step>,
    pub previews: Vec<RgbImage>,
    pub stop_after: Option<usize>,
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

pub fn size(value: &Value) -> Size {
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
        loras: loras(case),
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

/// The LoRAs of a case, unless its prompt names them.
fn loras(case: &Value) -> Vec<LoraRef> {
    if case["prompt"].as_str().unwrap().contains("<lora:") {
        return Vec::new();
    }
    let rows = case["loras"].as_array().into_iter().flatten();
    rows.map(|row| LoraRef {
        name: row[0].as_str().unwrap().to_owned(),
        strength: row[1].as_f64().unwrap() as f32,
    })
    .collect()
}

pub fn cases() -> Vec<Value> {
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
pub fn difference(found: &RgbImage, expected: &RgbImage, mask: Option<&InputMask>) -> u8 {
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

/// Peak signal-to-noise ratio of two pictures, in dB.
pub fn psnr(found: &RgbImage, expected: &RgbImage) -> f64 {
    let squares = found.as_raw().iter().zip(expected.as_raw()).map(|(a, b)| {
        let apart = f64::from(*a) - f64::from(*b);
        apart * apart
    });
    let mean = squares.sum::<f64>() / expected.as_raw().len() as f64;
    10.0 * (255.0 * 255.0 / mean.max(1e-9)).log10()
}
