//! A1111's API: what its clients send, what they read, what is refused.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sd_worker::domain::request::Operation;
use sd_worker::domain::sampling::{Sampler, Schedule};
use serde_json::{Value, json};

use crate::support::{Worker, png, wait_until};

/// Everything that a client like Open WebUI or a script sends, most of it neutral.
fn full() -> Value {
    json!({
        "prompt": "a cat", "negative_prompt": "dog", "styles": [], "seed": 7, "subseed": -1, "subseed_strength": 0,
        "seed_resize_from_h": -1, "seed_resize_from_w": -1, "sampler_name": "DPM++ 2M", "scheduler": "Karras",
        "batch_size": 2, "n_iter": 1, "steps": 5, "cfg_scale": 6.5, "width": 128, "height": 64,
        "restore_faces": false, "tiling": false, "do_not_save_samples": true, "do_not_save_grid": false, "eta": 0,
        "s_min_uncond": 0, "s_churn": 0, "s_tmin": 0, "s_noise": 1.0, "override_settings": {"CLIP_stop_at_last_layers": 2},
        "override_settings_restore_afterwards": true, "script_args": [], "script_name": null, "send_images": true,
        "save_images": false, "alwayson_scripts": {}, "enable_hr": false, "denoising_strength": 0,
    })
}

#[test]
fn txt2img_answers_as_clients_expect() {
    let worker = Worker::start();
    let answer = worker.post("/sdapi/v1/txt2img", &full());
    assert_eq!(answer.status, 200, "{}", answer.text());
    let json = answer.json();
    assert_eq!(json["images"].as_array().unwrap().len(), 2);
    let bytes = STANDARD.decode(json["images"][0].as_str().unwrap()).unwrap();
    let pixels = image::load_from_memory(&bytes).unwrap();
    assert_eq!((pixels.width(), pixels.height()), (128, 64));
    assert_eq!(json["parameters"], full());
    let info: Value = serde_json::from_str(json["info"].as_str().unwrap()).unwrap();
    assert_eq!((&info["seed"], &info["all_seeds"]), (&json!(7), &json!([7, 8])));
    assert_eq!(info["infotexts"].as_array().unwrap().len(), 2);
    assert_eq!(info["sampler_name"], "DPM++ 2M");

    let request = worker.script.requests.lock().unwrap()[0].clone();
    assert_eq!(
        (request.sampler, request.schedule, request.clip_skip),
        (Sampler::Dpmpp2m, Schedule::Karras, 2)
    );
    assert_eq!((request.steps, request.guidance_scale, request.count), (5, 6.5, 2));
}

