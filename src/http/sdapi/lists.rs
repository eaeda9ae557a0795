//! What there is to choose from, and the settings of the worker as A1111's clients see them.

use actix_web::HttpRequest;
use actix_web::web::{Data, Json, Payload, block};
use serde_json::{Map, Value, json};

use super::super::body;
use super::super::error::ApiError;
use super::super::fields::Fields;
use super::super::picture;
use super::super::state::AppState;
use crate::domain::draft::FieldError;
use crate::pipeline::image_io;

/// `GET /sdapi/v1/samplers`
///
/// # Errors
/// 503 while there is no model.
pub async fn samplers(state: Data<AppState>) -> Result<Json<Value>, ApiError> {
    let info = state.model_info()?;
    let one = |sampler: &crate::domain::sampling::Sampler| {
        let mut aliases = vec![sampler.name()];
        aliases.extend(sampler.aliases());
        json!({ "name": sampler.label(), "aliases": aliases, "options": {} })
    };
    Ok(Json(info.samplers.iter().map(one).collect()))
}

/// `GET /sdapi/v1/schedulers`
///
/// # Errors
/// 503 while there is no model.
pub async fn schedulers(state: Data<AppState>) -> Result<Json<Value>, ApiError> {
    let info = state.model_info()?;
    let one = |schedule: &crate::domain::sampling::Schedule| {
        json!({
            "name": schedule.name(), "label": schedule.label(), "aliases": schedule.aliases(),
            "default_rho": -1.0, "need_inner_model": false,
        })
    };
    Ok(Json(info.schedules.iter().map(one).collect()))
}

/// `GET /sdapi/v1/sd-models`
///
/// # Errors
/// 503 while there is no model.
pub async fn models(state: Data<AppState>) -> Result<Json<Value>, ApiError> {
    let info = state.model_info()?;
    Ok(Json(json!([{
        "title": info.name, "model_name": info.name, "filename": info.source, "hash": null, "sha256": null, "config": null,
    }])))
}

/// `GET /sdapi/v1/loras`
///
/// # Errors
/// The listing thread is gone.
pub async fn loras(state: Data<AppState>) -> Result<Json<Value>, ApiError> {
    let catalog = state.loras.clone();
    let loras = block(move || catalog()).await?;
    let one = |lora: crate::domain::model::LoraInfo| {
        json!({
            "name": lora.name, "alias": lora.name, "path": format!("{}.safetensors", lora.name),
            "metadata": { "trigger_words": lora.trigger_words, "base_model": lora.base_model },
        })
    };
    Ok(Json(loras.into_iter().map(one).collect()))
}

/// `GET /sdapi/v1/upscalers`: the one that does nothing, which clients expect to find.
pub async fn upscalers() -> Json<Value> {
    Json(json!([{ "name": "None", "model_name": null, "model_path": null, "model_url": null, "scale": 1.0 }]))
}

/// `GET /sdapi/v1/latent-upscale-modes`: none.
pub async fn latent_upscale_modes() -> Json<Value> {
    Json(json!([]))
}

/// `GET /sdapi/v1/sd-vae`: none but the model's own.
pub async fn vaes() -> Json<Value> {
    Json(json!([]))
}

/// `GET /sdapi/v1/options`
///
/// # Errors
/// 503 while there is no model.
pub async fn options(state: Data<AppState>) -> Result<Json<Value>, ApiError> {
    let info = state.model_info()?;
    Ok(Json(json!({
        "sd_model_checkpoint": info.name,
        "sd_checkpoint_hash": null,
        "sd_vae": "Automatic",
        "samples_format": "png",
        "CLIP_stop_at_last_layers": info.defaults.clip_skip,
    })))
}

/// `POST /sdapi/v1/options`: accepts what is so already; one worker has one model.
///
/// # Errors
/// 409 for another model, 400 for another option.
pub async fn set_options(
    state: Data<AppState>,
    request: HttpRequest,
    payload: Payload,
) -> Result<Json<Value>, ApiError> {
    let info = state.model_info()?;
    let mut fields = Fields::of_body(&body::json_bytes(&request, payload, state.max_body).await?)?;
    if let Some(wanted) = fields.string(&["sd_model_checkpoint"])?
        && !info.is_called(&wanted)
    {
        let message = format!(
            "sd_model_checkpoint: `{wanted}` is not loaded here; loaded: {}",
            info.name
        );
        return Err(ApiError::OtherModel(message));
    }
    fields.neutral("sd_vae", &[json!("Automatic"), json!("None")])?;
    fields.neutral("samples_format", &[json!("png")])?;
    fields.neutral("CLIP_stop_at_last_layers", &[json!(info.defaults.clip_skip)])?;
    fields.finish()?;
    Ok(Json(json!({})))
}

/// `POST /sdapi/v1/png-info`: the parameters in a picture's file.
///
/// # Errors
/// A field that cannot be accepted, a picture that cannot be read.
pub async fn png_info(state: Data<AppState>, request: HttpRequest, payload: Payload) -> Result<Json<Value>, ApiError> {
    let bytes = body::json_bytes(&request, payload, state.max_body).await?;
    let most = state.limits.max_image_bytes;
    let text = block(move || {
        let mut fields = Fields::of_body(&bytes)?;
        let image = fields.string(&["image"])?;
        fields.finish()?;
        let image = image.ok_or_else(|| FieldError::new("image", "missing; it is required"))?;
        let file = picture::bytes("image", &image, most)?;
        Ok::<_, ApiError>(image_io::read_parameters(&file))
    });
    let text = text.await??;
    let items = text
        .as_ref()
        .map_or_else(|| json!({}), |text| json!({ "parameters": text }));
    let parameters = text.as_deref().map(parsed).unwrap_or_default();
    Ok(Json(
        json!({ "info": text.unwrap_or_default(), "items": items, "parameters": parameters }),
    ))
}

/// The parts of A1111's parameters text: the prompts, and the `Name: value` pairs of its last line.
fn parsed(text: &str) -> Map<String, Value> {
    let mut parts = Map::new();
    let (prompts, last) = match text.rsplit_once('\n') {
        Some((prompts, last)) if last.starts_with("Steps: ") => (prompts, last),
        _ => (text, ""),
    };
    let (prompt, negative) = prompts.split_once("\nNegative prompt: ").unwrap_or((prompts, ""));
    parts.insert("Prompt".into(), prompt.into());
    parts.insert("Negative prompt".into(), negative.into());
    for pair in last.split(", ") {
        if let Some((name, value)) = pair.split_once(": ") {
            parts.insert(name.into(), value.into());
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parameters_text_is_taken_apart() {
        let parts = parsed("a cat\non a mat\nNegative prompt: dog\nSteps: 20, Sampler: Euler a, Seed: 7, Size: 64x64");
        assert_eq!(parts["Prompt"], "a cat\non a mat");
        assert_eq!(parts["Negative prompt"], "dog");
        assert_eq!((&parts["Steps"], &parts["Sampler"]), (&json!("20"), &json!("Euler a")));
        assert_eq!(parsed("only words")["Prompt"], "only words");
    }
}
