//! How far the running job is, and stopping it.

use actix_web::web::{Data, Json, Query};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};

use super::super::error::ApiError;
use super::super::state::AppState;
use crate::actors::messages::{Cancel, Subscribe};
use crate::domain::event::JobEvent;
use crate::domain::job::JobId;

/// The query of [`progress`].
#[derive(Debug, Deserialize)]
pub struct Skip {
    #[serde(default)]
    skip_current_image: bool,
}

/// `GET /sdapi/v1/progress`
///
/// # Errors
/// As [`ApiError`] lists them.
pub async fn progress(state: Data<AppState>, query: Query<Skip>) -> Result<Json<Value>, ApiError> {
    let view = state.view.borrow().clone();
    let Some(running) = view.running else {
        return Ok(Json(json!({
            "progress": 0.0, "eta_relative": 0.0, "current_image": null, "textinfo": null,
            "state": { "skipped": false, "interrupted": false, "job": "", "job_count": view.depth, "job_no": 0,
                       "sampling_step": 0, "sampling_steps": 0 },
        })));
    };
    let image = match query.skip_current_image {
        true => None,
        false => preview(&state, running.id).await?,
    };
    Ok(Json(json!({
        "progress": f64::from(running.step) / f64::from(running.total.max(1)),
        "eta_relative": running.left.map_or(0.0, |left| left.as_secs_f64()),
        "current_image": image,
        "textinfo": null,
        "state": { "skipped": false, "interrupted": false, "job": running.id.to_string(), "job_count": view.depth + 1,
                   "job_no": 0, "sampling_step": running.step, "sampling_steps": running.total },
    })))
}

/// The latest preview of a job, from its history.
async fn preview(state: &AppState, id: JobId) -> Result<Option<String>, ApiError> {
    let Some(mut events) = state.jobs.send(Subscribe { id, after: None }).await? else {
        return Ok(None);
    };
    let mut latest = None;
    while let Ok(numbered) = events.try_recv() {
        if let JobEvent::Preview { image, .. } = numbered.event {
            latest = Some(STANDARD.encode(&image.bytes));
        }
    }
    Ok(latest)
}

/// `POST /sdapi/v1/interrupt`: cancels the running job.
///
/// # Errors
/// As [`ApiError`] lists them.
pub async fn interrupt(state: Data<AppState>) -> Result<Json<Value>, ApiError> {
    let running = state.view.borrow().running.as_ref().map(|running| running.id);
    if let Some(id) = running {
        state.jobs.send(Cancel { id }).await?;
    }
    Ok(Json(json!({})))
}
