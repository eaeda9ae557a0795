//! The one place that wires actors, routes and shutdown.
//!
//! ```text
//! main thread      actix system: jobs actor, signals
//! http threads     actix-web workers: parse, relay
//! model thread     model actor, and the compute threads it starts
//! hive thread      reports to the hive
//! ```

use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::{Actor, Addr, Arbiter, AsyncContext, Context};
use actix_web::dev::{Server, ServerHandle};
use actix_web::{App, HttpServer, web};
use tokio::sync::watch;

use crate::actors::hive::{Addresses, Hive, HiveConfig};
use crate::actors::jobs::{Bounds, JobsActor};
use crate::actors::messages::{Abandon, CancelAll, Drain, JobsView, ModelState};
use crate::actors::model::{Loader, ModelActor, ModelParts};
use crate::domain::model::LoraInfo;
use crate::http::{self, state::AppState};
use crate::settings::{Settings, SettingsError, set};

/// How long a cancelled job may take to notice, before it is given up.
const CANCEL_PATIENCE: Duration = Duration::from_secs(10);
/// How long a hive may take to hear that the worker stops.
const GOODBYE_PATIENCE: Duration = Duration::from_secs(3);
/// How long open connections may take to read their last bytes.
const CONNECTION_PATIENCE_S: u64 = 5;

/// Lists the LoRA files that requests may name.
pub type LoraCatalog = Arc<dyn Fn() -> Vec<LoraInfo> + Send + Sync>;

/// A worker that is ready to run.
pub struct Application {
    port: u16,
    server: Server,
    jobs: Addr<JobsActor>,
    view: watch::Receiver<JobsView>,
    hive: Option<Hive>,
    grace: Duration,
}

/// Why a worker cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Bad settings.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The address cannot be listened on, or a thread cannot be had.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: std::io::Error,
    },
}

impl Application {
    /// Listens, starts the threads and begins to load the model. Must run in an actix system.
    ///
    /// # Errors
    /// Settings that cannot be used, or an address that is taken.
    pub fn build(settings: &Settings, loader: Loader, loras: LoraCatalog) -> Result<Self, StartError> {
        let address = (settings.server.host.as_str(), settings.server.port);
        let listener =
            TcpListener::bind(address).map_err(io(format!("cannot listen on {}:{}", address.0, address.1)))?;
        let port = listener.local_addr().map_err(io("no local address"))?.port();
        let (model_state, model) = watch::channel(ModelState::Starting);
        let (view_sender, view) = watch::channel(JobsView::default());
        let jobs = start_actors(settings, loader, model_state, view_sender).map_err(io("no thread for the model"))?;
        let hive = start_hive(settings, port, &model, &view).map_err(io("no thread for the hive"))?;
        let state = AppState {
            worker_id: settings.worker.id.clone(),
            started: Instant::now(),
            jobs: jobs.clone(),
            model,
            view: view.clone(),
            limits: settings.request_limits(),
            step_cache: settings.load_options()?.step_cache,
            max_body: settings.server.max_body_mb << 20,
            keep_alive: Duration::from_secs(settings.server.keep_alive_s),
            api_key: set(&settings.server.api_key).map(str::to_owned),
            loras,
        };
        let server = serve(listener, settings.server.threads, state).map_err(io("cannot serve HTTP"))?;
        Ok(Self {
            port,
            server,
            jobs,
            view,
            hive,
            grace: Duration::from_secs(settings.server.grace_s),
        })
    }

    /// The port it listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Serves until `stop` resolves; then takes no more jobs, lets the accepted ones finish for the grace time, cancels
    /// the rest, tells the hive and returns.
    ///
    /// # Errors
    /// The HTTP server failed.
    pub async fn run_until_stopped(self, stop: impl Future<Output = ()>) -> std::io::Result<()> {
        let Self {
            server,
            jobs,
            view,
            hive,
            grace,
            ..
        } = self;
        let handle = server.handle();
        let serving = actix::spawn(server);
        stop.await;
        tracing::info!(grace_s = grace.as_secs(), "stopping: no more jobs");
        drain(&jobs, view, hive.as_ref(), grace).await;
        shut(&handle).await;
        serving.await.map_err(std::io::Error::other)?
    }
}

async fn shut(handle: &ServerHandle) {
    handle.stop(true).await;
    tracing::info!("stopped");
}

