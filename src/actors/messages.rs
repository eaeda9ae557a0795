//! What the actors say to each other and to HTTP.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use actix::Message;
use tokio::sync::mpsc;

use super::owner::Owner;
use crate::domain::event::{Generation, Numbered, Step};
use crate::domain::job::{JobError, JobId, JobSnapshot};
use crate::domain::model::ModelInfo;
use crate::domain::picture::EncodedImage;
use crate::domain::request::GenerationRequest;

/// Tells a running job to stop; the only thing that travels towards the model during a run.
#[derive(Clone, Debug, Default)]
pub struct CancelFlag(Arc<AtomicBool>);

impl CancelFlag {
    /// Asks to stop.
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether somebody asked.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

// From HTTP to the jobs actor.

/// Admit a job.
#[derive(Debug, Message)]
#[rtype(result = "Result<Accepted, Refusal>")]
pub struct Submit {
    /// What to paint.
    pub request: GenerationRequest,
    /// How it is tied to its caller.
    pub tie: Tie,
}

/// How a job is tied to its caller.
#[derive(Debug)]
pub enum Tie {
    /// It ends when the caller goes.
    Owned,
    /// It goes on; repeats with the same key get the job of the first.
    Free(Option<IdempotencyKey>),
}

/// A caller's key and what it was sent with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdempotencyKey {
    /// The caller's text.
    pub key: String,
    /// Hash of the request's body.
    pub fingerprint: u64,
}

/// A job that was admitted.
#[derive(Debug)]
pub struct Accepted {
    /// The job as it stands.
    pub job: JobSnapshot,
    /// Its events, from the first.
    pub events: mpsc::Receiver<Numbered>,
    /// Cancels it when dropped, if it is owned.
    pub owner: Option<Owner>,
}

/// Why a job was not admitted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Too many wait already.
    #[error("the queue is full: {capacity} jobs wait; try again in {} s", .retry_after.as_secs())]
    QueueFull {
        /// Jobs that may wait.
        capacity: usize,
        /// When it may be worth trying again.
        retry_after: Duration,
    },
    /// The worker stops.
    #[error("the worker is draining and takes no more jobs")]
    Draining,
    /// The model is gone.
    #[error("no model is loaded")]
    NoModel,
    /// The key belongs to another request.
    #[error("this Idempotency-Key came with another request before; use a new key")]
    KeyReused,
}

/// Follow a job.
#[derive(Debug, Message)]
#[rtype(result = "Option<mpsc::Receiver<Numbered>>")]
pub struct Subscribe {
    /// The job.
    pub id: JobId,
    /// Only what came after this event.
    pub after: Option<u64>,
}

/// Cancel a job; answers how it stands, or nothing if there is no such job.
#[derive(Debug, Message)]
#[rtype(result = "Option<JobSnapshot>")]
pub struct Cancel {
    /// The job.
    pub id: JobId,
}

/// How a job stands.
#[derive(Debug, Message)]
#[rtype(result = "Option<JobSnapshot>")]
pub struct Find {
    /// The job.
    pub id: JobId,
}

/// All jobs, newest first.
#[derive(Debug, Message)]
#[rtype(result = "Vec<JobSnapshot>")]
pub struct List;

/// The result of a finished job.
#[derive(Debug, Message)]
#[rtype(result = "Option<Arc<Generation>>")]
pub struct FindResult {
    /// The job.
    pub id: JobId,
}

/// Take no more jobs.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Drain;

/// Cancel all jobs.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct CancelAll;

/// Give up the running job: its readers are told that it was cancelled, whatever the model does.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Abandon;

// From the jobs actor to the model actor.

/// Paint this.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Generate {
    /// The job.
    pub id: JobId,
    /// What to paint.
    pub request: Arc<GenerationRequest>,
    /// Whether to stop.
    pub cancel: CancelFlag,
}

// From the model actor to the jobs actor.

/// The model is loaded and waits for work.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct ModelUp;

/// The model could not be loaded.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct ModelDown {
    /// Why.
    pub reason: String,
}

/// The job will have so many steps.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Begins {
    /// The job.
    pub id: JobId,
    /// Steps in all.
    pub total: u32,
}

/// A step is done.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Progress {
    /// The job.
    pub id: JobId,
    /// Where it stands.
    pub step: Step,
}

/// A small picture of how the job looks now.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Preview {
    /// The job.
    pub id: JobId,
    /// Where it stands.
    pub step: Step,
    /// The picture.
    pub image: EncodedImage,
}

/// The job is done.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Done {
    /// The job.
    pub id: JobId,
    /// Its pictures.
    pub generation: Generation,
}

/// The job failed.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Failed {
    /// The job.
    pub id: JobId,
    /// Why.
    pub error: JobError,
    /// Whether the model is gone and loads again; a [`ModelUp`] or [`ModelDown`] follows.
    pub model_lost: bool,
}

/// The job stopped because somebody cancelled it.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Cancelled {
    /// The job.
    pub id: JobId,
}

// State for whoever wants to read it.

/// How the model stands.
#[derive(Clone, Debug, PartialEq)]
pub enum ModelState {
    /// Nothing has begun.
    Starting,
    /// It is being loaded.
    Loading {
        /// What is being done.
        stage: String,
        /// How far, 0 to 1.
        fraction: f32,
        /// The model that was there before, if it is loaded again after a failure.
        again: Option<Arc<ModelInfo>>,
    },
    /// It can paint.
    Ready(Arc<ModelInfo>),
    /// It could not be loaded.
    Failed {
        /// Why.
        reason: String,
    },
}

impl ModelState {
    /// The model, also while it is loaded again.
    pub fn info(&self) -> Option<&Arc<ModelInfo>> {
        match self {
            Self::Ready(info) => Some(info),
            Self::Loading { again, .. } => again.as_ref(),
            Self::Starting | Self::Failed { .. } => None,
        }
    }
}

/// How the queue stands.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct JobsView {
    /// Jobs that wait.
    pub depth: usize,
    /// Jobs that may wait.
    pub capacity: usize,
    /// The job that runs.
    pub running: Option<RunningView>,
    /// Whether new jobs are refused because the worker stops.
    pub draining: bool,
    /// Sums since the start.
    pub totals: Totals,
}

impl JobsView {
    /// Whether nothing runs and nothing waits.
    pub fn is_idle(&self) -> bool {
        self.depth == 0 && self.running.is_none()
    }
}

/// The job that runs.
#[derive(Clone, Debug, PartialEq)]
pub struct RunningView {
    /// The job.
    pub id: JobId,
    /// Steps done.
    pub step: u32,
    /// Steps in all; 0 while the model still reads the prompt.
    pub total: u32,
    /// Since when.
    pub since: Instant,
    /// Time to the last step, once a step is done.
    pub left: Option<Duration>,
}

/// Sums since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Totals {
    /// Jobs with pictures.
    pub completed: u64,
    /// Jobs with an error.
    pub failed: u64,
    /// Jobs cancelled.
    pub cancelled: u64,
    /// Jobs not admitted because the queue was full.
    pub rejected: u64,
    /// Pictures painted.
    pub images: u64,
    /// Steps done.
    pub steps: u64,
    /// Seconds that finished jobs ran.
    pub busy_s: f64,
}
