//! What a job does besides its pictures: seeds, steps, previews, cancelling, LoRAs that come and go, reuse between steps.

use candle_core::{Device, Tensor};
use sd_worker::domain::draft::{Draft, Rules};
use sd_worker::domain::limits::Limits;
use sd_worker::domain::load::{DeviceChoice, DtypeChoice, LoadOptions, Residency};
use sd_worker::domain::picture::InputMask;
use sd_worker::domain::request::{GenerationRequest, LoraRef, Operation, OperationKind, StepCache};
use sd_worker::pipeline::image_io::read_parameters;
use sd_worker::pipeline::{PipelineError, load};

use crate::painting::{Recorder, Silent, case, decoded, fixtures, model, model_with, paint, psnr, request};

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

/// The untrained SDXL with guidance makes so much of rounding that diffusers' own bf16 picture is 18 dB from its f32 one;
/// its single Turbo step does not.
#[test]
fn half_types_stay_within_38_db_of_f32() {
    for name in ["sd1", "sd2", "sdxl-turbo"] {
        let job = request(&case(name, "txt2img"));
        let exact = paint(model(name, DtypeChoice::F32).as_mut(), &job);
        for dtype in [DtypeChoice::Bf16, DtypeChoice::F16] {
            let half = paint(model(name, dtype).as_mut(), &job);
            let found = psnr(&decoded(&half, 0), &decoded(&exact, 0));
            assert!(found >= 38.0, "{name} {dtype:?}: {found} dB");
        }
    }
}

#[cfg(feature = "embedded-model")]
#[test]
fn the_built_in_model_paints_in_bf16_within_38_db_of_f32() {
    let paint_all = |dtype| -> Vec<_> {
        let options = LoadOptions {
            device: DeviceChoice::Cpu,
            dtype,
            ..LoadOptions::default()
        };
        let mut pipeline = load(&options, &mut Silent).unwrap();
        let requests = [("a panda on a blue background", 1), ("a red apple", 2)].map(|(prompt, seed)| {
            let draft = Draft {
                prompt: Some(prompt.to_owned()),
                seed: Some(seed),
                steps: Some(8),
                ..Draft::default()
            };
            let rules = Rules {
                model: pipeline.info(),
                limits: &Limits::default(),
                step_cache: StepCache::Off,
                loras: &[],
            };
            draft.build(OperationKind::ImageGeneration, &rules).unwrap()
        });
        let pictures = requests.map(|request| decoded(&paint(pipeline.as_mut(), &request), 0));
        pictures.to_vec()
    };
    let (half, exact) = (paint_all(DtypeChoice::Bf16), paint_all(DtypeChoice::F32));
    for (half, exact) in half.iter().zip(&exact) {
        let found = psnr(half, exact);
        assert!(found >= 38.0, "{found} dB");
    }
}

#[test]
fn loras_leave_no_trace_and_unknown_ones_are_refused() {
    let mut pipeline = model("sd1", DtypeChoice::F32);
    let plain = request(&case("sd1", "txt2img"));
    let before = paint(pipeline.as_mut(), &plain);
    let with = |name: &str, strength| GenerationRequest {
        loras: vec![LoraRef {
            name: name.to_owned(),
            strength,
        }],
        ..plain.clone()
    };
    let changed = paint(pipeline.as_mut(), &with("sd1-peft", 1.0));
    assert_ne!(decoded(&changed, 0), decoded(&before, 0));
    assert!(changed.warnings.is_empty(), "{:?}", changed.warnings);
    assert_eq!(paint(pipeline.as_mut(), &plain).images, before.images);
    let error = pipeline
        .generate(&with("nobody", 1.0), &mut Recorder::default())
        .unwrap_err();
    assert!(
        matches!(error, PipelineError::Unsupported { field: "loras", .. }),
        "{error}"
    );
    assert_eq!(paint(pipeline.as_mut(), &plain).images, before.images);
}

