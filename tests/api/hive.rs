//! What a hive is told, and what happens when it is down, late, forgetful or strict.

use std::net::TcpListener;
use std::time::Duration;

use serde_json::json;

use crate::support::{FakeHive, HANG_UP, Worker, wait_until};

const READY: &str = "/v1/workers/ready";
const HEARTBEAT: &str = "/v1/heartbeat";

fn report_to(url: String) -> impl FnOnce(&mut crate::support::Plan) {
    move |plan| {
        plan.settings.worker.id = "w-1".into();
        plan.settings.model.name = "fake-name".into();
        plan.settings.hive.callback_url = url;
        plan.settings.hive.heartbeat_s = 0.05;
        plan.settings.hive.retry_first_ms = 20;
        plan.settings.hive.retry_longest_ms = 100;
    }
}

#[test]
fn it_is_told_once_after_the_load_and_then_hears_the_heart() {
    let hive = FakeHive::start();
    let worker = Worker::with(report_to(hive.url()));
    wait_until("heartbeats", || hive.reports(HEARTBEAT).len() >= 3);
    let ready = hive.reports(READY);
    assert_eq!(ready.len(), 1);
    assert_eq!(
        ready[0].body,
        json!({
            "worker_id": "w-1", "url": format!("http://127.0.0.1:{}", worker.port), "model_ref": "fake-name",
            "backend": "cpu", "device": 0, "version": env!("CARGO_PKG_VERSION"),
            "capabilities": ["image_generation", "image_transform", "image_inpaint"],
        })
    );
    assert_eq!(ready[0].authorization, "");
    let heartbeat = &hive.reports(HEARTBEAT)[0].body;
    assert_eq!(heartbeat["worker_id"], "w-1");
    assert_eq!(heartbeat["health_status"], "healthy");
    assert_eq!(
        (&heartbeat["state"], &heartbeat["queue_depth"]),
        (&json!("idle"), &json!(0))
    );
    assert!(heartbeat["timestamp"].as_str().unwrap().ends_with('Z'));
    assert!(heartbeat.get("job_id").is_none());
}

#[test]
fn a_running_job_is_in_the_heartbeat() {
    let hive = FakeHive::start();
    let worker = Worker::with(report_to(hive.url()));
    worker.script.gate();
    let id = worker.enqueue("x");
    worker.enqueue("y");
    worker.script.allow(1);
    wait_until("a busy heartbeat", || {
        let reports = hive.reports(HEARTBEAT);
        reports.last().is_some_and(|report| {
            report.body["job_id"] == id.as_str()
                && report.body["progress"] == 0.25
                && report.body["state"] == "busy"
                && report.body["queue_depth"] == 1
        })
    });
}

#[test]
fn a_callback_with_a_path_is_used_as_it_is() {
    let hive = FakeHive::start();
    let _worker = Worker::with(report_to(format!("{}/api/my/callback?x=1", hive.url())));
    wait_until("the callback", || hive.reports("/api/my/callback?x=1").len() == 1);
    wait_until("a heartbeat", || !hive.reports(HEARTBEAT).is_empty());
}

#[test]
fn nothing_is_told_before_the_model_is_loaded() {
    let hive = FakeHive::start();
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let url = hive.url();
    let worker = Worker::unready(move |plan| {
        report_to(url)(plan);
        plan.before_load = Box::new(move |_, _| {
            let _ = wait.recv();
            Ok(())
        });
    });
    std::thread::sleep(Duration::from_millis(150));
    assert!(hive.reports(READY).is_empty() && hive.reports(HEARTBEAT).is_empty());
    assert_eq!(worker.get("/health").status, 200);
    go.send(()).unwrap();
    wait_until("the callback", || hive.reports(READY).len() == 1);
}

#[test]
fn a_hive_that_is_down_costs_nothing_and_is_told_when_it_comes() {
    let hive = FakeHive::start();
    hive.answer_ready(HANG_UP);
    let worker = Worker::with(report_to(hive.url()));
    wait_until("some tries", || hive.reports(READY).len() >= 2);
    assert_eq!(worker.paint("/txt2img", &json!({"prompt": "x"})).status, 200);
    assert!(hive.reports(HEARTBEAT).is_empty());
    hive.answer_ready(200);
    wait_until("a heartbeat", || !hive.reports(HEARTBEAT).is_empty());
}

#[test]
fn a_hive_that_does_not_answer_delays_no_job() {
    // It accepts connections and never says a word.
    let deaf = TcpListener::bind("127.0.0.1:0").unwrap();
    let worker = Worker::with(report_to(format!("http://{}", deaf.local_addr().unwrap())));
    let (_report, _) = deaf.accept().unwrap();
    assert_eq!(worker.paint("/txt2img", &json!({"prompt": "x"})).status, 200);
}

#[test]
fn a_hive_that_has_forgotten_the_worker_is_told_again() {
    let hive = FakeHive::start();
    let _worker = Worker::with(report_to(hive.url()));
    wait_until("a heartbeat", || !hive.reports(HEARTBEAT).is_empty());
    hive.answer_heartbeat(404);
    wait_until("it registers again", || hive.reports(READY).len() >= 2);
    hive.answer_heartbeat(200);
    let before = hive.reports(HEARTBEAT).len();
    wait_until("the heart goes on", || hive.reports(HEARTBEAT).len() > before + 1);
}

#[test]
fn errors_of_the_hive_are_retried() {
    let hive = FakeHive::start();
    hive.answer_ready(500);
    let worker = Worker::with(report_to(hive.url()));
    wait_until("some tries", || hive.reports(READY).len() >= 3);
    assert!(hive.reports(HEARTBEAT).is_empty());
    hive.answer_ready(200);
    wait_until("a heartbeat", || !hive.reports(HEARTBEAT).is_empty());
    hive.answer_heartbeat(500);
    let before = hive.reports(HEARTBEAT).len();
    wait_until("heartbeats are retried", || hive.reports(HEARTBEAT).len() > before + 2);
    assert_eq!(worker.get("/ready").status, 200);
}

#[test]
fn a_wrong_token_does_not_stop_the_worker() {
    let hive = FakeHive::start();
    hive.answer_ready(401);
    let url = hive.url();
    let worker = Worker::with(move |plan| {
        report_to(url)(plan);
        plan.settings.hive.token = "t0ken".into();
    });
    wait_until("some tries", || hive.reports(READY).len() >= 2);
    assert_eq!(hive.reports(READY)[0].authorization, "Bearer t0ken");
    assert_eq!(worker.paint("/txt2img", &json!({"prompt": "x"})).status, 200);
    hive.answer_ready(200);
    wait_until("a heartbeat", || !hive.reports(HEARTBEAT).is_empty());
    assert_eq!(hive.reports(HEARTBEAT)[0].authorization, "Bearer t0ken");
}

#[test]
fn a_worker_that_stops_says_so() {
    let hive = FakeHive::start();
    let mut worker = Worker::with(report_to(hive.url()));
    wait_until("a heartbeat", || !hive.reports(HEARTBEAT).is_empty());
    worker.terminate();
    worker.wait_for_end();
    let reports = hive.reports(HEARTBEAT);
    assert_eq!(reports.last().unwrap().body["state"], "stopping");
}
