//! `Idempotency-Key`: a repeat gets the job of the first.

use serde_json::{Value, json};

use crate::support::{Answer, Worker};

fn post(worker: &Worker, key: &str, prompt: &str) -> Answer {
    let body = json!({"operation": "image_generation", "prompt": prompt});
    worker.post_with("/v1/jobs", &[("idempotency-key", key)], &body)
}

fn id(answer: &Answer) -> Value {
    assert_eq!(answer.status, 202, "{}", answer.text());
    answer.json()["job_id"].clone()
}

#[test]
fn a_repeat_gets_the_same_job_also_when_it_is_done() {
    let worker = Worker::start();
    let first = id(&post(&worker, "k1", "a"));
    assert_eq!(id(&post(&worker, "k1", "a")), first);
    worker.wait_for(first.as_str().unwrap(), "completed");
    assert_eq!(id(&post(&worker, "k1", "a")), first);
    assert_ne!(id(&post(&worker, "k2", "a")), first);
    assert_eq!(worker.get("/v1/jobs").json()["jobs"].as_array().unwrap().len(), 2);
}

#[test]
fn a_repeat_needs_no_place_in_a_full_queue() {
    let worker = Worker::with(|plan| plan.settings.queue.capacity = 1);
    worker.script.gate();
    worker.enqueue("runs");
    let waiting = id(&post(&worker, "k", "waits"));
    assert_eq!(post(&worker, "other", "x").status, 429);
    assert_eq!(id(&post(&worker, "k", "waits")), waiting);
}

#[test]
fn a_key_of_another_request_is_refused() {
    let worker = Worker::start();
    id(&post(&worker, "k", "a"));
    let answer = post(&worker, "k", "b");
    assert_eq!((answer.status, answer.code().as_str()), (409, "idempotency_key_reused"));
}

#[test]
fn a_key_is_forgotten_with_its_job() {
    let worker = Worker::with(|plan| plan.settings.queue.keep_jobs = 1);
    let first = id(&post(&worker, "k", "a"));
    worker.wait_for(first.as_str().unwrap(), "completed");
    let other = worker.enqueue("pushes it out");
    worker.wait_for(&other, "completed");
    assert_ne!(id(&post(&worker, "k", "b")), first);
}

#[test]
fn a_key_that_is_no_key_is_refused() {
    let worker = Worker::start();
    let answer = post(&worker, &"k".repeat(256), "a");
    assert_eq!((answer.status, answer.param().as_str()), (400, "Idempotency-Key"));
}