/// A LoRA of one layer of the tiny text encoder and one of the tiny UNet, or of a layer that is nowhere.
fn write_lora(path: &std::path::Path, layers: &[(&str, usize, usize)]) {
    let mut tensors = std::collections::HashMap::new();
    for (layer, outputs, inputs) in layers {
        let part = |rows: usize, columns: usize| {
            let numbers: Vec<f32> = (0..rows * columns)
                .map(|i| (i * 7919 % 13) as f32 / 6.0 - 1.0)
                .collect();
            Tensor::from_vec(numbers, (rows, columns), &Device::Cpu).unwrap()
        };
        tensors.insert(format!("{layer}.lora_up.weight"), part(*outputs, 2));
        tensors.insert(format!("{layer}.lora_down.weight"), part(2, *inputs));
    }
    candle_core::safetensors::save(&tensors, path).unwrap();
}

#[test]
fn a_lora_that_fails_leaves_nothing_of_the_one_before() {
    let dir = tempfile::tempdir().unwrap();
    let text = ("lora_te_text_model_encoder_layers_0_mlp_fc1", 32, 16);
    write_lora(&dir.path().join("text.safetensors"), &[text]);
    write_lora(
        &dir.path().join("elsewhere.safetensors"),
        &[("lora_unet_nowhere", 8, 8)],
    );
    write_lora(&dir.path().join("misfit.safetensors"), &[(text.0, 8, 8)]);
    std::fs::write(dir.path().join("empty.safetensors"), "").unwrap();
    let lora_dir = Some(dir.path().to_owned());
    let options = LoadOptions {
        lora_dir,
        ..LoadOptions::default()
    };
    let mut pipeline = model_with("sd1", DtypeChoice::F32, options);
    let plain = request(&case("sd1", "txt2img"));
    let with = |name: &str| GenerationRequest {
        loras: vec![LoraRef {
            name: name.to_owned(),
            strength: 1.0,
        }],
        ..plain.clone()
    };
    let before = paint(pipeline.as_mut(), &plain);
    for failing in ["elsewhere", "misfit", "empty", "nobody"] {
        let changed = paint(pipeline.as_mut(), &with("text"));
        assert!(decoded(&changed, 0) != decoded(&before, 0), "the LoRA does nothing");
        let failed = pipeline.generate(&with(failing), &mut Recorder::default());
        assert!(failed.is_err(), "{failing}");
        let after = paint(pipeline.as_mut(), &plain);
        assert!(after.images == before.images, "another picture after {failing}");
    }
}

#[test]
fn png_carries_the_parameters_that_a1111_reads() {
    let mut pipeline = model("sd1", DtypeChoice::F32);
    let job = request(&case("sd1", "img2img"));
    let generation = paint(pipeline.as_mut(), &job);
    let text = read_parameters(&generation.images[0].bytes).unwrap();
    for part in [
        "a rusty robot, walking on the beach\nNegative prompt: blurry\nSteps: 6, Sampler: DDIM",
        "CFG scale: 5, Seed: 42, Size: 64x64",
        "Denoising strength: 0.3",
    ] {
        assert!(text.contains(part), "{part:?} is not in {text:?}");
    }
}

#[test]
fn reuse_between_steps_is_exact_when_strict_and_close_when_not() {
    let mut pipeline = model("sd1", DtypeChoice::F32);
    let job = |step_cache| GenerationRequest {
        steps: 20,
        step_cache,
        ..request(&case("sd1", "txt2img"))
    };
    let exact = decoded(&paint(pipeline.as_mut(), &job(StepCache::Off)), 0);
    let strict = paint(pipeline.as_mut(), &job(StepCache::Threshold(f32::MIN_POSITIVE)));
    assert_eq!(decoded(&strict, 0), exact);
    let loose = paint(pipeline.as_mut(), &job(StepCache::Threshold(0.3)));
    assert_ne!(decoded(&loose, 0), exact);
    assert!(psnr(&decoded(&loose, 0), &exact) > 20.0);
}

#[test]
fn guidance_outside_its_interval_is_no_guidance() {
    let mut pipeline = model("sd1", DtypeChoice::F32);
    let job = request(&case("sd1", "txt2img"));
    let never = GenerationRequest {
        guidance_interval: (0.0, 0.0),
        ..job.clone()
    };
    let unguided = GenerationRequest {
        guidance_scale: 1.0,
        ..job.clone()
    };
    let [never, unguided, guided] = [never, unguided, job].map(|job| decoded(&paint(pipeline.as_mut(), &job), 0));
    assert_eq!(never, unguided);
    assert_ne!(never, guided);
}

