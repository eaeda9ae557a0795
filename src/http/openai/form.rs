//! The multipart body of an edit: files and text fields.

use actix_multipart::{Field, Multipart, MultipartError};
use actix_web::web::Payload;
use actix_web::{HttpMessage, HttpRequest};
use futures_util::TryStreamExt;
use serde_json::{Map, Value};

use super::super::error::{ApiError, BODY};
use crate::domain::draft::FieldError;

/// What was sent.
#[derive(Debug, Default)]
pub struct EditForm {
    /// File of the picture.
    pub image: Option<Vec<u8>>,
    /// File of the mask.
    pub mask: Option<Vec<u8>>,
    /// The text fields, typed as they would be in JSON.
    pub fields: Map<String, Value>,
}

/// Text fields that are numbers or booleans in JSON.
const TYPED: [&str; 8] = [
    "n",
    "seed",
    "steps",
    "guidance_scale",
    "strength",
    "stream",
    "partial_images",
    "output_compression",
];

/// Reads a form of at most so many bytes.
///
/// # Errors
/// 415 for another type of body, 413 for too many bytes, 400 for a broken form or a doubled field.
pub async fn read(request: &HttpRequest, payload: Payload, most: usize) -> Result<EditForm, ApiError> {
    let mut parts = Multipart::new(request.headers(), payload);
    let mut form = EditForm::default();
    let mut left = most;
    while let Some(mut part) = parts.try_next().await.map_err(|error| broken(request, &error))? {
        let name = part.name().unwrap_or_default().to_owned();
        let bytes = part_bytes(&mut part, &mut left, most, request).await?;
        let doubled = match name.as_str() {
            "image" | "image[]" => form.image.replace(bytes).is_some(),
            "mask" => form.mask.replace(bytes).is_some(),
            _ => {
                let text = String::from_utf8(bytes).map_err(|_| FieldError::new(&name, "it is no UTF-8 text"))?;
                form.fields.insert(name.clone(), typed(&name, text)).is_some()
            }
        };
        if doubled {
            return Err(FieldError::new(name, "it is there twice; one is allowed").into());
        }
    }
    Ok(form)
}

async fn part_bytes(
    part: &mut Field,
    left: &mut usize,
    most: usize,
    request: &HttpRequest,
) -> Result<Vec<u8>, ApiError> {
    let mut bytes = Vec::new();
    while let Some(chunk) = part.try_next().await.map_err(|error| broken(request, &error))? {
        *left = left.checked_sub(chunk.len()).ok_or_else(|| ApiError::TooLarge {
            what: BODY.to_owned(),
            most,
        })?;
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

fn typed(name: &str, text: String) -> Value {
    if TYPED.contains(&name)
        && let Ok(value @ (Value::Number(_) | Value::Bool(_))) = serde_json::from_str(text.trim())
    {
        return value;
    }
    Value::String(text)
}

fn broken(request: &HttpRequest, error: &MultipartError) -> ApiError {
    match error {
        MultipartError::ContentTypeMissing
        | MultipartError::ContentTypeParse
        | MultipartError::ContentTypeIncompatible
        | MultipartError::BoundaryMissing => ApiError::FormType(request.content_type().to_owned()),
        other => ApiError::BadForm(other.to_string()),
    }
}
