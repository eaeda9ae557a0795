//! More jobs than there is room for: some are turned away, none is lost.

use std::thread;

use serde_json::json;

use crate::support::{Worker, wait_until};

#[test]
fn thirty_at_once_with_room_for_eight() {
    let worker = Worker::with(|plan| plan.settings.queue.capacity = 8);
    worker.script.gate();
    let answers: Vec<_> = thread::scope(|scope| {
        let post = |index: usize| {
            let body = json!({"operation": "image_generation", "prompt": format!("{index}"), "seed": index});
            worker.post("/v1/jobs", &body)
        };
        let posts: Vec<_> = (0..30).map(|index| scope.spawn(move || post(index))).collect();
        posts.into_iter().map(|post| post.join().unwrap()).collect()
    });
    let (accepted, rejected): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.status == 202);
    assert_eq!((accepted.len(), rejected.len()), (9, 21));
    for answer in &rejected {
        assert_eq!((answer.status, answer.code().as_str()), (429, "queue_full"));
        let seconds: u64 = answer.header("retry-after").parse().unwrap();
        assert!((1..=600).contains(&seconds));
    }
    let mut positions: Vec<_> = accepted
        .iter()
        .map(|answer| answer.json()["position"].as_u64().unwrap())
        .collect();
    positions.sort_unstable();
    assert_eq!(positions, [0, 1, 2, 3, 4, 5, 6, 7, 8]);

    let admitted = worker.get("/v1/jobs").json()["jobs"].clone();
    worker.script.open();
    wait_until("all are done", || {
        worker.get("/status").json()["totals"]["completed"] == 9
    });
    let ran: Vec<_> = worker
        .script
        .requests
        .lock()
        .unwrap()
        .iter()
        .map(|request| request.seed)
        .collect();
    let order: Vec<_> = admitted
        .as_array()
        .unwrap()
        .iter()
        .rev()
        .map(|job| job["seed"].as_u64().unwrap())
        .collect();
    assert_eq!(ran, order, "in the order of admission");
    assert_eq!(worker.get("/status").json()["totals"]["rejected"], 21);
    let last = worker.enqueue("there is room again");
    worker.wait_for(&last, "completed");
}