#[test]
fn a_strength_of_nothing_gives_the_picture_back() {
    let mut pipeline = model("sd1", DtypeChoice::F32);
    let mut job = request(&case("sd1", "img2img"));
    let Operation::ImageToImage { image, strength } = &mut job.operation else {
        panic!("img2img");
    };
    *strength = 0.0;
    let picture = image.0.clone();
    assert_eq!(decoded(&paint(pipeline.as_mut(), &job), 0), picture);
}

#[test]
fn a_feathered_mask_touches_no_kept_pixel() {
    let mut pipeline = model("sd1", DtypeChoice::F32);
    let mut job = request(&case("sd1", "inpaint"));
    let sharp = decoded(&paint(pipeline.as_mut(), &job), 0);
    let Operation::Inpaint {
        image, mask, feather, ..
    } = &mut job.operation
    else {
        panic!("inpaint");
    };
    *feather = 6;
    let (picture, InputMask(mask)) = (image.0.clone(), mask.clone());
    let soft = decoded(&paint(pipeline.as_mut(), &job), 0);
    assert_ne!(soft, sharp);
    for (x, y, pixel) in soft.enumerate_pixels() {
        if mask.get_pixel(x, y).0[0] < 128 {
            assert_eq!(pixel, picture.get_pixel(x, y));
        }
    }
}

#[test]
fn an_inpainting_model_paints_without_a_mask_too() {
    let mut pipeline = model("sd1-inpaint", DtypeChoice::F32);
    for operation in ["txt2img", "img2img"] {
        let job = request(&case("sd1", operation));
        assert_eq!(decoded(&paint(pipeline.as_mut(), &job), 0).dimensions(), (64, 64));
    }
}

#[test]
fn text_encoders_that_are_dropped_come_back_and_prompts_are_remembered() {
    let options = LoadOptions {
        residency: Residency::Sequential,
        ..LoadOptions::default()
    };
    let mut pipeline = model_with("sdxl", DtypeChoice::F32, options);
    let job = request(&case("sdxl", "txt2img"));
    let first = paint(pipeline.as_mut(), &job);
    assert_eq!(first.images, paint(pipeline.as_mut(), &job).images);
    let other = GenerationRequest {
        prompt: "something else".to_owned(),
        ..job
    };
    assert_ne!(first.images, paint(pipeline.as_mut(), &other).images);
}

#[test]
fn what_a1111_would_compose_is_pointed_out_and_other_tags_are_refused() {
    let mut pipeline = model("sd1", DtypeChoice::F32);
    let with = |prompt: &str| GenerationRequest {
        prompt: prompt.to_owned(),
        steps: 1,
        ..request(&case("sd1", "txt2img"))
    };
    let generation = paint(pipeline.as_mut(), &with("a cat AND a dog"));
    assert!(generation.warnings[0].contains("AND"), "{:?}", generation.warnings);
    let error = pipeline
        .generate(&with("<hypernet:a:1>"), &mut Recorder::default())
        .unwrap_err();
    assert!(
        matches!(error, PipelineError::Unsupported { field: "prompt", .. }),
        "{error}"
    );
}

#[test]
fn taesd_makes_previews_where_its_file_is_given() {
    let models = fixtures().join("../models");
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(models.join("taesd.json"), folder.path().join("config.json")).unwrap();
    let weights = folder.path().join("diffusion_pytorch_model.safetensors");
    std::fs::copy(models.join("taesd.safetensors"), weights).unwrap();
    let options = LoadOptions {
        taesd: Some(folder.path().to_owned()),
        ..LoadOptions::default()
    };
    let mut pipeline = model_with("sd1", DtypeChoice::F32, options);
    let job = GenerationRequest {
        preview_every: 3,
        ..request(&case("sd1", "txt2img"))
    };
    let mut recorder = Recorder::default();
    pipeline.generate(&job, &mut recorder).unwrap();
    // The tiny decoder of the fixture doubles the size twice.
    assert!(recorder.previews.iter().all(|preview| preview.dimensions() == (32, 32)));
    assert_eq!(recorder.previews.len(), 2);
}
