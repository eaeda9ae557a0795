//! `/v1/jobs`: jobs that outlive the connection that made them.

use actix_web::http::header::LOCATION;
use actix_web::web::{Data, Path, Payload};
use actix_web::{HttpRequest, HttpResponse};
use serde_json::{Value, json};

use super::body;
use super::dto::Form;
use super::error::ApiError;
use super::intake::{self, Checker, Intake};
use super::sse::{self, Source};
use super::state::AppState;
use super::wire;
use crate::actors::messages::{Accepted, Cancel, Find, FindResult, IdempotencyKey, List, Submit, Subscribe, Tie};
use crate::domain::draft::{FieldError, shortened};
use crate::domain::job::JobId;

/// `POST /v1/jobs`
///
/// # Errors
/// As [`ApiError`] lists them.
pub async fn create(state: Data<AppState>, request: HttpRequest, payload: Payload) -> Result<HttpResponse, ApiError> {
    let checker = Checker::new(&state)?;
    let key = idempotency_key(&request)?;
    let bytes = body::json_bytes(&request, payload, state.max_body).await?;
    let Intake { request, fingerprint } = intake::read(checker, bytes, Form::Tagged, None).await?;
    let submit = Submit {
        request,
        tie: Tie::Free(key.map(|key| IdempotencyKey { key, fingerprint })),
    };
    let Accepted { job, .. } = state.jobs.send(submit).await??;
    let url = format!("/v1/jobs/{}", job.id);
    Ok(HttpResponse::Accepted()
        .insert_header((LOCATION, url.clone()))
        .json(json!({
            "job_id": job.id.to_string(),
            "sse_url": format!("{url}/stream"),
            "position": job.position.unwrap_or(0),
        })))
}

/// `GET /v1/jobs`
///
/// # Errors
/// As [`ApiError`] lists them.
pub async fn list(state: Data<AppState>) -> Result<HttpResponse, ApiError> {
    let jobs: Vec<Value> = state.jobs.send(List).await?.iter().map(wire::job).collect();
    Ok(HttpResponse::Ok().json(json!({ "jobs": jobs })))
}

/// `GET /v1/jobs/{id}`
///
/// # Errors
/// As [`ApiError`] lists them.
pub async fn show(state: Data<AppState>, path: Path<String>) -> Result<HttpResponse, ApiError> {
    let id = job_id(&path)?;
    let job = state.jobs.send(Find { id }).await?.ok_or_else(|| unknown(&path))?;
    Ok(HttpResponse::Ok().json(wire::job(&job)))
}

/// `DELETE /v1/jobs/{id}`
///
/// # Errors
/// As [`ApiError`] lists them.
pub async fn cancel(state: Data<AppState>, path: Path<String>) -> Result<HttpResponse, ApiError> {
    let id = job_id(&path)?;
    let job = state.jobs.send(Cancel { id }).await?.ok_or_else(|| unknown(&path))?;
    Ok(HttpResponse::Ok().json(wire::job(&job)))
}

/// `GET /v1/jobs/{id}/stream`
///
/// # Errors
/// As [`ApiError`] lists them.
pub async fn stream(state: Data<AppState>, path: Path<String>, request: HttpRequest) -> Result<HttpResponse, ApiError> {
    let id = job_id(&path)?;
    let after = request.headers().get("last-event-id");
    let after = after.and_then(|value| value.to_str().ok()?.trim().parse().ok());
    let events = state.jobs.send(Subscribe { id, after }).await?;
    let source = Source {
        id,
        events: events.ok_or_else(|| unknown(&path))?,
        owner: None,
    };
    Ok(sse::respond(&request, source, state.keep_alive))
}

/// `GET /v1/jobs/{id}/images/{index}`
///
/// # Errors
/// As [`ApiError`] lists them.
pub async fn image(state: Data<AppState>, path: Path<(String, String)>) -> Result<HttpResponse, ApiError> {
    let (job, index) = path.into_inner();
    let id = job_id(&job)?;
    state.jobs.send(Find { id }).await?.ok_or_else(|| unknown(&job))?;
    let result = state.jobs.send(FindResult { id }).await?;
    let missing = || ApiError::NotFound(format!("picture {} of job {id}", shortened(&index)));
    let result = result.ok_or_else(missing)?;
    let index: usize = index.parse().map_err(|_| missing())?;
    wire::bare_picture(id, &result, index).ok_or_else(missing)
}

fn job_id(text: &str) -> Result<JobId, ApiError> {
    text.parse().map_err(|_| unknown(text))
}

fn unknown(text: &str) -> ApiError {
    ApiError::NotFound(format!("job {}", shortened(text)))
}

fn idempotency_key(request: &HttpRequest) -> Result<Option<String>, FieldError> {
    const NAME: &str = "Idempotency-Key";
    const LONGEST: usize = 255;
    let Some(value) = request.headers().get(NAME) else {
        return Ok(None);
    };
    match value.to_str() {
        Ok(key) if (1..=LONGEST).contains(&key.len()) => Ok(Some(key.to_owned())),
        _ => Err(FieldError::new(
            NAME,
            format!("it must have 1 to {LONGEST} visible ASCII characters"),
        )),
    }
}
