//! How the process starts, what it reads, and how it ends.

use std::net::TcpListener;
use std::thread;
use std::time::{Duration, Instant};

use crate::watched::{PATIENCE, Process, command};

const NOWHERE: &str = "/no/such/model";

#[test]
fn a_worker_without_its_model_says_why_and_ends_with_zero_on_sigterm() {
    for signal in ["TERM", "INT"] {
        let mut worker = Process::start(command().args(["--port", "0", "--worker-id", "w-7", "--model", NOWHERE]));
        let failed = worker.log("the model could not be loaded");
        assert!(failed["reason"].as_str().unwrap().contains(NOWHERE), "{failed}");
        assert_eq!(failed["spans"][0]["worker"], "w-7", "{failed}");
        assert_eq!(worker.get("/health").0, 200);
        let (status, ready) = worker.get("/ready");
        assert_eq!(status, 503);
        assert!(ready["reason"].as_str().unwrap().contains(NOWHERE), "{ready}");
        worker.signal(signal);
        assert_eq!(worker.end().code(), Some(0));
    }
}

#[test]
fn what_a_hive_sets_in_the_environment_is_read() {
    let mut command = command();
    command
        .env("WORKER_ID", "from-env")
        .env("PORT", "0")
        .env("SD_VERSION", NOWHERE);
    let worker = Process::start(&mut command);
    let deadline = Instant::now() + PATIENCE;
    while !worker.get("/ready").1["reason"].as_str().unwrap().contains(NOWHERE) {
        assert!(Instant::now() < deadline);
        thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(worker.get("/health").1["worker_id"], "from-env");
}

#[test]
fn a_settings_file_is_read_and_flags_win() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("worker.toml");
    std::fs::write(&file, "[worker]\nid = \"from-file\"\n[server]\nport = 1\n").unwrap();
    let mut command = command();
    command
        .arg("serve")
        .args(["--port", "0", "--model", NOWHERE])
        .arg("--config")
        .arg(&file);
    let worker = Process::start(&mut command);
    assert_eq!(worker.get("/health").1["worker_id"], "from-file");
}

#[test]
fn mistakes_end_the_process_with_a_message() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    for (args, code, words) in [
        (vec!["--port", &port], 1, "cannot listen on 127.0.0.1"),
        (vec!["--port", "http"], 1, "server.port"),
        (vec!["--queue-capacity", "0"], 1, "queue.capacity: 0 is out of range"),
        (vec!["--device", "tpu"], 1, "auto, cpu, cuda, cuda:N, metal"),
        (vec!["--config", "/no/such/file.toml"], 1, "/no/such/file.toml"),
        (vec!["--no-such-flag"], 2, "--no-such-flag"),
    ] {
        let output = command().args(&args).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
        assert!(said.contains(words), "{args:?}: {said}");
    }
}

#[test]
fn help_lists_every_setting_with_its_name_in_the_environment() {
    let output = command().arg("--help").output().unwrap();
    let help = String::from_utf8_lossy(&output.stdout).into_owned();
    for key in sd_worker::settings::KEYS {
        assert!(help.contains(&format!("--{}", key.flag)), "{}", key.flag);
        assert!(help.contains(&format!("SD_WORKER_{}", key.env)), "{}", key.env);
    }
    for word in ["generate", "bench", "serve"] {
        assert!(help.contains(word), "{word}");
    }
}

#[test]
fn logs_carry_the_worker_the_job_and_the_step() {
    let model = crate::worker::folder("sd1");
    let mut command = command();
    command.args(["--port", "0", "--worker-id", "w-8", "--log-level", "sd_worker=debug"]);
    let worker = Process::start(command.arg("--model").arg(model.path()));
    worker.log("model loaded");
    let body = serde_json::json!({"prompt": "x", "width": 64, "height": 64, "steps": 2});
    let answer = ureq::post(format!("{}/txt2img", worker.url))
        .header("accept", "image/png")
        .send_json(&body)
        .unwrap();
    let job = answer.headers()["x-job-id"].to_str().unwrap().to_owned();
    for step in [1, 2] {
        let line = worker.log("step done");
        let spans = line["spans"].as_array().unwrap();
        assert_eq!(
            (&spans[0]["worker"], &spans[1]["job"]),
            (&"w-8".into(), &job.clone().into()),
            "{line}"
        );
        assert_eq!(spans[2]["step"], step, "{line}");
    }
}
