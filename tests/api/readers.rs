//! Several readers of one job: early, late, slow, gone and back.

use std::io::Read;

use serde_json::json;

use crate::support::{Worker, names, wait_until};

#[test]
fn every_reader_gets_the_end_once() {
    let worker = Worker::start();
    worker.script.gate();
    let id = worker.enqueue("x");
    let readers: Vec<_> = (0..5).map(|_| worker.join(&id, None)).collect();
    worker.script.open();
    for reader in readers {
        let events = reader.rest();
        let ends = names(&events)
            .into_iter()
            .filter(|name| ["complete", "error", "cancelled"].contains(name))
            .count();
        assert_eq!(ends, 1);
        assert_eq!(events.last().unwrap().name, "complete");
    }
}

#[test]
fn a_late_reader_gets_the_history_in_short_and_goes_on() {
    let worker = Worker::start();
    worker.script.gate();
    let id = worker.enqueue("x");
    worker.script.allow(3);
    wait_until("three steps", || worker.job(&id)["step"] == 3);
    let mut late = worker.join(&id, None);
    let events = [late.next().unwrap(), late.next().unwrap(), late.next().unwrap()];
    assert_eq!(names(&events), ["queued", "started", "progress"]);
    assert_eq!(events[2].data["step"], 3);
    worker.script.open();
    assert_eq!(names(&late.rest()), ["progress", "complete"]);

    let after_the_end = worker.join(&id, None).rest();
    assert_eq!(names(&after_the_end), ["queued", "started", "progress", "complete"]);
}

#[test]
fn a_reader_resumes_where_it_was() {
    let worker = Worker::start();
    worker.script.gate();
    let id = worker.enqueue("x");
    worker.script.allow(1);
    let mut first = worker.join(&id, None);
    let seen = first.until("progress");
    drop(first);
    worker.script.open();
    worker.wait_for(&id, "completed");
    let rest = worker.join(&id, Some(seen.id)).rest();
    assert!(rest.iter().all(|event| event.id > seen.id));
    assert_eq!(rest.last().unwrap().name, "complete");
    let nothing = worker.join(&id, Some(rest.last().unwrap().id)).rest();
    assert!(nothing.is_empty());
}

#[test]
fn a_reader_that_does_not_read_delays_nobody_and_still_gets_the_end() {
    let worker = Worker::start();
    // Some 400 kB of previews for a socket that nobody reads.
    let body = json!({"prompt": "x", "steps": 150, "preview_every": 1, "n": 8, "width": 512, "height": 512});
    let mut socket = worker.raw_post("/txt2img", "text/event-stream", &body);
    wait_until("it is done", || {
        worker.get("/status").json()["totals"]["completed"] == 1
    });
    let quick = worker.paint("/txt2img", &json!({"prompt": "next"}));
    assert_eq!(quick.status, 200);

    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    while !bytes.ends_with(b"0\r\n\r\n") {
        let count = socket.read(&mut buffer).unwrap();
        assert!(count > 0, "closed before the end");
        bytes.extend_from_slice(&buffer[..count]);
    }
    let text = String::from_utf8(bytes).unwrap();
    assert_eq!(text.matches("event: complete").count(), 1);
    assert!(text.contains("data: [DONE]"));
}

#[test]
fn readers_that_die_do_not_disturb_a_job() {
    let worker = Worker::start();
    worker.script.gate();
    let id = worker.enqueue("x");
    for _ in 0..20 {
        let mut reader = worker.join(&id, None);
        reader.next();
    }
    worker.script.open();
    worker.wait_for(&id, "completed");
}
