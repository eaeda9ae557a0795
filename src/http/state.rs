//! What every handler can read.

use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::Addr;
use tokio::sync::watch;

use super::error::ApiError;
use crate::actors::jobs::JobsActor;
use crate::actors::messages::{JobsView, ModelState};
use crate::app::LoraCatalog;
use crate::domain::limits::Limits;
use crate::domain::model::ModelInfo;
use crate::domain::request::StepCache;

/// Shared by the HTTP threads; nothing in it can make a handler wait.
#[derive(Clone)]
pub struct AppState {
    /// Name of this worker.
    pub worker_id: String,
    /// When the process began.
    pub started: Instant,
    /// Where jobs go.
    pub jobs: Addr<JobsActor>,
    /// How the model stands.
    pub model: watch::Receiver<ModelState>,
    /// How the queue stands.
    pub view: watch::Receiver<JobsView>,
    /// What one request may ask for.
    pub limits: Limits,
    /// Reuse between steps where a request is silent.
    pub step_cache: StepCache,
    /// Largest body, bytes.
    pub max_body: usize,
    /// Time between keep-alive comments.
    pub keep_alive: Duration,
    /// What callers must send, if anything.
    pub api_key: Option<String>,
    /// LoRA files that requests may name.
    pub loras: LoraCatalog,
}

impl AppState {
    /// The model that jobs would run on.
    ///
    /// # Errors
    /// 503 while there is none, with the reason.
    pub fn model_info(&self) -> Result<Arc<ModelInfo>, ApiError> {
        if self.view.borrow().draining {
            return Err(ApiError::NotReady(
                "the worker is draining and takes no more jobs".into(),
            ));
        }
        let model = self.model.borrow();
        model.info().cloned().ok_or_else(|| ApiError::NotReady(reason(&model)))
    }
}

/// Why the model cannot paint, for people.
pub fn reason(model: &ModelState) -> String {
    match model {
        ModelState::Starting => "starting".into(),
        ModelState::Loading { stage, again: None, .. } => format!("loading the model: {stage}"),
        ModelState::Loading { stage, .. } => format!("loading the model again after a failure: {stage}"),
        ModelState::Ready(_) => "ready".into(),
        ModelState::Failed { reason } => format!("the model could not be loaded: {reason}"),
    }
}
