//! What goes out: jobs, events and pictures as JSON, or a picture as it is.

use actix_web::HttpResponse;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::error::ApiError;
use crate::clock::rfc3339;
use crate::domain::event::{Generation, JobEvent, Step};
use crate::domain::job::{JobError, JobId, JobSnapshot};
use crate::domain::picture::EncodedImage;

/// A job as `/v1/jobs` shows it.
pub fn job(snapshot: &JobSnapshot) -> Value {
    let JobSnapshot {
        id,
        state,
        position,
        step,
        total,
        created_at,
        started_at,
        finished_at,
        seed,
        images,
        warnings,
        error,
    } = snapshot;
    json!({
        "job_id": id.to_string(),
        "state": state,
        "position": position,
        "step": step,
        "total": total,
        "created_at": rfc3339(*created_at),
        "started_at": started_at.map(rfc3339),
        "finished_at": finished_at.map(rfc3339),
        "seed": seed,
        "images": images,
        "warnings": warnings,
        "error": error.as_ref().map(job_error),
    })
}

/// The pictures of a job, as the answer to `Accept: application/json`.
pub fn generation(id: JobId, generation: &Generation) -> Value {
    let mut answer = results(generation);
    answer["job_id"] = id.to_string().into();
    answer
}

/// One picture of a result as it is: its bytes, with what else is to know in headers. `None` if there are not so many.
pub fn bare_picture(id: JobId, generation: &Generation, index: usize) -> Option<HttpResponse> {
    let picture = generation.images.get(index)?;
    let mut answer = HttpResponse::Ok();
    answer
        .content_type(picture.format.media_type())
        .insert_header(("x-job-id", id.to_string()))
        .insert_header(("x-seed", picture.seed.to_string()));
    for warning in &generation.warnings {
        answer.append_header(("x-warning", header_text(warning)));
    }
    Some(answer.body(picture.bytes.clone()))
}

/// Text as a header may hold it: printable ASCII, a question mark for anything else.
fn header_text(text: &str) -> String {
    let printable = |c: char| if matches!(c, ' '..='~') { c } else { '?' };
    text.chars().map(printable).collect()
}

/// The name of an event and its data.
pub fn event(id: JobId, event: &JobEvent) -> (&'static str, Value) {
    let (name, mut data) = match event {
        JobEvent::Queued { position } => ("queued", json!({ "position": position })),
        JobEvent::Started => ("started", json!({})),
        JobEvent::Progress { step, elapsed, left } => {
            let mut data = steps(*step);
            data["percent"] = (f64::from(step.step) * 100.0 / f64::from(step.total.max(1))).into();
            data["elapsed_ms"] = (elapsed.as_millis() as u64).into();
            data["eta_ms"] = (left.as_millis() as u64).into();
            ("progress", data)
        }
        JobEvent::Preview { step, image } => {
            let mut data = steps(*step);
            data["image"] = STANDARD.encode(&image.bytes).into();
            data["format"] = image.format.name().into();
            ("preview", data)
        }
        JobEvent::Completed(generation) => ("complete", results(generation)),
        JobEvent::Failed(error) => ("error", job_error(error)),
        JobEvent::Cancelled => ("cancelled", json!({})),
    };
    data["type"] = name.into();
    data["job_id"] = id.to_string().into();
    (name, data)
}

fn steps(step: Step) -> Value {
    let Step { step, total } = step;
    json!({ "step": step, "total": total })
}

fn results(generation: &Generation) -> Value {
    let Generation {
        images,
        timings,
        warnings,
    } = generation;
    let images: Vec<Value> = images.iter().map(picture).collect();
    let mut data = json!({ "images": images, "timings": timings });
    if !warnings.is_empty() {
        data["warnings"] = json!(warnings);
    }
    data
}

fn picture(image: &EncodedImage) -> Value {
    let EncodedImage {
        bytes,
        format,
        size,
        seed,
    } = image;
    json!({
        "b64_json": STANDARD.encode(bytes),
        "format": format.name(),
        "seed": seed,
        "width": size.width,
        "height": size.height,
    })
}

fn job_error(error: &JobError) -> Value {
    json!({ "code": ApiError::from(error).code(), "message": error.message })
}
