//! `/txt2img`, `/img2img`, `/inpaint`: a job that belongs to its caller. If the caller goes away, the job is cancelled.

use std::sync::Arc;

use actix::Addr;
use actix_web::web::{Data, Payload, block};
use actix_web::{HttpRequest, HttpResponse};
use tokio::sync::mpsc;

use super::accept::Answer;
use super::body;
use super::dto::Form;
use super::error::ApiError;
use super::intake::{self, Checker};
use super::sse::{self, Source};
use super::state::AppState;
use super::wire;
use crate::actors::jobs::JobsActor;
use crate::actors::messages::{Accepted, Cancel, Submit};
use crate::domain::event::{Generation, JobEvent, Numbered};
use crate::domain::job::JobId;
use crate::domain::request::OperationKind;

/// `POST /txt2img`
///
/// # Errors
/// As [`ApiError`] lists them.
pub async fn txt2img(state: Data<AppState>, request: HttpRequest, payload: Payload) -> Result<HttpResponse, ApiError> {
    paint(OperationKind::ImageGeneration, &state, &request, payload).await
}

/// `POST /img2img`
///
/// # Errors
/// As [`ApiError`] lists them.
pub async fn img2img(state: Data<AppState>, request: HttpRequest, payload: Payload) -> Result<HttpResponse, ApiError> {
    paint(OperationKind::ImageTransform, &state, &request, payload).await
}

/// `POST /inpaint`
///
/// # Errors
/// As [`ApiError`] lists them.
pub async fn inpaint(state: Data<AppState>, request: HttpRequest, payload: Payload) -> Result<HttpResponse, ApiError> {
    paint(OperationKind::ImageInpaint, &state, &request, payload).await
}

async fn paint(
    kind: OperationKind,
    state: &AppState,
    request: &HttpRequest,
    payload: Payload,
) -> Result<HttpResponse, ApiError> {
    let checker = Checker::new(state)?;
    let answer = Answer::wanted(request);
    let bytes = body::json_bytes(request, payload, state.max_body).await?;
    let intake = intake::read(checker, bytes, Form::Path(kind), answer.format()).await?;
    let submit = Submit {
        request: intake.request,
        idempotency: None,
    };
    let Accepted { job, events } = state.jobs.send(submit).await??;
    let owner = Owner::new(state.jobs.clone(), job.id);
    let mut response = HttpResponse::Ok();
    response.insert_header(("x-job-id", job.id.to_string()));
    match answer {
        Answer::Events => {
            let source = Source {
                id: job.id,
                events,
                owner: Some(owner),
                keep_alive: state.keep_alive,
            };
            Ok(sse::respond(response, source))
        }
        Answer::Json => {
            let generation = outcome(events, owner).await?;
            let text = block(move || wire::generation(job.id, &generation).to_string()).await?;
            Ok(response.content_type("application/json").body(text))
        }
        Answer::Picture(_) => {
            let generation = outcome(events, owner).await?;
            let first = generation.images.first();
            let first = first.ok_or_else(|| ApiError::Internal("the job has no picture".into()))?;
            Ok(response
                .content_type(first.format.media_type())
                .insert_header(("x-seed", first.seed.to_string()))
                .body(first.bytes.clone()))
        }
    }
}

/// Waits for the end of a job.
///
/// # Errors
/// What the job ended with, unless it was pictures.
pub async fn outcome(mut events: mpsc::Receiver<Numbered>, mut owner: Owner) -> Result<Arc<Generation>, ApiError> {
    while let Some(Numbered { event, .. }) = events.recv().await {
        if event.is_final() {
            owner.release();
        }
        match event {
            JobEvent::Queued { .. } | JobEvent::Started | JobEvent::Progress { .. } | JobEvent::Preview { .. } => {}
            JobEvent::Completed(generation) => return Ok(generation),
            JobEvent::Failed(error) => return Err(ApiError::from(&error)),
            JobEvent::Cancelled => return Err(ApiError::Cancelled),
        }
    }
    Err(ApiError::Internal("the job was lost".into()))
}

/// Cancels its job when it is dropped before the job has ended: the caller has gone.
pub struct Owner {
    jobs: Addr<JobsActor>,
    id: JobId,
    ended: bool,
}

impl Owner {
    /// The owner of a job.
    pub fn new(jobs: Addr<JobsActor>, id: JobId) -> Self {
        Self { jobs, id, ended: false }
    }

    /// The job has ended: there is nothing to cancel any more.
    pub fn release(&mut self) {
        self.ended = true;
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        if !self.ended {
            tracing::info!(job = %self.id, "the caller has gone");
            self.jobs.do_send(Cancel { id: self.id });
        }
    }
}
