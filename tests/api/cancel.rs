//! `DELETE /v1/jobs/{id}`: while queued, running, decoding, and afterwards.

use std::sync::atomic::Ordering;

use crate::support::{Worker, wait_until};

fn url(id: &str) -> String {
    format!("/v1/jobs/{id}")
}

#[test]
fn a_queued_job_never_runs_and_the_others_move_up() {
    let worker = Worker::start();
    worker.script.gate();
    let ids = ["first", "second", "third"].map(|prompt| worker.enqueue(prompt));
    let mut third = worker.join(&ids[2], None);
    assert_eq!(third.until("queued").data["position"], 2);

    let answer = worker.delete(&url(&ids[1]));
    assert_eq!(
        (answer.status, answer.json()["state"].as_str()),
        (200, Some("cancelled"))
    );
    assert_eq!(third.until("queued").data["position"], 1);
    let events = worker.join(&ids[1], None).rest();
    assert_eq!(events.last().unwrap().name, "cancelled");

    worker.script.open();
    third.until("complete");
    assert_eq!(*worker.script.prompts.lock().unwrap(), ["first", "third"]);
}

#[test]
fn a_running_job_stops_within_a_step_and_skips_the_decoder() {
    let worker = Worker::start();
    worker.script.gate();
    let id = worker.enqueue("x");
    let mut stream = worker.join(&id, None);
    worker.script.allow(2);
    while stream.until("progress").data["step"] != 2 {}

    assert_eq!(worker.delete(&url(&id)).status, 200);
    let rest = stream.rest();
    assert_eq!(rest.last().unwrap().name, "cancelled");
    assert_eq!(worker.job(&id)["state"], "cancelled");
    assert_eq!(worker.script.count(|script| &script.steps), 2);
    assert_eq!(worker.script.count(|script| &script.decodes), 0);

    worker.script.open();
    let next = worker.enqueue("next");
    worker.wait_for(&next, "completed");
}

#[test]
fn a_job_that_is_being_decoded_stops() {
    let worker = Worker::start();
    worker.script.hold_decode.store(true, Ordering::SeqCst);
    let id = worker.enqueue("x");
    wait_until("the decoder runs", || {
        worker.script.count(|script| &script.decodes) == 1
    });
    assert_eq!(worker.delete(&url(&id)).status, 200);
    worker.wait_for(&id, "cancelled");
    assert_eq!(worker.get(&format!("/v1/jobs/{id}/images/0")).status, 404);
}

#[test]
fn cancelling_twice_or_too_late_changes_nothing() {
    let worker = Worker::start();
    let done = worker.enqueue("x");
    worker.wait_for(&done, "completed");
    for _ in 0..2 {
        let answer = worker.delete(&url(&done));
        assert_eq!(
            (answer.status, answer.json()["state"].as_str()),
            (200, Some("completed"))
        );
    }
    worker.script.gate();
    let running = worker.enqueue("y");
    worker.delete(&url(&running));
    worker.wait_for(&running, "cancelled");
    let answer = worker.delete(&url(&running));
    assert_eq!(
        (answer.status, answer.json()["state"].as_str()),
        (200, Some("cancelled"))
    );
    assert_eq!(worker.get("/status").json()["totals"]["cancelled"], 1);
}

#[test]
fn a_caller_that_waits_for_json_is_told() {
    let worker = Worker::start();
    worker.script.gate();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| worker.paint("/txt2img", &serde_json::json!({"prompt": "x"})));
        wait_until("it runs", || {
            !worker.get("/status").json()["queue"]["running"].is_null()
        });
        let id = worker.get("/status").json()["queue"]["running"]["job_id"]
            .as_str()
            .unwrap()
            .to_owned();
        worker.delete(&url(&id));
        let answer = waiting.join().unwrap();
        assert_eq!((answer.status, answer.code().as_str()), (409, "cancelled"));
    });
}
