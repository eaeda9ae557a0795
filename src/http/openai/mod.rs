//! OpenAI's image API: `/v1/images/generations`, `/v1/images/edits`, `/v1/models`.

mod call;
mod error;
mod form;
mod stream;

use std::time::{SystemTime, UNIX_EPOCH};

use actix_web::web::{Data, Payload, block};
use actix_web::{HttpRequest, HttpResponse};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::body;
use super::error::ApiError;
use super::fields::Fields;
use super::intake::Checker;
use super::paint::outcome;
use super::sse;
use super::state::AppState;
use crate::actors::messages::{Accepted, Submit, Tie};
use crate::domain::event::Generation;
use crate::domain::job::JobId;
use crate::domain::picture::Size;
use call::{Call, Edit, Look};
use error::OpenAiError;
use stream::Stream;

/// `POST /v1/images/generations`
///
/// # Errors
/// As [`ApiError`] lists them, in OpenAI's form.
pub async fn generations(
    state: Data<AppState>,
    request: HttpRequest,
    payload: Payload,
) -> Result<HttpResponse, OpenAiError> {
    let checker = Checker::new(&state)?;
    let bytes = body::json_bytes(&request, payload, state.max_body).await?;
    let call = block(move || Call::read(Fields::of_body(&bytes)?, Edit::default(), &checker)).await;
    answer(&state, &request, call.map_err(ApiError::from)??).await
}

/// `POST /v1/images/edits`
///
/// # Errors
/// As [`ApiError`] lists them, in OpenAI's form.
pub async fn edits(state: Data<AppState>, request: HttpRequest, payload: Payload) -> Result<HttpResponse, OpenAiError> {
    let checker = Checker::new(&state)?;
    let form = form::read(&request, payload, state.max_body).await?;
    let call = block(move || {
        let edit = Edit::decode(form.image.as_deref(), form.mask.as_deref(), &checker.limits)?;
        Call::read(Fields::new(form.fields, ""), edit, &checker)
    });
    answer(&state, &request, call.await.map_err(ApiError::from)??).await
}

/// `GET /v1/models`
///
/// # Errors
/// 503 while there is no model.
pub async fn models(state: Data<AppState>) -> Result<HttpResponse, OpenAiError> {
    let info = state.model_info()?;
    let started = SystemTime::now()
        .checked_sub(state.started.elapsed())
        .unwrap_or(UNIX_EPOCH);
    Ok(HttpResponse::Ok().json(json!({
        "object": "list",
        "data": [{ "id": info.name, "object": "model", "created": unix(started), "owned_by": "sd-worker" }],
    })))
}

async fn answer(state: &AppState, request: &HttpRequest, call: Call) -> Result<HttpResponse, OpenAiError> {
    let Call { request: job, look } = call;
    let size = job.size;
    let submit = Submit {
        request: job,
        tie: Tie::Owned,
    };
    let Accepted { job, events, owner } = state
        .jobs
        .send(submit)
        .await
        .map_err(ApiError::from)?
        .map_err(ApiError::from)?;
    if look.stream {
        let events = Stream::new(events, owner, look, size).events();
        return Ok(sse::send(request, job.id, events, state.keep_alive));
    }
    let generation = outcome(events, owner).await?;
    let base = own_url(request);
    let text = block(move || list(job.id, &generation, look, size, &base).map(|list| list.to_string())).await;
    let text = text.map_err(ApiError::from)??;
    Ok(HttpResponse::Ok()
        .insert_header(("x-job-id", job.id.to_string()))
        .content_type("application/json")
        .body(text))
}

/// The URL under which the caller reached this worker.
fn own_url(request: &HttpRequest) -> String {
    let connection = request.connection_info();
    format!("{}://{}", connection.scheme(), connection.host())
}

fn list(id: JobId, generation: &Generation, look: Look, size: Size, base: &str) -> Result<Value, ApiError> {
    let mut data = Vec::new();
    for (index, image) in generation.images.iter().enumerate() {
        let mut item = json!({ "seed": image.seed });
        if look.by_url {
            item["url"] = format!("{base}/v1/jobs/{id}/images/{index}").into();
        } else {
            item["b64_json"] = STANDARD.encode(look.file(image)?).into();
        }
        data.push(item);
    }
    Ok(json!({
        "created": unix(SystemTime::now()),
        "data": data,
        "size": size.to_string(),
        "output_format": look.format.name(),
        "usage": usage(),
    }))
}

/// Nothing is counted in tokens here.
fn usage() -> Value {
    json!({
        "total_tokens": 0,
        "input_tokens": 0,
        "output_tokens": 0,
        "input_tokens_details": { "text_tokens": 0, "image_tokens": 0 },
    })
}

fn unix(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
