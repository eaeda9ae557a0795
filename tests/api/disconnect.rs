//! A caller of `/txt2img` and its like that goes away takes its job along, whatever answer it waited for.

use serde_json::{Value, json};

use crate::support::{Worker, wait_until};

fn running(worker: &Worker) -> Option<String> {
    let status = worker.get("/status").json();
    status["queue"]["running"]["job_id"].as_str().map(str::to_owned)
}

fn leave(accept: &str, path: &str, body: &Value) {
    let worker = Worker::start();
    worker.script.gate();
    let socket = worker.raw_post(path, accept, body);
    worker.script.allow(1);
    wait_until("a step is done", || worker.script.count(|script| &script.steps) == 1);
    let mut id = None;
    wait_until("it is shown", || {
        id = running(&worker);
        id.is_some()
    });
    let id = id.unwrap();
    drop(socket);
    worker.wait_for(&id, "cancelled");
    assert_eq!(worker.script.count(|script| &script.steps), 1, "no further step");
    assert_eq!(worker.script.count(|script| &script.decodes), 0);

    worker.script.open();
    let next = worker.enqueue("next");
    worker.wait_for(&next, "completed");
}

#[test]
fn a_reader_of_events() {
    leave("text/event-stream", "/txt2img", &json!({"prompt": "x"}));
}

#[test]
fn a_caller_that_waits_for_json() {
    leave("application/json", "/txt2img", &json!({"prompt": "x"}));
}

#[test]
fn a_caller_that_waits_for_a_picture() {
    leave("image/png", "/txt2img", &json!({"prompt": "x"}));
}

#[test]
fn a_caller_of_img2img() {
    let body = json!({"prompt": "x", "image": crate::support::png(8, 8)});
    leave("application/json", "/img2img", &body);
}

#[test]
fn a_caller_whose_job_is_queued() {
    for accept in ["text/event-stream", "application/json"] {
        let worker = Worker::start();
        worker.script.gate();
        let first = worker.enqueue("first");
        let socket = worker.raw_post("/txt2img", accept, &json!({"prompt": "second"}));
        wait_until("it waits", || worker.get("/status").json()["queue"]["depth"] == 1);
        drop(socket);
        wait_until("it is gone", || worker.get("/status").json()["queue"]["depth"] == 0);
        worker.script.open();
        worker.wait_for(&first, "completed");
        assert_eq!(worker.script.count(|script| &script.runs), 1);
    }
}

#[test]
fn jobs_of_v1_jobs_outlive_their_readers() {
    let worker = Worker::start();
    worker.script.gate();
    let id = worker.enqueue("x");
    let mut stream = worker.join(&id, None);
    stream.until("started");
    drop(stream);
    worker.script.allow(1);
    wait_until("it goes on", || worker.job(&id)["step"] == 1);
    worker.script.open();
    worker.wait_for(&id, "completed");
}

#[test]
fn callers_that_leave_at_once_leave_nothing_behind() {
    let worker = Worker::with(|plan| plan.settings.queue.capacity = 64);
    worker.script.gate();
    for round in 0..20 {
        drop(worker.raw_post("/txt2img", "application/json", &json!({"prompt": format!("{round}")})));
    }
    let last = worker.enqueue("last");
    wait_until("only the last one is left", || {
        let queue = worker.get("/status").json()["queue"].clone();
        queue["depth"] == 0 && queue["running"]["job_id"] == last.as_str()
    });
    worker.script.open();
    worker.wait_for(&last, "completed");
    // A caller whose bytes arrive only now leaves nothing behind either.
    wait_until("nothing is left", || worker.get("/status").json()["state"] == "idle");
}
