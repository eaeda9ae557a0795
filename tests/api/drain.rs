//! What SIGTERM does: no new jobs, accepted ones finish or are cancelled after the grace time, then the end.

use std::sync::mpsc;

use serde_json::json;

use crate::support::{Worker, wait_until};

#[test]
fn accepted_jobs_finish_and_new_ones_are_refused() {
    let mut worker = Worker::with(|plan| plan.settings.server.grace_s = 60);
    worker.script.gate();
    let running = worker.enqueue("running");
    let waiting = worker.enqueue("waiting");
    let streams = [worker.join(&running, None), worker.join(&waiting, None)];
    worker.terminate();
    wait_until("it drains", || worker.get("/status").json()["state"] == "draining");

    let answer = worker.post("/txt2img", &json!({"prompt": "x"}));
    assert_eq!((answer.status, answer.code().as_str()), (503, "not_ready"));
    assert!(answer.message().contains("draining"));
    let answer = worker.post("/v1/jobs", &json!({"operation": "image_generation", "prompt": "x"}));
    assert_eq!(answer.status, 503);
    let ready = worker.get("/ready");
    assert_eq!((ready.status, ready.json()["reason"].as_str()), (503, Some("draining")));
    assert_eq!(worker.get("/health").status, 200);

    worker.script.open();
    for stream in streams {
        assert_eq!(stream.rest().last().unwrap().name, "complete");
    }
    worker.wait_for_end();
}

#[test]
fn after_the_grace_time_jobs_are_cancelled() {
    let mut worker = Worker::with(|plan| plan.settings.server.grace_s = 1);
    worker.script.gate();
    let running = worker.enqueue("running");
    let waiting = worker.enqueue("waiting");
    let streams = [worker.join(&running, None), worker.join(&waiting, None)];
    worker.terminate();
    for stream in streams {
        assert_eq!(stream.rest().last().unwrap().name, "cancelled");
    }
    worker.wait_for_end();
    assert_eq!(worker.script.count(|script| &script.decodes), 0);
}

#[test]
fn an_idle_worker_ends_at_once() {
    let mut worker = Worker::with(|plan| plan.settings.server.grace_s = 60);
    worker.terminate();
    worker.wait_for_end();
}

#[test]
fn a_worker_that_still_loads_ends_too() {
    // The load ends when the test does.
    let (loaded, wait) = mpsc::channel::<()>();
    let mut worker = Worker::unready(|plan| {
        plan.before_load = Box::new(move |_, _| {
            let _ = wait.recv();
            Ok(())
        });
    });
    worker.terminate();
    worker.wait_for_end();
    drop(loaded);
}