#[test]
fn img2img_takes_a_picture_and_a_mask() {
    let worker = Worker::start();
    let body = json!({"prompt": "x", "init_images": [png(8, 8)], "denoising_strength": 0.4, "resize_mode": 0});
    let answer = worker.post("/sdapi/v1/img2img", &body);
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(answer.json()["parameters"].get("init_images").is_none());
    let body = json!({
        "prompt": "x", "init_images": [format!("data:image/png;base64,{}", png(8, 8))], "mask": png(8, 8), "mask_blur": 4,
        "inpainting_fill": 1, "inpaint_full_res": false, "inpaint_full_res_padding": 32, "inpainting_mask_invert": 0,
    });
    let answer = worker.post("/sdapi/v1/img2img", &body);
    assert_eq!(answer.status, 200, "{}", answer.text());
    let requests = worker.script.requests.lock().unwrap();
    assert!(matches!(
        requests[0].operation,
        Operation::ImageToImage { strength: 0.4, .. }
    ));
    assert!(matches!(
        requests[1].operation,
        Operation::Inpaint {
            strength: 0.75,
            feather: 4,
            ..
        }
    ));
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    let worker = Worker::start();
    for (path, bad, param) in [
        ("txt2img", json!({"enable_hr": true}), "enable_hr"),
        ("txt2img", json!({"restore_faces": true}), "restore_faces"),
        ("txt2img", json!({"tiling": true}), "tiling"),
        ("txt2img", json!({"styles": ["x"]}), "styles"),
        ("txt2img", json!({"subseed_strength": 0.5}), "subseed_strength"),
        ("txt2img", json!({"script_name": "xyz"}), "script_name"),
        (
            "txt2img",
            json!({"alwayson_scripts": {"controlnet": {}}}),
            "alwayson_scripts",
        ),
        (
            "txt2img",
            json!({"override_settings": {"eta_noise_seed_delta": 1}}),
            "override_settings.eta_noise_seed_delta",
        ),
        ("txt2img", json!({"sampler_name": "Restart"}), "sampler_name"),
        ("txt2img", json!({"cfg_scale": 31}), "cfg_scale"),
        ("txt2img", json!({"batch_size": 4, "n_iter": 4}), "batch_size"),
        ("txt2img", json!({"nonsense": 1}), "nonsense"),
        ("img2img", json!({}), "init_images"),
        ("img2img", json!({"init_images": []}), "init_images"),
        ("img2img", json!({"init_images": [png(8, 8), png(8, 8)]}), "init_images"),
        (
            "img2img",
            json!({"init_images": [png(8, 8)], "mask": png(8, 8), "inpainting_fill": 0}),
            "inpainting_fill",
        ),
        (
            "img2img",
            json!({"init_images": [png(8, 8)], "mask": png(8, 8), "inpaint_full_res": true}),
            "inpaint_full_res",
        ),
        (
            "img2img",
            json!({"init_images": [png(8, 8)], "denoising_strength": 2}),
            "denoising_strength",
        ),
    ] {
        let mut body = json!({"prompt": "x"});
        for (name, value) in bad.as_object().unwrap() {
            body[name] = value.clone();
        }
        let answer = worker.post(&format!("/sdapi/v1/{path}"), &body);
        assert_eq!(
            (answer.status, answer.param().as_str()),
            (400, param),
            "{bad}: {}",
            answer.text()
        );
    }
    let other = worker.post(
        "/sdapi/v1/txt2img",
        &json!({"override_settings": {"sd_model_checkpoint": "other"}}),
    );
    assert_eq!(other.status, 409);
}

#[test]
fn progress_is_told_and_interrupt_stops() {
    let worker = Worker::start();
    let idle = worker.get("/sdapi/v1/progress").json();
    assert_eq!((&idle["progress"], &idle["state"]["job"]), (&json!(0.0), &json!("")));
    worker.script.gate();
    std::thread::scope(|scope| {
        let job = scope.spawn(|| worker.post("/sdapi/v1/txt2img", &json!({"prompt": "x", "steps": 4})));
        worker.script.allow(2);
        wait_until("half way", || {
            worker.get("/sdapi/v1/progress").json()["progress"] == 0.5
        });
        wait_until("a preview", || {
            !worker.get("/sdapi/v1/progress").json()["current_image"].is_null()
        });
        let skipped = worker.get("/sdapi/v1/progress?skip_current_image=true").json();
        assert!(skipped["current_image"].is_null());
        assert_eq!(
            (&skipped["state"]["sampling_step"], &skipped["state"]["sampling_steps"]),
            (&json!(2), &json!(4))
        );
        assert_eq!(worker.post("/sdapi/v1/interrupt", &json!({})).status, 200);
        assert_eq!(job.join().unwrap().status, 409);
    });
    assert_eq!(worker.script.count(|script| &script.decodes), 0);
}

#[test]
fn lists_have_the_shape_that_clients_read() {
    let worker = Worker::with(|plan| plan.loras = vec!["ink"]);
    let names = |path: &str, field: &str| -> Vec<String> {
        let list = worker.get(&format!("/sdapi/v1/{path}")).json();
        list.as_array()
            .unwrap()
            .iter()
            .map(|item| item[field].as_str().unwrap().to_owned())
            .collect()
    };
    assert!(names("samplers", "name").contains(&"DPM++ 2M SDE".to_owned()));
    assert!(names("schedulers", "label").contains(&"Karras".to_owned()));
    assert_eq!(names("sd-models", "title"), ["fake"]);
    assert_eq!(names("loras", "name"), ["ink"]);
    assert_eq!(names("upscalers", "name"), ["None"]);
    for empty in ["latent-upscale-modes", "sd-vae"] {
        assert!(names(empty, "name").is_empty());
    }
    // Whatever is listed is accepted.
    for sampler in names("samplers", "name") {
        let answer = worker.post("/sdapi/v1/txt2img", &json!({"prompt": "x", "sampler_name": sampler}));
        assert_eq!(answer.status, 200, "{sampler}: {}", answer.text());
    }
}

