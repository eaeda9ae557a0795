//! Jobs that go wrong cost themselves and nothing else; loads that go wrong are told.

use serde_json::json;

use crate::support::{Worker, wait_until};

#[test]
fn after_a_panic_the_model_is_loaded_again_and_the_next_job_works() {
    let worker = Worker::start();
    let events = worker.follow("/txt2img", &json!({"prompt": "panic now"})).rest();
    let last = events.last().unwrap();
    assert_eq!(
        (last.name.as_str(), last.data["code"].as_str()),
        ("error", Some("model_failed"))
    );
    assert!(last.data["message"].as_str().unwrap().contains("told to panic"));

    let answer = worker.paint("/txt2img", &json!({"prompt": "next"}));
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(worker.script.count(|script| &script.loads), 2);
    wait_until("both are counted", || {
        let totals = worker.get("/status").json()["totals"].clone();
        totals["failed"] == 1 && totals["completed"] == 1
    });
}

#[test]
fn jobs_that_wait_survive_the_panic_of_another() {
    let worker = Worker::start();
    worker.script.gate();
    let bad = worker.enqueue("panic now");
    let good = worker.enqueue("good");
    worker.script.open();
    worker.wait_for(&bad, "failed");
    worker.wait_for(&good, "completed");
    assert_eq!(worker.job(&bad)["error"]["code"], "model_failed");
}

#[test]
fn an_error_of_the_model_keeps_the_model() {
    let worker = Worker::start();
    let answer = worker.paint("/txt2img", &json!({"prompt": "fail now"}));
    assert_eq!((answer.status, answer.code().as_str()), (500, "model_failed"));
    assert_eq!(worker.paint("/txt2img", &json!({"prompt": "next"})).status, 200);
    assert_eq!(worker.script.count(|script| &script.loads), 1);
}

#[test]
fn what_only_the_model_can_find_wrong_is_the_callers_fault() {
    let worker = Worker::start();
    let answer = worker.paint("/txt2img", &json!({"prompt": "refuse now"}));
    assert_eq!(
        (answer.status, answer.param().as_str()),
        (400, "loras"),
        "{}",
        answer.text()
    );
    let events = worker.follow("/txt2img", &json!({"prompt": "refuse now"})).rest();
    assert_eq!(events.last().unwrap().data["code"], "invalid_value");
}

#[test]
fn a_load_that_fails_is_told_with_its_reason() {
    let worker = Worker::unready(|plan| plan.before_load = Box::new(|_, _| Err("no such folder: /m".into())));
    wait_until("the load failed", || worker.get("/status").json()["state"] == "failed");
    let ready = worker.get("/ready");
    assert_eq!(ready.status, 503);
    assert!(ready.json()["reason"].as_str().unwrap().contains("no such folder: /m"));
    assert_eq!(worker.get("/health").status, 200);
    let answer = worker.post("/txt2img", &json!({"prompt": "x"}));
    assert_eq!((answer.status, answer.code().as_str()), (503, "not_ready"));
    assert!(answer.message().contains("no such folder: /m"));
}

#[test]
fn a_panic_while_loading_is_a_load_that_fails() {
    let worker = Worker::unready(|plan| plan.before_load = Box::new(|_, _| panic!("bad file")));
    wait_until("the load failed", || worker.get("/status").json()["state"] == "failed");
    assert!(
        worker.get("/ready").json()["reason"]
            .as_str()
            .unwrap()
            .contains("bad file")
    );
}

#[test]
fn when_the_model_cannot_be_loaded_again_waiting_jobs_are_told() {
    let worker = Worker::with(|plan| {
        plan.before_load = Box::new(|number, _| if number == 1 { Ok(()) } else { Err("gone".into()) });
    });
    worker.script.gate();
    let bad = worker.enqueue("panic now");
    let waiting = worker.enqueue("good");
    worker.script.open();
    worker.wait_for(&bad, "failed");
    worker.wait_for(&waiting, "failed");
    assert_eq!(worker.job(&waiting)["error"]["code"], "not_ready");
    assert_eq!(worker.get("/ready").status, 503);
}
