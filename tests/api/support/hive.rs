//! A hive that writes down what it is told and answers as it is told.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use serde_json::Value;

/// The answer of a hive that is down: it closes the connection.
pub const HANG_UP: u16 = 0;

/// One report.
#[derive(Clone, Debug)]
pub struct Report {
    /// Where it went.
    pub path: String,
    /// The `authorization` header.
    pub authorization: String,
    /// What it says.
    pub body: Value,
}

/// See the module.
pub struct FakeHive {
    /// Where it listens.
    pub port: u16,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    reports: Mutex<Vec<Report>>,
    /// Status of the next answers to the callback.
    ready: AtomicU16,
    /// Status of the next answers to heartbeats.
    heartbeat: AtomicU16,
}

impl FakeHive {
    /// A hive on a free port.
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(State::default());
        state.ready.store(200, Ordering::SeqCst);
        state.heartbeat.store(200, Ordering::SeqCst);
        let shared = state.clone();
        thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                let state = shared.clone();
                thread::spawn(move || answer(socket, &state));
            }
        });
        Self { port, state }
    }

    /// Its URL without a path.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Answers callbacks so from now on.
    pub fn answer_ready(&self, status: u16) {
        self.state.ready.store(status, Ordering::SeqCst);
    }

    /// Answers heartbeats so from now on.
    pub fn answer_heartbeat(&self, status: u16) {
        self.state.heartbeat.store(status, Ordering::SeqCst);
    }

    /// What was reported to a path.
    pub fn reports(&self, path: &str) -> Vec<Report> {
        let reports = self.state.reports.lock().unwrap();
        reports.iter().filter(|report| report.path == path).cloned().collect()
    }
}

fn answer(socket: TcpStream, state: &State) {
    let mut lines = BufReader::new(socket.try_clone().unwrap());
    let mut socket = socket;
    while let Some(report) = read(&mut lines) {
        let status = match report.path.as_str() {
            "/v1/heartbeat" => state.heartbeat.load(Ordering::SeqCst),
            _ => state.ready.load(Ordering::SeqCst),
        };
        state.reports.lock().unwrap().push(report);
        if status == HANG_UP {
            return;
        }
        if write!(socket, "HTTP/1.1 {status} x\r\ncontent-length: 2\r\n\r\n{{}}").is_err() {
            return;
        }
    }
}

fn read(lines: &mut impl BufRead) -> Option<Report> {
    let mut first = String::new();
    lines.read_line(&mut first).ok()?;
    let path = first.split(' ').nth(1)?.to_owned();
    let (mut length, mut authorization, mut chunked) = (0, String::new(), false);
    loop {
        let mut line = String::new();
        lines.read_line(&mut line).ok()?;
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(": ")?;
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.parse().ok()?,
            "authorization" => value.clone_into(&mut authorization),
            "transfer-encoding" => chunked = true,
            _ => {}
        }
    }
    assert!(!chunked, "a report has a length");
    let mut body = vec![0; length];
    lines.read_exact(&mut body).ok()?;
    Some(Report {
        path,
        authorization,
        body: serde_json::from_slice(&body).unwrap(),
    })
}
