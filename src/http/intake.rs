//! From the bytes of a body to a valid request, away from the HTTP threads: large pictures take their time.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use actix_web::web::{Bytes, block};

use super::dto::{Form, GenerateBody, SentPictures};
use super::error::ApiError;
use super::fields::Fields;
use super::picture;
use super::state::AppState;
use crate::domain::draft::{Draft, FieldError, Rules};
use crate::domain::limits::Limits;
use crate::domain::model::ModelInfo;
use crate::domain::picture::OutputFormat;
use crate::domain::request::GenerationRequest;

/// A valid request, and a hash of the body it came in.
#[derive(Debug)]
pub struct Intake {
    /// The request.
    pub request: GenerationRequest,
    /// Equal for equal bodies.
    pub fingerprint: u64,
}

/// Reads a request from a body. `wanted` is the format that the `Accept` header asks for.
///
/// # Errors
/// Whatever is wrong with the body, a field or a picture.
pub async fn read(
    state: &AppState,
    model: Arc<ModelInfo>,
    bytes: Bytes,
    form: Form,
    wanted: Option<OutputFormat>,
) -> Result<Intake, ApiError> {
    let (limits, step_cache, catalog) = (state.limits, state.step_cache, state.loras.clone());
    block(move || {
        let (kind, body) = GenerateBody::read(Fields::of_body(&bytes)?, form)?;
        let (mut draft, pictures) = body.into_draft();
        prefer_format(&mut draft, wanted)?;
        decode(&mut draft, pictures, &limits)?;
        let loras: Vec<String> = if draft.loras.is_empty() {
            Vec::new()
        } else {
            catalog().into_iter().map(|lora| lora.name).collect()
        };
        let rules = Rules {
            model: &model,
            limits: &limits,
            step_cache,
            loras: &loras,
        };
        let mut hasher = DefaultHasher::new();
        bytes.hash(&mut hasher);
        Ok(Intake {
            request: draft.build(kind, &rules)?,
            fingerprint: hasher.finish(),
        })
    })
    .await?
}

/// A picture's type in `Accept` stands for `output_format`; the two must not contradict each other.
fn prefer_format(draft: &mut Draft, wanted: Option<OutputFormat>) -> Result<(), FieldError> {
    let Some(wanted) = wanted else { return Ok(()) };
    match draft.output_format.as_deref() {
        Some(given) if given.eq_ignore_ascii_case(wanted.name()) => Ok(()),
        Some(given) => Err(FieldError::new(
            "output_format",
            format!(
                "`{given}` contradicts the Accept header, {}; give one of them",
                wanted.media_type()
            ),
        )),
        None => {
            draft.output_format = Some(wanted.name().to_owned());
            Ok(())
        }
    }
}

fn decode(draft: &mut Draft, pictures: SentPictures, limits: &Limits) -> Result<(), ApiError> {
    let SentPictures { image, mask } = pictures;
    draft.image = image.map(|text| picture::image("image", &text, limits)).transpose()?;
    draft.mask = mask.map(|text| picture::mask("mask", &text, limits)).transpose()?;
    Ok(())
}
