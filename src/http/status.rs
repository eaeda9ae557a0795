//! `/status`: everything about this worker at one look.

use actix_web::HttpResponse;
use actix_web::web::Data;
use serde_json::{Value, json};

use super::state::{AppState, reason};
use crate::actors::messages::{JobsView, ModelState, RunningView, Totals};
use crate::actors::state::WorkerState;
use crate::domain::model::ModelInfo;

/// `GET /status`
pub async fn status(state: Data<AppState>) -> HttpResponse {
    let view = state.view.borrow().clone();
    let model = state.model.borrow().clone();
    let mut answer = json!({
        "worker_id": state.worker_id,
        "state": WorkerState::of(&model, &view).name(),
        "version": env!("CARGO_PKG_VERSION"),
        "uptime_s": state.started.elapsed().as_secs(),
        "model": model.info().map(|info| model_json(info)),
        "queue": queue(&view),
        "totals": totals(&view.totals),
        "memory": { "rss": resident_bytes(), "device": Value::Null },
    });
    match &model {
        ModelState::Loading { stage, fraction, .. } => {
            answer["load"] = json!({ "stage": stage, "progress": fraction });
        }
        ModelState::Failed { .. } => answer["reason"] = reason(&model).into(),
        ModelState::Starting | ModelState::Ready(_) => {}
    }
    HttpResponse::Ok().json(answer)
}

fn model_json(info: &ModelInfo) -> Value {
    json!({
        "name": info.name,
        "family": info.family.name(),
        "source": info.source,
        "dtype": info.dtype,
        "quantization": info.quantization,
        "device": info.device,
    })
}

fn queue(view: &JobsView) -> Value {
    json!({
        "depth": view.depth,
        "capacity": view.capacity,
        "running": view.running.as_ref().map(running),
    })
}

fn running(running: &RunningView) -> Value {
    let RunningView {
        id,
        step,
        total,
        since,
        left,
    } = running;
    json!({
        "job_id": id.to_string(),
        "step": step,
        "total": total,
        "elapsed_ms": since.elapsed().as_millis() as u64,
        "eta_ms": left.map(|left| left.as_millis() as u64),
    })
}

fn totals(totals: &Totals) -> Value {
    let Totals {
        completed,
        failed,
        cancelled,
        rejected,
        images,
        steps,
        busy_s,
    } = totals;
    json!({
        "completed": completed,
        "failed": failed,
        "cancelled": cancelled,
        "rejected": rejected,
        "images": images,
        "steps": steps,
        "busy_s": busy_s,
    })
}

/// Bytes of main memory in use; `None` where the system does not tell.
pub fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}
