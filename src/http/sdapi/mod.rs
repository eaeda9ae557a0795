//! A1111's API under `/sdapi/v1/`, as far as one model without extras can answer it.

mod call;
mod lists;
mod progress;

use actix_web::HttpRequest;
use actix_web::web::{Data, Json, Payload, block};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::body;
use super::error::ApiError;
use super::fields::Fields;
use super::intake::Checker;
use super::paint::outcome;
use super::state::AppState;
use crate::actors::messages::{Accepted, Submit, Tie};
use crate::domain::event::Generation;
use crate::domain::request::{GenerationRequest, OperationKind};
use crate::pipeline::image_io;
use call::{Call, Way};

pub use lists::{
    latent_upscale_modes, loras, models, options, png_info, samplers, schedulers, set_options, upscalers, vaes,
};
pub use progress::{interrupt, progress};

/// `POST /sdapi/v1/txt2img`
///
/// # Errors
/// As [`ApiError`] lists them.
pub async fn txt2img(state: Data<AppState>, request: HttpRequest, payload: Payload) -> Result<Json<Value>, ApiError> {
    paint(Way::TextToImage, &state, &request, payload).await
}

/// `POST /sdapi/v1/img2img`
///
/// # Errors
/// As [`ApiError`] lists them.
pub async fn img2img(state: Data<AppState>, request: HttpRequest, payload: Payload) -> Result<Json<Value>, ApiError> {
    paint(Way::ImageToImage, &state, &request, payload).await
}

async fn paint(way: Way, state: &AppState, request: &HttpRequest, payload: Payload) -> Result<Json<Value>, ApiError> {
    let checker = Checker::new(state)?;
    let bytes = body::json_bytes(request, payload, state.max_body).await?;
    let call = block(move || Call::read(Fields::of_body(&bytes)?, way, &checker)).await??;
    let Call {
        request: job,
        parameters,
        send_images,
    } = call;
    let submit = Submit {
        request: job.clone(),
        tie: Tie::Owned,
    };
    let Accepted { events, owner, .. } = state.jobs.send(submit).await??;
    let generation = outcome(events, owner).await?;
    let answer = block(move || {
        let images: Vec<String> = if send_images {
            generation
                .images
                .iter()
                .map(|image| STANDARD.encode(&image.bytes))
                .collect()
        } else {
            Vec::new()
        };
        // A1111 sends this object as a string.
        let info = info(&job, &generation).to_string();
        json!({ "images": images, "parameters": parameters, "info": info })
    });
    Ok(Json(answer.await?))
}

fn info(request: &GenerationRequest, generation: &Generation) -> Value {
    let seeds: Vec<u64> = generation.images.iter().map(|image| image.seed).collect();
    let text = |bytes: &[u8]| image_io::read_parameters(bytes).unwrap_or_default();
    let texts: Vec<String> = generation.images.iter().map(|image| text(&image.bytes)).collect();
    let is_image = request.operation.kind() != OperationKind::ImageGeneration;
    json!({
        "prompt": request.prompt,
        "all_prompts": vec![&request.prompt; seeds.len()],
        "negative_prompt": request.negative_prompt,
        "all_negative_prompts": vec![&request.negative_prompt; seeds.len()],
        "seed": request.seed,
        "all_seeds": seeds,
        "width": request.size.width,
        "height": request.size.height,
        "sampler_name": request.sampler.label(),
        "cfg_scale": request.guidance_scale,
        "steps": request.steps,
        "batch_size": request.count,
        "clip_skip": request.clip_skip,
        "is_using_inpainting_conditioning": is_image,
        "infotexts": texts,
        "warnings": generation.warnings,
    })
}
