//! `/openapi.json` says what the worker does: every route, every field, and nothing else.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::support::{Worker, png};

/// The place where routes are registered: a running worker does not list them.
const ROUTES: &str = include_str!("../../src/http/routes.rs");

/// `METHOD path` of every registered route, but for the parts of pages.
fn registered() -> BTreeSet<String> {
    let mut routes = BTreeSet::new();
    for entry in ROUTES.split("resource(").skip(1) {
        let Some(path) = entry.split('"').nth(1).filter(|path| path.starts_with('/')) else {
            continue;
        };
        if path.ends_with(".css") || path.ends_with(".js") {
            continue;
        }
        for method in ["get", "post", "delete", "put", "patch", "head"] {
            if entry.contains(&format!("web::{method}()")) {
                routes.insert(format!("{method} {path}"));
            }
        }
    }
    routes
}

#[test]
fn every_route_is_described_and_every_description_is_a_route() {
    let worker = Worker::start();
    let api = worker.get("/openapi.json").json();
    assert_eq!(api["openapi"], "3.1.0");
    assert_eq!(api["info"]["version"], env!("CARGO_PKG_VERSION"));
    let mut described = BTreeSet::new();
    for (path, item) in api["paths"].as_object().unwrap() {
        for method in item.as_object().unwrap().keys().filter(|key| *key != "parameters") {
            described.insert(format!("{method} {path}"));
        }
    }
    assert_eq!(described, registered());
    for route in &described {
        let (method, path) = route.split_once(' ').unwrap();
        let path = path.replace("{id}", "x").replace("{index}", "0");
        let answer = match method {
            "get" => worker.get(&path),
            "delete" => worker.delete(&path),
            _ => worker.post(&path, &json!({})),
        };
        let is_there = answer.status != 405 && (answer.status != 404 || answer.message().starts_with("job "));
        assert!(is_there, "{route}: {}", answer.text());
    }
}

#[test]
fn every_field_is_described_and_every_description_is_a_field() {
    let worker = Worker::start();
    let api = worker.get("/openapi.json").json();
    let job = json!({"operation": "image_generation"});
    let pictures = json!({"init_images": [png(8, 8)], "mask": png(8, 8)});
    for (path, schema, needed) in [
        ("/txt2img", "Inpaint", json!({})),
        ("/v1/jobs", "Job", job),
        ("/v1/images/generations", "OpenAiGeneration", json!({})),
        ("/sdapi/v1/txt2img", "A1111TextToImage", json!({})),
        ("/sdapi/v1/img2img", "A1111ImageToImage", pictures),
        (
            "/sdapi/v1/options",
            "A1111Options",
            json!({"sd_model_checkpoint": "fake"}),
        ),
        ("/sdapi/v1/png-info", "A1111PngInfo", json!({})),
    ] {
        let known = known(&worker, path, needed);
        let described: BTreeSet<String> = api["components"]["schemas"][schema]["properties"]
            .as_object()
            .unwrap()
            .keys()
            .cloned()
            .collect();
        assert_eq!(described, known, "{schema}");
    }
}

/// The worker lists the fields it knows when it meets one that it does not.
fn known(worker: &Worker, path: &str, mut body: Value) -> BTreeSet<String> {
    body["zzz"] = 1.into();
    let message = worker.post(path, &body).message();
    let known = message
        .split("allowed: ")
        .nth(1)
        .unwrap_or_else(|| panic!("{path}: {message}"));
    let known = known.split(", ").map(str::to_owned);
    known
        .filter(|field| !["input_image", "init_image", "mask_image"].contains(&field.as_str()))
        .collect()
}
