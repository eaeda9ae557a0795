//! What a worker says of itself: alive, ready, busy, able, and in numbers.

use std::sync::mpsc;

use serde_json::json;

use crate::support::{Worker, wait_until};

#[test]
fn http_is_up_before_the_model_and_tells_how_far_the_load_is() {
    let (go, wait) = mpsc::channel::<()>();
    let worker = Worker::unready(|plan| {
        plan.settings.worker.id = "early".into();
        plan.before_load = Box::new(move |_, watch| {
            watch.progress("unet", 0.25);
            let _ = wait.recv();
            Ok(())
        });
    });
    wait_until("it loads", || worker.get("/status").json()["load"]["progress"] == 0.25);
    let health = worker.get("/health");
    assert_eq!(health.status, 200);
    assert_eq!(
        (&health.json()["status"], &health.json()["worker_id"]),
        (&json!("healthy"), &json!("early"))
    );
    assert_eq!(health.json()["version"], env!("CARGO_PKG_VERSION"));
    assert!(health.json()["uptime_s"].is_u64());
    let ready = worker.get("/ready");
    assert_eq!(ready.status, 503);
    assert_eq!(
        ready.json(),
        json!({"ready": false, "reason": "loading the model: unet", "progress": 0.25})
    );
    let status = worker.get("/status").json();
    assert_eq!(
        (&status["state"], &status["load"]["stage"]),
        (&json!("loading"), &json!("unet"))
    );
    assert!(status["model"].is_null());
    for answer in [
        worker.post("/txt2img", &json!({"prompt": "x"})),
        worker.post("/v1/jobs", &json!({"operation": "image_generation", "prompt": "x"})),
        worker.get("/v1/capabilities"),
    ] {
        assert_eq!((answer.status, answer.code().as_str()), (503, "not_ready"));
        assert!(answer.message().contains("unet"));
    }
    go.send(()).unwrap();
    wait_until("it is ready", || worker.get("/ready").json() == json!({"ready": true}));
    assert_eq!(worker.get("/status").json()["state"], "idle");
}

#[test]
fn status_shows_the_running_job() {
    let worker = Worker::start();
    worker.script.gate();
    let id = worker.enqueue("x");
    worker.enqueue("y");
    wait_until("the number of steps", || worker.job(&id)["total"] == 4);
    assert_eq!(worker.job(&id)["step"], 0);
    let running = worker.get("/status").json()["queue"]["running"].clone();
    assert_eq!(
        (&running["step"], &running["total"], &running["eta_ms"]),
        (&json!(0), &json!(4), &json!(null))
    );
    worker.script.allow(2);
    wait_until("two steps", || worker.job(&id)["step"] == 2);
    let status = worker.get("/status").json();
    assert_eq!(
        (&status["state"], &status["queue"]["depth"]),
        (&json!("busy"), &json!(1))
    );
    assert_eq!(status["queue"]["capacity"], 8);
    let running = &status["queue"]["running"];
    assert_eq!(
        (&running["job_id"], &running["step"], &running["total"]),
        (&json!(id), &json!(2), &json!(4))
    );
    assert!(running["eta_ms"].is_u64());
    let model = &status["model"];
    assert_eq!(
        *model,
        json!({"name": "fake", "family": "sd1", "source": "nowhere", "dtype": "f32", "quantization": null, "device": "cpu"})
    );
    if cfg!(target_os = "linux") {
        assert!(status["memory"]["rss"].as_u64().unwrap() > 1_000_000);
    }
}

#[test]
fn capabilities_say_what_may_be_asked_for() {
    let worker = Worker::with(|plan| plan.loras = vec!["ink"]);
    let can = worker.get("/v1/capabilities").json();
    assert_eq!(
        can["operations"],
        json!(["image_generation", "image_transform", "image_inpaint"])
    );
    assert_eq!(
        (&can["sizes"]["min"], &can["sizes"]["max"], &can["sizes"]["multiple_of"]),
        (&json!(64), &json!(2048), &json!(8))
    );
    assert!(can["samplers"].as_array().unwrap().contains(&json!("dpmpp_2m_sde")));
    assert!(can["schedules"].as_array().unwrap().contains(&json!("karras")));
    assert_eq!(can["defaults"]["steps"], 4);
    assert_eq!(can["limits"]["images"], 8);
    assert_eq!(can["output_formats"], json!(["png", "jpeg", "webp"]));
    assert_eq!(can["loras"][0]["name"], "ink");
    // Every name listed is accepted.
    for sampler in can["samplers"].as_array().unwrap() {
        assert_eq!(
            worker
                .paint("/txt2img", &json!({"prompt": "x", "sampler": sampler}))
                .status,
            200,
            "{sampler}"
        );
    }
    for schedule in can["schedules"].as_array().unwrap() {
        assert_eq!(
            worker
                .paint("/txt2img", &json!({"prompt": "x", "schedule": schedule}))
                .status,
            200,
            "{schedule}"
        );
    }
}

#[test]
fn metrics_count_jobs_by_outcome() {
    let worker = Worker::start();
    worker.paint("/txt2img", &json!({"prompt": "x", "n": 2}));
    worker.paint("/txt2img", &json!({"prompt": "fail now"}));
    wait_until("both are counted", || {
        worker.get("/status").json()["totals"]["failed"] == 1
    });
    let answer = worker.get("/metrics");
    assert!(answer.header("content-type").starts_with("text/plain; version=0.0.4"));
    let text = answer.text();
    for line in [
        "# TYPE sd_worker_jobs_total counter",
        "sd_worker_jobs_total{outcome=\"completed\"} 1",
        "sd_worker_jobs_total{outcome=\"failed\"} 1",
        "sd_worker_images_total 2",
        "sd_worker_queue_capacity 8",
        "sd_worker_state{state=\"idle\"} 1",
        "sd_worker_state{state=\"busy\"} 0",
    ] {
        assert!(text.lines().any(|found| found == line), "no {line} in\n{text}");
    }
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let value = line.rsplit(' ').next().unwrap();
        assert!(value.parse::<f64>().is_ok(), "{line}");
    }
}
