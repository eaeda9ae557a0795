//! Reports to the hive: the callback once the model is loaded, then a heartbeat every so often.
//!
//! A thread of its own, because it waits on the network as long as it must; it reads the published states and sends
//! nothing to the other actors, so it can neither stop the worker nor delay a job. It ends when its handle is dropped.

use std::net::{ToSocketAddrs, UdpSocket};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, SystemTime};

use serde::Serialize;
use tokio::sync::{oneshot, watch};
use ureq::http::{StatusCode, Uri};
use uuid::Uuid;

use super::messages::{JobsView, ModelState};
use super::state::WorkerState;
use crate::clock::rfc3339;
use crate::domain::job::JobId;
use crate::domain::model::ModelInfo;
use crate::domain::request::OperationKind;

/// Longest wait for an answer of the hive.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// How often the thread looks whether the model is loaded.
const LOAD_POLL: Duration = Duration::from_millis(50);

/// Whom to report to, and what to say.
#[derive(Clone, Debug)]
pub struct HiveConfig {
    /// Name of this worker.
    pub worker_id: String,
    /// URL under which this worker is reached.
    pub own_url: String,
    /// The model as the hive asked for it; `None` reports its own name.
    pub model_ref: Option<String>,
    /// Where to go.
    pub addresses: Addresses,
    /// Bearer token, if one is sent.
    pub token: Option<String>,
    /// Time between heartbeats.
    pub heartbeat: Duration,
    /// First wait before a retry.
    pub retry_first: Duration,
    /// Longest wait before a retry.
    pub retry_longest: Duration,
}

/// The two URLs of a hive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// Where a ready worker is announced.
    pub ready: String,
    /// Where heartbeats go.
    pub heartbeat: String,
}

impl Addresses {
    /// From the callback URL: its own path, or `/v1/workers/ready` where it has none.
    pub fn from_callback(url: &str) -> Option<Self> {
        let uri: Uri = url.parse().ok()?;
        let base = format!("{}://{}", uri.scheme_str()?, uri.authority()?);
        let ready = match uri.path() {
            "" | "/" => format!("{base}/v1/workers/ready"),
            _ => url.to_owned(),
        };
        Some(Self {
            ready,
            heartbeat: format!("{base}/v1/heartbeat"),
        })
    }

    /// The address by which this machine reaches the hive, for a worker that listens on all of its addresses.
    pub fn own_ip(&self) -> Option<String> {
        let uri: Uri = self.heartbeat.parse().ok()?;
        let port = uri.port_u16().unwrap_or(80);
        let hive = (uri.host()?.trim_matches(['[', ']']), port)
            .to_socket_addrs()
            .ok()?
            .next()?;
        let any = if hive.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        // Connecting a UDP socket sends nothing; it only picks a route.
        let socket = UdpSocket::bind(any).ok()?;
        socket.connect(hive).ok()?;
        let ip = socket.local_addr().ok()?.ip();
        Some(if ip.is_ipv6() {
            format!("[{ip}]")
        } else {
            ip.to_string()
        })
    }
}

/// Handle of the thread.
pub struct Hive {
    orders: mpsc::Sender<Stopping>,
}

/// Tell the hive that the worker stops, and say when that was tried.
struct Stopping {
    told: oneshot::Sender<()>,
}

impl Hive {
    /// Starts the thread.
    ///
    /// # Errors
    /// The operating system gives no thread.
    pub fn start(
        config: HiveConfig,
        model: watch::Receiver<ModelState>,
        jobs: watch::Receiver<JobsView>,
    ) -> std::io::Result<Self> {
        let (orders, inbox) = mpsc::channel();
        let agent = ureq::Agent::config_builder()
            .timeout_global(Some(ANSWER_TIMEOUT))
            .http_status_as_error(false)
            .build()
            .into();
        let reporter = Reporter {
            config,
            agent,
            model,
            jobs,
            registered: false,
            stopping: false,
            failures: 0,
        };
        thread::Builder::new()
            .name("hive".into())
            .spawn(move || reporter.run(&inbox))?;
        Ok(Self { orders })
    }

    /// Tells the hive that the worker stops; resolves when it was told, or the attempt failed.
    pub async fn stopping(&self) {
        let (told, done) = oneshot::channel();
        if self.orders.send(Stopping { told }).is_ok() {
            // An error means that the thread is gone: nothing to wait for.
            let _ = done.await;
        }
    }
}

struct Reporter {
    config: HiveConfig,
    agent: ureq::Agent,
    model: watch::Receiver<ModelState>,
    jobs: watch::Receiver<JobsView>,
    registered: bool,
    stopping: bool,
    failures: u32,
}

/// Why a report did not arrive.
#[derive(Debug, thiserror::Error)]
enum ReportError {
    #[error("the hive does not answer: {0}")]
    Unreachable(#[from] ureq::Error),
    #[error("the hive refuses the token (401): set HIVE_TOKEN to the one it knows")]
    Unauthorized,
    #[error("the hive does not know this worker (404)")]
    Unknown,
    #[error("the hive answers {0}")]
    Status(StatusCode),
}

#[derive(Serialize)]
struct Ready<'a> {
    worker_id: &'a str,
    url: &'a str,
    model_ref: &'a str,
    backend: &'a str,
    device: u32,
    version: &'a str,
    capabilities: Vec<OperationKind>,
}

