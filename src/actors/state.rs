//! What the worker as a whole is doing, in one word.

use serde::Serialize;

use super::messages::{JobsView, ModelState};

/// The `state` of `/status` and of a heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum WorkerState {
    /// The process is up, the load has not begun.
    Starting,
    /// The model is being loaded.
    Loading,
    /// It waits for jobs.
    Idle,
    /// It paints.
    Busy,
    /// It finishes its jobs and then ends.
    Draining,
    /// It has no model and will not get one.
    Failed,
}

impl WorkerState {
    /// From the two published states.
    pub fn of(model: &ModelState, jobs: &JobsView) -> Self {
        if jobs.draining {
            return Self::Draining;
        }
        match model {
            ModelState::Starting => Self::Starting,
            ModelState::Loading { .. } => Self::Loading,
            ModelState::Failed { .. } => Self::Failed,
            ModelState::Ready(_) if jobs.is_idle() => Self::Idle,
            ModelState::Ready(_) => Self::Busy,
        }
    }

    /// Every state, for metrics.
    pub const ALL: [Self; 6] = [
        Self::Starting,
        Self::Loading,
        Self::Idle,
        Self::Busy,
        Self::Draining,
        Self::Failed,
    ];

    /// The word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Loading => "loading",
            Self::Idle => "idle",
            Self::Busy => "busy",
            Self::Draining => "draining",
            Self::Failed => "failed",
        }
    }
}
