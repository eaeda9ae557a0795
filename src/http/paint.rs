//! `/txt2img`, `/img2img`, `/inpaint`: a job that belongs to its caller. If the caller goes away, the job is cancelled.

use std::sync::Arc;

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
use crate::actors::messages::{Accepted, Submit, Tie};
use crate::actors::owner::Owner;
use crate::domain::event::{Generation, JobEvent, Numbered};
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
        tie: Tie::Owned,
    };
    let Accepted { job, events, owner } = state.jobs.send(submit).await??;
    match answer {
        Answer::Events => {
            let source = Source {
                id: job.id,
                events,
                owner,
            };
            Ok(sse::respond(request, source, state.keep_alive))
        }
        Answer::Json => {
            let generation = outcome(events, owner).await?;
            let text = block(move || wire::generation(job.id, &generation).to_string()).await?;
            Ok(HttpResponse::Ok()
                .content_type("application/json")
                .insert_header(("x-job-id", job.id.to_string()))
                .body(text))
        }
        Answer::Picture(_) => {
            let generation = outcome(events, owner).await?;
            let first = wire::bare_picture(job.id, &generation, 0);
            first.ok_or_else(|| ApiError::Internal("the job has no picture".into()))
        }
    }
}

/// Waits for the end of a job.
///
/// # Errors
/// What the job ended with, unless it was pictures.
pub async fn outcome(
    mut events: mpsc::Receiver<Numbered>,
    mut owner: Option<Owner>,
) -> Result<Arc<Generation>, ApiError> {
    while let Some(Numbered { event, .. }) = events.recv().await {
        if let (true, Some(owner)) = (event.is_final(), owner.as_mut()) {
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