async fn drain(jobs: &Addr<JobsActor>, mut view: watch::Receiver<JobsView>, hive: Option<&Hive>, grace: Duration) {
    // A closed mailbox would mean that there are no jobs any more.
    let _ = jobs.send(Drain).await;
    let goodbye = async {
        if let Some(hive) = hive {
            let _ = tokio::time::timeout(GOODBYE_PATIENCE, hive.stopping()).await;
        }
    };
    let finish = async {
        if idle_within(&mut view, grace).await {
            return;
        }
        tracing::warn!("the grace time is over: jobs are cancelled");
        let _ = jobs.send(CancelAll).await;
        if !idle_within(&mut view, CANCEL_PATIENCE).await {
            let _ = jobs.send(Abandon).await;
        }
    };
    tokio::join!(goodbye, finish);
}

async fn idle_within(view: &mut watch::Receiver<JobsView>, time: Duration) -> bool {
    let idle = view.wait_for(JobsView::is_idle);
    tokio::time::timeout(time, idle).await.is_ok()
}

fn start_actors(
    settings: &Settings,
    loader: Loader,
    state: watch::Sender<ModelState>,
    view: watch::Sender<JobsView>,
) -> std::io::Result<Addr<JobsActor>> {
    let arbiter = Arbiter::try_with_tokio_rt(|| {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .thread_name("model")
            .build()
    })?;
    let bounds = Bounds {
        capacity: settings.queue.capacity,
        keep_jobs: settings.queue.keep_jobs,
        keep_for: Duration::from_secs(settings.queue.keep_s),
        keep_bytes: settings.queue.keep_mb << 20,
    };
    let (worker, niceness) = (settings.worker.id.clone(), settings.compute.niceness);
    Ok(JobsActor::create(move |ctx: &mut Context<JobsActor>| {
        let parts = ModelParts {
            loader,
            jobs: ctx.address(),
            state,
            worker,
            niceness,
        };
        let model = ModelActor::start_in(&arbiter, parts);
        JobsActor::new(bounds, model.recipient(), view)
    }))
}

fn start_hive(
    settings: &Settings,
    port: u16,
    model: &watch::Receiver<ModelState>,
    view: &watch::Receiver<JobsView>,
) -> std::io::Result<Option<Hive>> {
    let Some(addresses) = Addresses::from_callback(&settings.hive.callback_url) else {
        return Ok(None);
    };
    let config = HiveConfig {
        worker_id: settings.worker.id.clone(),
        own_url: own_url(settings, port, &addresses),
        model_ref: set(&settings.model.name).map(str::to_owned),
        addresses,
        token: set(&settings.hive.token).map(str::to_owned),
        heartbeat: Duration::from_secs_f64(settings.hive.heartbeat_s),
        retry_first: Duration::from_millis(settings.hive.retry_first_ms),
        retry_longest: Duration::from_millis(settings.hive.retry_longest_ms),
    };
    Hive::start(config, model.clone(), view.clone()).map(Some)
}

fn own_url(settings: &Settings, port: u16, hive: &Addresses) -> String {
    if let Some(url) = set(&settings.server.public_url) {
        return url.to_owned();
    }
    let host = match settings.server.host.as_str() {
        "0.0.0.0" | "::" | "[::]" => hive.own_ip().unwrap_or_else(|| "127.0.0.1".into()),
        host if host.contains(':') && !host.starts_with('[') => format!("[{host}]"),
        host => host.to_owned(),
    };
    format!("http://{host}:{port}")
}

fn serve(listener: TcpListener, threads: usize, state: AppState) -> std::io::Result<Server> {
    let state = web::Data::new(state);
    let server = HttpServer::new(move || {
        App::new()
            .app_data(state.clone())
            .wrap(actix_web::middleware::from_fn(http::auth::check))
            .wrap(actix_web::middleware::from_fn(http::request_id::attach))
            .configure(http::routes::all)
    })
    .workers(threads)
    // A client that closes its side has gone: its request is dropped at once, and with it the job.
    .h1_allow_half_closed(false)
    .shutdown_timeout(CONNECTION_PATIENCE_S)
    .disable_signals()
    .listen(listener)?
    .run();
    Ok(server)
}

fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> StartError {
    let what = what.into();
    move |source| StartError::Io { what, source }
}
