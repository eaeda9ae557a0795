//! `/health`: the process answers, whatever runs. `/ready`: the model can paint.

use actix_web::HttpResponse;
use actix_web::web::Data;
use serde_json::json;

use super::state::{AppState, reason};
use crate::actors::messages::ModelState;

/// `GET /health`
pub async fn health(state: Data<AppState>) -> HttpResponse {
    HttpResponse::Ok().json(json!({
        "status": "healthy",
        "worker_id": state.worker_id,
        "uptime_s": state.started.elapsed().as_secs(),
        "version": env!("CARGO_PKG_VERSION"),
    }))
}

/// `GET /ready`
pub async fn ready(state: Data<AppState>) -> HttpResponse {
    let draining = state.view.borrow().draining;
    let model = state.model.borrow();
    let progress = match &*model {
        ModelState::Ready(_) if !draining => return HttpResponse::Ok().json(json!({ "ready": true })),
        ModelState::Ready(_) => 1.0,
        ModelState::Loading { fraction, .. } => *fraction,
        ModelState::Starting | ModelState::Failed { .. } => 0.0,
    };
    let reason = if draining { "draining".into() } else { reason(&model) };
    HttpResponse::ServiceUnavailable().json(json!({ "ready": false, "reason": reason, "progress": progress }))
}
