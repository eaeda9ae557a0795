//! A job as callers see it.

use std::fmt;
use std::str::FromStr;
use std::time::SystemTime;

use serde::Serialize;
use uuid::Uuid;

/// Name of a job, unique for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct JobId(Uuid);

impl JobId {
    /// A new name.
    pub fn random() -> Self {
        Self(Uuid::new_v4())
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for JobId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Uuid::parse_str(text).map(Self)
    }
}

/// Where a job stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum JobState {
    /// It waits.
    Queued,
    /// The model paints it.
    Running,
    /// Its pictures are there.
    Completed,
    /// It ended with an error.
    Failed,
    /// Somebody cancelled it.
    Cancelled,
}

impl JobState {
    /// Whether nothing more will happen.
    pub fn is_final(self) -> bool {
        match self {
            Self::Queued | Self::Running => false,
            Self::Completed | Self::Failed | Self::Cancelled => true,
        }
    }
}

/// Why a job failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct JobError {
    /// What kind of failure.
    pub kind: JobErrorKind,
    /// What happened, for people.
    pub message: String,
}

/// Kinds of failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JobErrorKind {
    /// The request asks for something that only the model could find to be impossible; names the field.
    BadRequest {
        /// The field.
        field: String,
    },
    /// The model failed or panicked.
    Model,
    /// The model could not be loaded again, or the worker stops.
    Unavailable,
}

/// A job at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct JobSnapshot {
    /// Its name.
    pub id: JobId,
    /// Where it stands.
    pub state: JobState,
    /// Jobs before it, the running one included; only while queued.
    pub position: Option<usize>,
    /// Steps done.
    pub step: u32,
    /// Steps in all; 0 before the first is done.
    pub total: u32,
    /// When it was accepted.
    pub created_at: SystemTime,
    /// When the model began.
    pub started_at: Option<SystemTime>,
    /// When it ended.
    pub finished_at: Option<SystemTime>,
    /// Seed of its first picture.
    pub seed: u64,
    /// Pictures that can be fetched.
    pub images: usize,
    /// What its caller should know about the result: parts of a LoRA that match nothing, say.
    pub warnings: Vec<String>,
    /// Why it failed.
    pub error: Option<JobError>,
}