#[test]
fn options_are_what_they_are() {
    let worker = Worker::start();
    assert_eq!(worker.get("/sdapi/v1/options").json()["sd_model_checkpoint"], "fake");
    let set = |body: Value| worker.post("/sdapi/v1/options", &body);
    assert_eq!(set(json!({"sd_model_checkpoint": "fake"})).status, 200);
    assert_eq!(set(json!({"sd_model_checkpoint": "other"})).status, 409);
    let answer = set(json!({"img2img_color_correction": true}));
    assert_eq!(
        (answer.status, answer.param().as_str()),
        (400, "img2img_color_correction")
    );
}

#[test]
fn png_info_reads_parameters() {
    let worker = Worker::start();
    let text = "a cat\nNegative prompt: dog\nSteps: 5, Sampler: Euler, Seed: 7";
    let pixels = image::RgbImage::new(8, 8);
    let format = sd_worker::domain::picture::OutputFormat::Png;
    let bytes = sd_worker::pipeline::image_io::encode(&pixels, format, 90, Some(text)).unwrap();
    let answer = worker.post("/sdapi/v1/png-info", &json!({"image": STANDARD.encode(bytes)}));
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.json()["info"], text);
    assert_eq!(answer.json()["parameters"]["Seed"], "7");
    let plain = worker.post("/sdapi/v1/png-info", &json!({"image": png(8, 8)}));
    assert_eq!(
        (&plain.json()["info"], &plain.json()["items"]),
        (&json!(""), &json!({}))
    );
    assert_eq!(worker.post("/sdapi/v1/png-info", &json!({})).param(), "image");
}

#[test]
fn requests_of_sillytavern_and_open_webui_are_accepted_as_they_send_them() {
    let worker = Worker::start();
    let sillytavern = json!({
        "url": "http://localhost:7833", "auth": "", "prompt": "a cat", "negative_prompt": "dog",
        "sampler_name": "Euler a", "scheduler": "Karras", "steps": 3, "cfg_scale": 7, "width": 64, "height": 64,
        "restore_faces": false, "enable_hr": false, "hr_upscaler": "Latent", "hr_scale": 1, "hr_additional_modules": [],
        "denoising_strength": 0.7, "hr_second_pass_steps": 0,
        "override_settings": {"CLIP_stop_at_last_layers": 2, "sd_vae": "Automatic"},
        "override_settings_restore_afterwards": true, "clip_skip": 2, "save_images": true, "send_images": true,
        "do_not_save_grid": false, "do_not_save_samples": false,
    });
    let answer = worker.post("/sdapi/v1/txt2img", &sillytavern);
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(worker.script.requests.lock().unwrap()[0].clip_skip, 2);

    let open_webui = json!({
        "prompt": "a cat", "batch_size": 1, "width": 64, "height": 64, "steps": 3, "cfg_scale": 7.0,
        "sampler_name": "Euler", "scheduler": "Automatic",
    });
    let answer = worker.post("/sdapi/v1/txt2img", &open_webui);
    assert_eq!(answer.status, 200, "{}", answer.text());

    // How a mask is used says nothing where there is none.
    let without_mask = json!({
        "prompt": "a cat", "init_images": [png(8, 8)], "inpainting_fill": 0, "inpaint_full_res": true,
        "inpaint_full_res_padding": 32, "inpainting_mask_invert": 0, "mask_blur": 4,
    });
    let answer = worker.post("/sdapi/v1/img2img", &without_mask);
    assert_eq!(answer.status, 200, "{}", answer.text());
    let mut masked = without_mask;
    masked["mask"] = png(8, 8).into();
    let answer = worker.post("/sdapi/v1/img2img", &masked);
    assert_eq!((answer.status, answer.param().as_str()), (400, "inpainting_fill"));
}
