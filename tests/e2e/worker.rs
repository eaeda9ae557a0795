//! A worker process, and what it answers.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{fs, thread};

use serde_json::Value;
use tempfile::TempDir;

/// Longest that a load or a job of the small models may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(240);

/// The program.
pub fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sd-worker"));
    command.env("SD_WORKER_LOG_LEVEL", "warn");
    command
}

/// A running worker; ends with its value.
pub struct Worker {
    child: Child,
    url: String,
}

impl Worker {
    /// Starts `serve` with these flags on a free port and waits until the model is there.
    pub fn start(flags: &[&str]) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let child = program()
            .args(["serve", "--port", &port.to_string()])
            .args(flags)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let mut worker = Self {
            child,
            url: format!("http://127.0.0.1:{port}"),
        };
        let begun = Instant::now();
        while !worker.is_ready() {
            assert!(begun.elapsed() < PATIENCE, "the worker is not ready");
            assert!(worker.child.try_wait().unwrap().is_none(), "the worker ended");
            thread::sleep(Duration::from_millis(50));
        }
        worker
    }

    fn is_ready(&self) -> bool {
        ureq::get(format!("{}/ready", self.url)).call().is_ok()
    }

    /// A GET as JSON.
    pub fn get(&self, path: &str) -> Value {
        let mut response = ureq::get(format!("{}{path}", self.url)).call().unwrap();
        response.body_mut().read_json().unwrap()
    }

    /// A POST; the answer's headers that start with `x-`, and its body.
    pub fn post(&self, path: &str, accept: &str, body: &Value) -> (Vec<(String, String)>, Vec<u8>) {
        let mut response = ureq::post(format!("{}{path}", self.url))
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
    #[cfg(unix)]
    pub fn stop(mut self) -> Option<i32> {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        self.child.wait().unwrap().code()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Both fail only where it has ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
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
