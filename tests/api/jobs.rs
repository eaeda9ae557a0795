//! `/v1/jobs`: jobs that outlive the connection that made them.

use serde_json::json;

use crate::support::Worker;

#[test]
fn what_a_result_warns_of_can_be_asked_for_later() {
    let worker = Worker::start();
    let body = json!({ "operation": "image_generation", "prompt": "warn two layers match nothing" });
    let id = worker.post("/v1/jobs", &body).json()["job_id"]
        .as_str()
        .unwrap()
        .to_owned();
    worker.wait_for(&id, "completed");
    assert_eq!(worker.job(&id)["warnings"], json!(["two layers match nothing"]));
    let picture = worker.get(&format!("/v1/jobs/{id}/images/0"));
    assert_eq!(picture.header("x-warning"), "two layers match nothing");
}

#[test]
fn a_hives_form_makes_a_job_whose_pictures_can_be_fetched() {
    let worker = Worker::start();
    let body = json!({
        "operation": "image_generation", "hive_id": "h", "worker_id": "w", "prompt": "a cat", "seed": 5, "n": 2,
        "output_format": "webp",
    });
    let answer = worker.post("/v1/jobs", &body);
    assert_eq!(answer.status, 202, "{}", answer.text());
    let id = answer.json()["job_id"].as_str().unwrap().to_owned();
    assert_eq!(answer.json()["sse_url"], format!("/v1/jobs/{id}/stream"));
    assert_eq!(answer.json()["position"], 0);
    assert_eq!(answer.header("location"), format!("/v1/jobs/{id}"));
    worker.wait_for(&id, "completed");

    let job = worker.job(&id);
    assert_eq!(job["job_id"], id.as_str());
    assert_eq!((&job["step"], &job["total"]), (&json!(4), &json!(4)));
    assert_eq!(job["seed"], 5);
    assert!(job["position"].is_null() && job["error"].is_null());
    assert_eq!(job["warnings"], json!([]));
    for field in ["created_at", "started_at", "finished_at"] {
        assert!(job[field].as_str().unwrap().ends_with('Z'), "{field}: {}", job[field]);
    }

    let picture = worker.get(&format!("/v1/jobs/{id}/images/1"));
    assert_eq!((picture.status, picture.header("content-type")), (200, "image/webp"));
    assert_eq!(picture.header("x-seed"), "6");
    assert_eq!(image::guess_format(&picture.body).unwrap(), image::ImageFormat::WebP);
}

#[test]
fn jobs_are_listed_newest_first() {
    let worker = Worker::start();
    worker.script.gate();
    let ids = ["a", "b", "c"].map(|prompt| worker.enqueue(prompt));
    let jobs = worker.get("/v1/jobs").json()["jobs"].clone();
    let listed: Vec<_> = jobs
        .as_array()
        .unwrap()
        .iter()
        .map(|job| job["job_id"].as_str().unwrap())
        .collect();
    assert_eq!(listed, [&ids[2], &ids[1], &ids[0]]);
    let states: Vec<_> = jobs
        .as_array()
        .unwrap()
        .iter()
        .map(|job| job["state"].as_str().unwrap())
        .collect();
    assert_eq!(states, ["queued", "queued", "running"]);
    assert_eq!((&jobs[0]["position"], &jobs[1]["position"]), (&json!(2), &json!(1)));
    assert!(jobs[2]["position"].is_null());
}

#[test]
fn what_does_not_exist_is_404() {
    let worker = Worker::start();
    worker.script.gate();
    let id = worker.enqueue("x");
    let unknown = "00000000-0000-4000-8000-000000000000";
    for path in [
        format!("/v1/jobs/{unknown}"),
        format!("/v1/jobs/{unknown}/stream"),
        format!("/v1/jobs/{unknown}/images/0"),
        "/v1/jobs/not-an-id".to_owned(),
        format!("/v1/jobs/{id}/images/0"),
        format!("/v1/jobs/{id}/images/x"),
    ] {
        let answer = worker.get(&path);
        assert_eq!((answer.status, answer.code().as_str()), (404, "not_found"), "{path}");
    }
    assert_eq!(worker.delete(&format!("/v1/jobs/{unknown}")).status, 404);
    worker.script.open();
    worker.wait_for(&id, "completed");
    assert_eq!(worker.get(&format!("/v1/jobs/{id}/images/0")).status, 200);
    assert_eq!(worker.get(&format!("/v1/jobs/{id}/images/1")).status, 404);
}

#[test]
fn finished_jobs_are_kept_by_count() {
    let worker = Worker::with(|plan| plan.settings.queue.keep_jobs = 2);
    let ids = ["a", "b", "c"].map(|prompt| {
        let id = worker.enqueue(prompt);
        worker.wait_for(&id, "completed");
        id
    });
    assert_eq!(worker.get(&format!("/v1/jobs/{}", ids[0])).status, 404);
    assert_eq!(worker.get(&format!("/v1/jobs/{}", ids[1])).status, 200);
    assert_eq!(worker.get("/v1/jobs").json()["jobs"].as_array().unwrap().len(), 2);
}

#[test]
fn finished_jobs_are_kept_for_a_time() {
    let worker = Worker::with(|plan| plan.settings.queue.keep_s = 1);
    let id = worker.enqueue("a");
    worker.wait_for(&id, "completed");
    crate::support::wait_until("it expires", || worker.get(&format!("/v1/jobs/{id}")).status == 404);
}
