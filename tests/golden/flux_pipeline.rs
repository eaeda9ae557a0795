//! Whole FLUX pictures as diffusers paints them with the same tiny models: at most 2/255 apart, in f32.
//! Recipe: `tests/fixtures/flux/make_flux.py`.

use image::RgbImage;
use sd_worker::domain::event::Step;
use sd_worker::domain::load::{DeviceChoice, DtypeChoice, LoadOptions, Residency};
use sd_worker::domain::picture::{InputImage, InputMask, OutputFormat, Size};
use sd_worker::domain::request::{GenerationRequest, LoraRef, Operation, OperationKind, PromptSyntax, StepCache};
use sd_worker::domain::sampling::Sampler;
use sd_worker::pipeline::{LoadWatch, Pipeline, PipelineError, Watch, load};
use serde_json::Value;

use crate::flux::{folder, json, path};

const TOLERANCE: u8 = 2;

struct Silent;

impl LoadWatch for Silent {
    fn progress(&mut self, _stage: &str, _fraction: f32) {}
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

/// Loads a tiny model.
pub fn model(name: &str, residency: Residency) -> Box<dyn Pipeline> {
    model_as(name, residency, DtypeChoice::F32)
}

fn model_as(name: &str, residency: Residency, dtype: DtypeChoice) -> Box<dyn Pipeline> {
    let folder = folder(name);
    let options = LoadOptions {
        model: Some(folder.path().to_str().unwrap().to_owned()),
        device: DeviceChoice::Cpu,
        dtype,
        residency,
        lora_dir: Some(path("loras")),
        ..LoadOptions::default()
    };
    // The files stay open, so that encoders can be read again after the folder is gone.
    load(&options, &mut Silent).unwrap()
}

fn picture(name: &str) -> RgbImage {
    image::open(path("pictures").join(format!("{name}.png")))
        .unwrap()
        .into_rgb8()
}

fn mask() -> InputMask {
    InputMask(image::open(path("pictures/mask_64x48.png")).unwrap().into_luma8())
}

/// A case by its name.
pub fn case(name: &str) -> Value {
    let cases = json("pictures/cases.json");
    cases
        .as_array()
        .unwrap()
        .iter()
        .find(|case| case["name"] == name)
        .unwrap()
        .clone()
}

/// The request of a case.
pub fn request(case: &Value) -> GenerationRequest {
    let number = |name: &str| case[name].as_f64();
    let image = || InputImage(picture("input_64x48"));
    let strength = number("strength").unwrap_or(1.0) as f32;
    let operation = match (case["image"].as_bool(), case["mask_image"].as_bool()) {
        (None, _) => Operation::TextToImage,
        (_, None) => Operation::ImageToImage {
            image: image(),
            strength,
        },
        _ => Operation::Inpaint {
            image: image(),
            mask: mask(),
            strength,
            feather: 0,
        },
    };
    GenerationRequest {
        operation,
        prompt: case["prompt"].as_str().unwrap().to_owned(),
        negative_prompt: case["negative_prompt"].as_str().unwrap_or_default().to_owned(),
        prompt_syntax: PromptSyntax::A1111,
        size: Size {
            width: number("width").unwrap() as u32,
            height: number("height").unwrap() as u32,
        },
        steps: number("num_inference_steps").unwrap() as u32,
        guidance_scale: number("guidance_scale").unwrap() as f32,
        guidance_interval: (0.0, 1.0),
        true_cfg_scale: number("true_cfg_scale").unwrap_or(1.0) as f32,
        seed: case["seed"].as_u64().unwrap(),
        count: 1,
        sampler: case["sampler"].as_str().unwrap_or("euler").parse().unwrap(),
        schedule: "default".parse().unwrap(),
        loras: number("lora")
            .map(|strength| tiny(strength as f32))
            .into_iter()
            .collect(),
        clip_skip: 1,
        eta: 0.0,
        preview_every: 0,
        size_conditioning: None,
        step_cache: StepCache::Off,
        output_format: OutputFormat::Png,
    }
}

fn tiny(strength: f32) -> LoraRef {
    LoraRef {
        name: "tiny".to_owned(),
        strength,
    }
}

fn decode(bytes: &[u8]) -> RgbImage {
    image::load_from_memory(bytes).unwrap().into_rgb8()
}

fn paint(model: &mut dyn Pipeline, request: &GenerationRequest) -> Vec<RgbImage> {
    let done = model.generate(request, &mut Recorder::default()).unwrap();
    assert_eq!(done.warnings, Vec::<String>::new());
    done.images.iter().map(|image| decode(&image.bytes)).collect()
}

/// Fails where a pixel that `counts` is more than the tolerance apart.
fn close(what: &str, found: &RgbImage, expected: &RgbImage, counts: impl Fn(u32, u32) -> bool) {
    assert_eq!(found.dimensions(), expected.dimensions(), "{what}");
    let apart = |(x, y, p): (u32, u32, &image::Rgb<u8>)| {
        let q = expected.get_pixel(x, y);
        if counts(x, y) {
            p.0.iter().zip(q.0).map(|(a, b)| a.abs_diff(b)).max().unwrap()
        } else {
            0
        }
    };
    let worst = found.enumerate_pixels().map(apart).max().unwrap();
    assert!(worst <= TOLERANCE, "{what}: {worst}/255 apart");
}

/// Paints the cases as diffusers did.
fn check(model: &mut dyn Pipeline, names: &[&str]) {
    for name in names {
        let found = paint(model, &request(&case(name)));
        close(name, &found[0], &picture(name), |_, _| true);
    }
}

#[test]
fn dev_paints_as_diffusers_with_each_flow_sampler() {
    let mut dev = model("dev", Residency::Keep);
    check(
        dev.as_mut(),
        &[
            "dev_txt2img",
            "dev_guidance",
            "dev_true_cfg",
            "dev_tall",
            "dev_heun",
            "dev_dpmpp_2m",
        ],
    );
    assert_eq!(dev.info().samplers, Sampler::FLOW);
    assert_eq!((dev.info().family.name(), dev.info().operations.len()), ("flux-dev", 3));
}

#[test]
fn schnell_paints_as_diffusers_and_a_batch_counts_its_seed_up() {
    let mut schnell = model("schnell", Residency::Sequential);
    check(schnell.as_mut(), &["schnell_seed5", "schnell_seed6"]);
    let batch = GenerationRequest {
        count: 2,
        ..request(&case("schnell_seed5"))
    };
    let mut recorder = Recorder::default();
    let done = schnell.generate(&batch, &mut recorder).unwrap();
    assert_eq!(done.images.iter().map(|image| image.seed).collect::<Vec<_>>(), [5, 6]);
    for (image, name) in done.images.iter().zip(["schnell_seed5", "schnell_seed6"]) {
        close(name, &decode(&image.bytes), &picture(name), |_, _| true);
    }
    let counted: Vec<_> = recorder.steps.iter().map(|step| (step.step, step.total)).collect();
    assert_eq!(counted, [(1, 4), (2, 4), (3, 4), (4, 4)]);
}

#[test]
fn a_lora_of_transformer_and_clip_paints_as_diffusers_and_leaves_no_trace() {
    for residency in [Residency::Keep, Residency::Sequential] {
        let mut dev = model("dev", residency);
        let plain = paint(dev.as_mut(), &request(&case("dev_txt2img")));
        check(dev.as_mut(), &["dev_lora_0.8", "dev_lora_-0.5"]);
        assert_eq!(paint(dev.as_mut(), &request(&case("dev_txt2img"))), plain);
        let tagged = GenerationRequest {
            prompt: "a panda on a blue background<lora:tiny:0.8>".to_owned(),
            loras: Vec::new(),
            ..request(&case("dev_lora_0.8"))
        };
        close(
            "a tag",
            &paint(dev.as_mut(), &tagged)[0],
            &picture("dev_lora_0.8"),
            |_, _| true,
        );
    }
}

#[test]
fn img2img_goes_as_far_as_its_strength() {
    let mut dev = model("dev", Residency::Keep);
    check(dev.as_mut(), &["dev_img2img_0.3", "dev_img2img_0.6", "dev_img2img_1.0"]);
}

/// The painted part is diffusers', the rest is the input to the bit.
fn check_inpaint(model: &mut dyn Pipeline, names: &[&str]) {
    let (mask, input) = (mask().0, picture("input_64x48"));
    let painted = |x, y| mask.get_pixel(x, y).0[0] >= 128;
    for name in names {
        let found = &paint(model, &request(&case(name)))[0];
        close(name, found, &picture(name), painted);
        for (x, y, pixel) in found.enumerate_pixels().filter(|(x, y, _)| !painted(*x, *y)) {
            assert_eq!(pixel, input.get_pixel(x, y), "{name} at {x}, {y}");
        }
    }
}

#[test]
fn inpainting_changes_the_masked_part_alone() {
    check_inpaint(
        model("dev", Residency::Keep).as_mut(),
        &["dev_inpaint", "dev_inpaint_true_cfg"],
    );
}

#[test]
fn fill_reads_mask_and_masked_picture_and_only_inpaints() {
    let mut fill = model("fill", Residency::Keep);
    check_inpaint(fill.as_mut(), &["fill_1.0", "fill_0.6"]);
    assert_eq!(fill.info().operations, [OperationKind::ImageInpaint]);
    assert_eq!(fill.info().defaults.guidance_scale, 30.0);
    let text = GenerationRequest {
        operation: Operation::TextToImage,
        ..request(&case("fill_1.0"))
    };
    let error = fill.generate(&text, &mut Recorder::default()).unwrap_err();
    assert!(error.to_string().contains("image and a mask"), "{error}");
}

/// Largest acceptable noise of bf16 beside f32.
const BF16_PSNR: f64 = 38.0;

#[test]
fn bf16_paints_nearly_what_f32_paints() {
    let mut dev = model_as("dev", Residency::Keep, DtypeChoice::Bf16);
    assert_eq!(dev.info().dtype, "bf16");
    let (found, exact) = (
        &paint(dev.as_mut(), &request(&case("dev_txt2img")))[0],
        picture("dev_txt2img"),
    );
    let errors = found
        .as_raw()
        .iter()
        .zip(exact.as_raw())
        .map(|(a, b)| f64::from(a.abs_diff(*b)).powi(2));
    let psnr = 20.0 * 255f64.log10() - 10.0 * (errors.sum::<f64>() / exact.as_raw().len() as f64).log10();
    assert!(psnr >= BF16_PSNR, "{psnr} dB");
}

#[test]
fn cancelling_stops_within_a_step_and_skips_the_vae() {
    let mut dev = model("dev", Residency::Keep);
    let steps = request(&case("dev_txt2img")).steps as usize;
    for stop_after in [0, 1, steps] {
        let mut recorder = Recorder {
            stop_after: Some(stop_after),
            ..Recorder::default()
        };
        let result = dev.generate(&request(&case("dev_txt2img")), &mut recorder);
        assert!(matches!(result, Err(PipelineError::Cancelled)), "{stop_after}");
        assert_eq!(recorder.steps.len(), stop_after);
    }
    check(dev.as_mut(), &["dev_txt2img"]);
}

#[test]
fn previews_come_every_so_many_steps_at_an_eighth_of_the_size() {
    let mut dev = model("dev", Residency::Keep);
    let asked = GenerationRequest {
        preview_every: 2,
        ..request(&case("dev_txt2img"))
    };
    let mut recorder = Recorder::default();
    dev.generate(&asked, &mut recorder).unwrap();
    assert_eq!(
        recorder.previews.iter().map(RgbImage::dimensions).collect::<Vec<_>>(),
        [(8, 6), (8, 6)]
    );
}

#[test]
fn what_flux_does_not_do_is_refused_by_field() {
    let mut dev = model("dev", Residency::Keep);
    let plain = request(&case("dev_txt2img"));
    let refused = [
        GenerationRequest {
            eta: 0.5,
            ..plain.clone()
        },
        GenerationRequest {
            clip_skip: 2,
            ..plain.clone()
        },
        GenerationRequest {
            negative_prompt: "a dog".to_owned(),
            ..plain.clone()
        },
        GenerationRequest {
            sampler: Sampler::Ddim,
            ..plain
        },
    ];
    for (request, field) in refused.iter().zip(["eta", "clip_skip", "negative_prompt", "sampler"]) {
        let error = dev.generate(request, &mut Recorder::default()).unwrap_err();
        assert!(error.to_string().contains(field), "{error}");
    }
}

#[test]
fn a_prompt_longer_than_t5_reads_is_said_to_be_cut() {
    let mut dev = model("dev", Residency::Keep);
    let long = GenerationRequest {
        prompt: "a panda ".repeat(400),
        steps: 1,
        ..request(&case("dev_txt2img"))
    };
    let done = dev.generate(&long, &mut Recorder::default()).unwrap();
    assert!(
        done.warnings.len() == 1 && done.warnings[0].starts_with("prompt:"),
        "{:?}",
        done.warnings
    );
}

#[test]
fn weights_and_changes_in_the_prompt_change_the_picture() {
    let mut dev = model("dev", Residency::Keep);
    let with = |prompt: &str| GenerationRequest {
        prompt: prompt.to_owned(),
        ..request(&case("dev_txt2img"))
    };
    let plain = picture("dev_txt2img");
    let neutral = &paint(dev.as_mut(), &with("a (panda:1.0) on a blue background"))[0];
    close("a weight of 1", neutral, &plain, |_, _| true);
    for prompt in [
        "a (panda:1.8) on a blue background",
        "a [panda:dog:2] on a blue background",
    ] {
        let found = &paint(dev.as_mut(), &with(prompt))[0];
        assert_ne!(found, &plain, "{prompt}");
    }
}
