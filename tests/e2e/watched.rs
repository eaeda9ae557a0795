//! A worker as a process of its own, without a model, whose log is read.

use std::cell::RefCell;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

/// Longest that a load or a job of the small models may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(240);

/// A running worker; killed when it is dropped.
pub struct Process {
    child: Child,
    lines: Receiver<String>,
    /// `http://host:port`
    pub url: String,
    passed: RefCell<Vec<Value>>,
}

/// The binary that a hive starts on a machine without a GPU, with a clean environment.
pub fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sd-worker-cpu"));
    command.env_clear().stdout(Stdio::piped());
    command
}

impl Process {
    /// Starts a worker that logs JSON, and waits until it listens.
    pub fn start(command: &mut Command) -> Self {
        command.env("LOG_FORMAT", "json").stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let stderr = child.stderr.take().unwrap();
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let mut process = Self {
            child,
            lines,
            url: String::new(),
            passed: RefCell::default(),
        };
        let listening = process.log("listening");
        listening["url"].as_str().unwrap().clone_into(&mut process.url);
        process
    }

    /// Waits for a log line with this message; lines that were passed over on the way to another are remembered.
    pub fn log(&self, message: &str) -> Value {
        let mut passed = self.passed.borrow_mut();
        if let Some(at) = passed.iter().position(|line| line["message"] == message) {
            return passed.remove(at);
        }
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = self
                .lines
                .recv_timeout(left)
                .unwrap_or_else(|_| panic!("no log line `{message}`"));
            let line: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("no JSON: {line}"));
            if line["message"] == message {
                return line;
            }
            passed.push(line);
        }
    }

    /// `GET`, its status and JSON.
    pub fn get(&self, path: &str) -> (u16, Value) {
        let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
        let mut answer = agent.get(format!("{}{path}", self.url)).call().unwrap();
        (answer.status().as_u16(), answer.body_mut().read_json().unwrap())
    }

    /// Sends a signal by name.
    pub fn signal(&self, name: &str) {
        let kill = format!("kill -s {name} {}", self.child.id());
        assert!(Command::new("/bin/sh").args(["-c", &kill]).status().unwrap().success());
    }

    /// Waits for the end.
    pub fn end(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "it does not end");
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
