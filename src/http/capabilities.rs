//! `/v1/capabilities`: what a request may ask of this worker.

use actix_web::HttpResponse;
use actix_web::web::{Data, block};
use serde_json::json;

use super::error::ApiError;
use super::state::AppState;
use crate::domain::limits::Limits;
use crate::domain::picture::OutputFormat;

/// `GET /v1/capabilities`
///
/// # Errors
/// 503 while there is no model.
pub async fn capabilities(state: Data<AppState>) -> Result<HttpResponse, ApiError> {
    let info = state.model.borrow().info().cloned();
    let info = match info {
        Some(info) => info,
        None => state.model_info()?,
    };
    let catalog = state.loras.clone();
    let loras = block(move || catalog()).await?;
    let limits = state.limits;
    let defaults = &info.defaults;
    Ok(HttpResponse::Ok().json(json!({
        "worker_id": state.worker_id,
        "model": { "name": info.name, "aliases": info.aliases, "family": info.family.name() },
        "operations": info.operations,
        "sizes": {
            "min": Limits::MIN_SIDE,
            "max": limits.max_side,
            "multiple_of": info.family.size_multiple(),
            "default": { "width": defaults.size.width, "height": defaults.size.height },
        },
        "limits": {
            "steps": Limits::MAX_STEPS,
            "images": limits.max_images,
            "guidance_scale": Limits::MAX_GUIDANCE,
            "prompt_characters": Limits::MAX_PROMPT_CHARS,
            "loras": Limits::MAX_LORAS,
            "body_bytes": state.max_body,
            "image_bytes": limits.max_image_bytes,
            "image_pixels": limits.max_image_pixels,
            "queue": state.view.borrow().capacity,
        },
        "samplers": info.samplers,
        "schedules": info.schedules,
        "defaults": {
            "width": defaults.size.width,
            "height": defaults.size.height,
            "steps": defaults.steps,
            "guidance_scale": defaults.guidance_scale,
            "sampler": defaults.sampler,
            "schedule": defaults.schedule,
            "clip_skip": defaults.clip_skip,
            "strength": 0.8,
            "n": 1,
            "output_format": OutputFormat::default(),
        },
        "loras": loras,
        "output_formats": OutputFormat::ALL,
    })))
}
