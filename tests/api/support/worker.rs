//! A worker in a thread of this process, and calls to it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use sd_worker::actors::model::{LoadError, Loader};
use sd_worker::app::Application;
use sd_worker::domain::model::{Family, LoraInfo, ModelInfo};
use sd_worker::pipeline::{LoadWatch, Pipeline};
use sd_worker::settings::Settings;
use serde_json::Value;
use tokio::sync::oneshot;

use super::events::EventStream;
use super::fake::{FakePipeline, Script, info};

/// Longest that anything in a test may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// What happens before the pipeline is there; the number counts loads from 1.
pub type BeforeLoad = Box<dyn FnMut(usize, &mut dyn LoadWatch) -> Result<(), LoadError> + Send>;

/// How a worker is to be.
pub struct Plan {
    /// Its settings.
    pub settings: Settings,
    /// Its model.
    pub info: ModelInfo,
    /// What happens while it loads.
    pub before_load: BeforeLoad,
    /// Names of its LoRAs.
    pub loras: Vec<&'static str>,
}

/// A running worker; stops when it is dropped.
pub struct Worker {
    /// Where it listens.
    pub port: u16,
    /// What its pipeline does and did.
    pub script: Arc<Script>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// An answer that was read to its end.
#[derive(Debug)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The headers.
    pub headers: ureq::http::HeaderMap,
    /// The body.
    pub body: Vec<u8>,
}

impl Answer {
    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("no JSON: {}", self.text()))
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// A header.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// `error.code`
    pub fn code(&self) -> String {
        self.json()["error"]["code"].as_str().unwrap_or_default().to_owned()
    }

    /// `error.param`
    pub fn param(&self) -> String {
        self.json()["error"]["param"].as_str().unwrap_or_default().to_owned()
    }

    /// `error.message`
    pub fn message(&self) -> String {
        self.json()["error"]["message"].as_str().unwrap_or_default().to_owned()
    }
}

impl Worker {
    /// A worker with the defaults, ready to paint.
    pub fn start() -> Self {
        Self::with(|_| {})
    }

    /// A worker after some changes of plan, ready to paint.
    pub fn with(change: impl FnOnce(&mut Plan)) -> Self {
        let worker = Self::unready(change);
        wait_until("the worker is ready", || worker.get("/ready").status == 200);
        worker
    }