#[derive(Serialize)]
struct Heartbeat<'a> {
    worker_id: &'a str,
    timestamp: String,
    health_status: &'a str,
    state: &'a str,
    queue_depth: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    job_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    progress: Option<f64>,
}

impl Reporter {
    fn run(mut self, inbox: &mpsc::Receiver<Stopping>) {
        let mut pause = self.turn();
        loop {
            match inbox.recv_timeout(pause) {
                Err(mpsc::RecvTimeoutError::Timeout) => pause = self.turn(),
                Err(mpsc::RecvTimeoutError::Disconnected) => return,
                Ok(Stopping { told }) => {
                    self.stopping = true;
                    if self.registered {
                        pause = self.turn();
                    }
                    // Nobody may wait any more.
                    let _ = told.send(());
                }
            }
        }
    }

    /// Says what there is to say, and how long to pause then.
    fn turn(&mut self) -> Duration {
        if !self.registered {
            let ready = match &*self.model.borrow() {
                ModelState::Ready(info) => Some(info.clone()),
                _ => None,
            };
            return match ready {
                Some(info) if !self.stopping => self.register(&info),
                _ => LOAD_POLL,
            };
        }
        match self.send(&self.config.addresses.heartbeat, &self.heartbeat()) {
            Ok(()) => {
                self.failures = 0;
                self.config.heartbeat
            }
            Err(ReportError::Unknown) if !self.stopping => {
                tracing::warn!("the hive has forgotten this worker: it registers again");
                self.registered = false;
                Duration::ZERO
            }
            Err(error) => self.retry(&error),
        }
    }

    fn register(&mut self, info: &ModelInfo) -> Duration {
        let (backend, device) = info.device.split_once(':').unwrap_or((&info.device, "0"));
        let ready = Ready {
            worker_id: &self.config.worker_id,
            url: &self.config.own_url,
            model_ref: self.config.model_ref.as_deref().unwrap_or(&info.name),
            backend,
            device: device.parse().unwrap_or(0),
            version: env!("CARGO_PKG_VERSION"),
            capabilities: info.operations.clone(),
        };
        match self.send(&self.config.addresses.ready, &ready) {
            Ok(()) => {
                tracing::info!(url = %self.config.addresses.ready, "registered at the hive");
                self.registered = true;
                self.failures = 0;
                self.config.heartbeat
            }
            Err(error) => self.retry(&error),
        }
    }

    fn heartbeat(&self) -> Heartbeat<'_> {
        let model = self.model.borrow();
        let jobs = self.jobs.borrow();
        let state = WorkerState::of(&model, &jobs);
        let running = jobs.running.as_ref();
        Heartbeat {
            worker_id: &self.config.worker_id,
            timestamp: rfc3339(SystemTime::now()),
            health_status: match &*model {
                ModelState::Ready(_) => "healthy",
                _ => "degraded",
            },
            state: if self.stopping { "stopping" } else { state.name() },
            queue_depth: jobs.depth,
            job_id: running.map(|running| running.id).map(|id: JobId| id.to_string()),
            progress: running.map(|running| f64::from(running.step) / f64::from(running.total.max(1))),
        }
    }

    fn send(&self, url: &str, body: &impl Serialize) -> Result<(), ReportError> {
        let mut request = self.agent.post(url);
        if let Some(token) = &self.config.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let status = request.send_json(body)?.status();
        match status {
            status if status.is_success() => Ok(()),
            StatusCode::UNAUTHORIZED => Err(ReportError::Unauthorized),
            StatusCode::NOT_FOUND => Err(ReportError::Unknown),
            status => Err(ReportError::Status(status)),
        }
    }

    /// The pause before the next try: twice the last one, a fifth more or less so that many workers do not come at once.
    fn retry(&mut self, error: &ReportError) -> Duration {
        let doubled = self.config.retry_first.saturating_mul(1 << self.failures.min(20));
        self.failures += 1;
        let jitter = 0.8 + 0.4 * (Uuid::new_v4().as_u128() % 1000) as f64 / 1000.0;
        let pause = doubled.min(self.config.retry_longest).mul_f64(jitter);
        tracing::warn!(%error, failures = self.failures, pause_ms = pause.as_millis() as u64, "report failed, will retry");
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_callback_without_a_path_gets_the_usual_one() {
        for (url, ready) in [
            ("http://localhost:7000", "http://localhost:7000/v1/workers/ready"),
            ("http://localhost:7000/", "http://localhost:7000/v1/workers/ready"),
            ("https://hive/api/cb?x=1", "https://hive/api/cb?x=1"),
        ] {
            assert_eq!(Addresses::from_callback(url).unwrap().ready, ready);
        }
        let addresses = Addresses::from_callback("https://hive:1/api/cb").unwrap();
        assert_eq!(addresses.heartbeat, "https://hive:1/v1/heartbeat");
        assert_eq!(Addresses::from_callback("localhost"), None);
    }

    #[test]
    fn the_own_address_towards_a_local_hive_is_local() {
        let addresses = Addresses::from_callback("http://127.0.0.1:7000").unwrap();
        assert_eq!(addresses.own_ip().unwrap(), "127.0.0.1");
    }
}
