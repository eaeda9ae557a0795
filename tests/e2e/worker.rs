//! A worker process, and what it answers.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use std::{fs, thread};

use serde_json::Value;
use tempfile::TempDir;

use crate::watched::{PATIENCE, Process};

/// The program.
pub fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sd-worker"));
    command.env("SD_WORKER_LOG_LEVEL", "warn");
    command
}

/// A running worker; ends with its value.
pub struct Worker {
    process: Process,
}

impl Worker {
    /// Starts `serve` with these flags on a free port and waits until the model is there.
    pub fn start(flags: &[&str]) -> Self {
        let mut serve = Command::new(env!("CARGO_BIN_EXE_sd-worker"));
        let process = Process::start(serve.args(["serve", "--port", "0"]).args(flags));
        process.log("model loaded");
        // The log says so just before the pages do.
        let begun = Instant::now();
        while process.get("/ready").0 != 200 {
            assert!(begun.elapsed() < PATIENCE, "the worker is not ready");
            thread::sleep(Duration::from_millis(10));
        }
        Self { process }
    }

    /// A GET as JSON.
    pub fn get(&self, path: &str) -> Value {
        let mut response = ureq::get(format!("{}{path}", self.process.url)).call().unwrap();
        response.body_mut().read_json().unwrap()
    }

    /// A POST; the answer's headers that start with `x-`, and its body.
    pub fn post(&self, path: &str, accept: &str, body: &Value) -> (Vec<(String, String)>, Vec<u8>) {
        let mut response = ureq::post(format!("{}{path}", self.process.url))
            .config()
            .timeout_global(Some(PATIENCE))
            .build()
            .header("Accept", accept)
            .send_json(body)
            .unwrap();
        let headers = response.headers().iter();
        let headers = headers.filter(|(name, _)| name.as_str().starts_with("x-"));
        let headers = headers.map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()));
        let headers = headers.collect();
        let limit = 64 << 20;
        (
            headers,
            response.body_mut().with_config().limit(limit).read_to_vec().unwrap(),
        )
    }

    /// A POST answered with a stream: the events' data, in order.
    pub fn events(&self, path: &str, body: &Value) -> Vec<Value> {
        let (_, bytes) = self.post(path, "text/event-stream", body);
        let text = String::from_utf8(bytes).unwrap();
        let data = text
            .lines()
            .filter_map(|line| line.strip_prefix("data:"))
            .map(str::trim);
        data.filter(|data| *data != "[DONE]")
            .map(|data| serde_json::from_str(data).unwrap())
            .collect()
    }

    /// Asks it to end, as a hive does, and gives its exit code.
    pub fn stop(mut self) -> Option<i32> {
        self.process.signal("TERM");
        self.process.end().code()
    }
}

/// The fixtures of the tiny pipelines.
pub fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/pipelines")
}

/// A copy of a tiny model's folder.
pub fn folder(name: &str) -> TempDir {
    let target = tempfile::tempdir().unwrap();
    copy(&fixtures().join(name), target.path());
    target
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.path().is_dir() {
            copy(&entry.path(), &to.join(entry.file_name()));
        } else {
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}