    /// A worker after some changes of plan, as soon as it listens.
    pub fn unready(change: impl FnOnce(&mut Plan)) -> Self {
        let mut plan = Plan {
            settings: Settings::defaults().unwrap(),
            info: info(Family::Sd1),
            before_load: Box::new(|_, _| Ok(())),
            loras: Vec::new(),
        };
        plan.settings.server.port = 0;
        plan.settings.server.grace_s = 0;
        plan.settings.compute.niceness = 0;
        change(&mut plan);
        let script = Arc::new(Script::default());
        let (stop, stopped) = oneshot::channel();
        let (port_sender, port) = mpsc::channel();
        let loader = loader(plan.info, plan.before_load, script.clone());
        let loras = plan.loras;
        let settings = plan.settings;
        let thread = thread::spawn(move || {
            actix::System::new().block_on(async move {
                let application = Application::build(&settings, loader, Arc::new(move || catalog(&loras))).unwrap();
                port_sender.send(application.port()).unwrap();
                application
                    .run_until_stopped(async {
                        let _ = stopped.await;
                    })
                    .await
                    .unwrap();
            });
        });
        Self {
            port: port.recv_timeout(PATIENCE).unwrap(),
            script,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    /// What SIGTERM does.
    pub fn terminate(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
    }

    /// Waits for the end of its thread.
    pub fn wait_for_end(&self) {
        wait_until("it has ended", || {
            self.thread.as_ref().is_none_or(JoinHandle::is_finished)
        });
    }

    /// `GET`
    pub fn get(&self, path: &str) -> Answer {
        self.get_with(path, &[])
    }

    /// `GET` with headers.
    pub fn get_with(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        let mut request = agent().get(self.url(path));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        read(request.call().unwrap())
    }

    /// `DELETE`
    pub fn delete(&self, path: &str) -> Answer {
        read(agent().delete(self.url(path)).call().unwrap())
    }

    /// `POST` of JSON.
    pub fn post(&self, path: &str, body: &Value) -> Answer {
        self.post_with(path, &[], body)
    }

    /// `POST` of JSON with headers.
    pub fn post_with(&self, path: &str, headers: &[(&str, &str)], body: &Value) -> Answer {
        read(self.send(path, headers, body.to_string().as_bytes()))
    }

    /// `POST` of bytes as JSON.
    pub fn post_bytes(&self, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        read(self.send(path, headers, body))
    }

    /// `POST` that waits for pictures in JSON.
    pub fn paint(&self, path: &str, body: &Value) -> Answer {
        self.post_with(path, &[("accept", "application/json")], body)
    }

    /// `POST` that follows the events.
    pub fn follow(&self, path: &str, body: &Value) -> EventStream {
        let response = self.send(path, &[], body.to_string().as_bytes());
        EventStream::new(response)
    }

    /// `GET /v1/jobs/{id}/stream`
    pub fn join(&self, id: &str, after: Option<u64>) -> EventStream {
        let mut request = agent().get(self.url(&format!("/v1/jobs/{id}/stream")));
        if let Some(after) = after {
            request = request.header("last-event-id", after.to_string());
        }
        EventStream::new(request.call().unwrap())
    }

    /// `POST /v1/jobs` with a prompt; the job's id.
    pub fn enqueue(&self, prompt: &str) -> String {
        let body = serde_json::json!({"operation": "image_generation", "prompt": prompt, "seed": 1});
        let answer = self.post("/v1/jobs", &body);
        assert_eq!(answer.status, 202, "{}", answer.text());
        answer.json()["job_id"].as_str().unwrap().to_owned()
    }

    /// `GET /v1/jobs/{id}`
    pub fn job(&self, id: &str) -> Value {
        self.get(&format!("/v1/jobs/{id}")).json()
    }

    /// Waits until a job is in a state.
    pub fn wait_for(&self, id: &str, state: &str) {
        wait_until(&format!("job is {state}"), || self.job(id)["state"] == state);
    }

    /// Sends a request over a plain socket and leaves it open.
    pub fn raw_post(&self, path: &str, accept: &str, body: &Value) -> TcpStream {
        let body = body.to_string();
        let mut socket = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\naccept: {accept}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        socket.write_all(head.as_bytes()).unwrap();
        socket.write_all(body.as_bytes()).unwrap();
        socket
    }

    fn send(&self, path: &str, headers: &[(&str, &str)], body: &[u8]) -> ureq::http::Response<ureq::Body> {
        let mut request = agent().post(self.url(path));
        if !headers.iter().any(|(name, _)| *name == "content-type") {
            request = request.header("content-type", "application/json");
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.send(body).unwrap()
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.script.open();
        self.terminate();
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            if !thread::panicking() {
                ended.unwrap();
            }
        }
    }
}

/// A client without a pool: each call has a connection of its own.
fn agent() -> ureq::Agent {
    ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(PATIENCE))
        .build()
        .into()
}

fn read(response: ureq::http::Response<ureq::Body>) -> Answer {
    let (head, mut body) = response.into_parts();
    let mut bytes = Vec::new();
    body.as_reader().read_to_end(&mut bytes).unwrap();
    Answer {
        status: head.status.as_u16(),
        headers: head.headers,
        body: bytes,
    }
}

fn loader(info: ModelInfo, mut before: BeforeLoad, script: Arc<Script>) -> Loader {
    Box::new(move |watch| {
        let number = script.loads.fetch_add(1, Ordering::SeqCst) + 1;
        before(number, watch)?;
        let pipeline: Box<dyn Pipeline> = Box::new(FakePipeline {
            script: script.clone(),
            info: info.clone(),
        });
        Ok(pipeline)
    })
}

fn catalog(names: &[&'static str]) -> Vec<LoraInfo> {
    let lora = |name: &&str| LoraInfo {
        name: (*name).to_owned(),
        trigger_words: vec!["trigger".into()],
        base_model: None,
    };
    names.iter().map(lora).collect()
}

/// Waits for something that happens soon.
pub fn wait_until(what: &str, mut happens: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !happens() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_millis(3));
    }
}
