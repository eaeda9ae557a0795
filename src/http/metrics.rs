//! `/metrics`: Prometheus text.

use std::fmt::{Display, Write};

use actix_web::HttpResponse;
use actix_web::web::Data;

use super::state::AppState;
use super::status::resident_bytes;
use crate::actors::messages::Totals;
use crate::actors::state::WorkerState;

/// `GET /metrics`
pub async fn metrics(state: Data<AppState>) -> HttpResponse {
    HttpResponse::Ok()
        .content_type("text/plain; version=0.0.4; charset=utf-8")
        .body(text(&state))
}

fn text(state: &AppState) -> String {
    let view = state.view.borrow().clone();
    let now = WorkerState::of(&state.model.borrow(), &view);
    let Totals {
        completed,
        failed,
        cancelled,
        rejected,
        images,
        steps,
        busy_s,
    } = view.totals;
    let mut page = Page::default();
    page.head("sd_worker_jobs_total", "counter", "Jobs by outcome.");
    for (outcome, count) in [
        ("completed", completed),
        ("failed", failed),
        ("cancelled", cancelled),
        ("rejected", rejected),
    ] {
        page.labelled("sd_worker_jobs_total", "outcome", outcome, count);
    }
    page.one("sd_worker_images_total", "counter", "Pictures painted.", images);
    page.one("sd_worker_steps_total", "counter", "Denoising steps done.", steps);
    page.one(
        "sd_worker_busy_seconds_total",
        "counter",
        "Seconds that ended jobs ran.",
        busy_s,
    );
    page.one("sd_worker_queue_depth", "gauge", "Jobs that wait.", view.depth);
    page.one(
        "sd_worker_queue_capacity",
        "gauge",
        "Jobs that may wait.",
        view.capacity,
    );
    let running = u8::from(view.running.is_some());
    page.one("sd_worker_running", "gauge", "Jobs that run, 0 or 1.", running);
    let step = view.running.as_ref().map_or(0, |running| running.step);
    page.one(
        "sd_worker_running_step",
        "gauge",
        "Steps done by the running job.",
        step,
    );
    page.head("sd_worker_state", "gauge", "1 for the state that the worker is in.");
    for state in WorkerState::ALL {
        page.labelled("sd_worker_state", "state", state.name(), u8::from(state == now));
    }
    let uptime = state.started.elapsed().as_secs_f64();
    page.one("sd_worker_uptime_seconds", "gauge", "Seconds since the start.", uptime);
    if let Some(bytes) = resident_bytes() {
        page.one("sd_worker_resident_memory_bytes", "gauge", "Main memory in use.", bytes);
    }
    page.text
}

#[derive(Default)]
struct Page {
    text: String,
}

// Writing to a string does not fail.
impl Page {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn one(&mut self, name: &str, kind: &str, help: &str, value: impl Display) {
        self.head(name, kind, help);
        let _ = writeln!(self.text, "{name} {value}");
    }

    fn labelled(&mut self, name: &str, label: &str, of: &str, value: impl Display) {
        let _ = writeln!(self.text, "{name}{{{label}=\"{of}\"}} {value}");
    }
}
