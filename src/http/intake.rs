//! From what a caller sent to a valid request, away from the HTTP threads: large pictures take their time.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use actix_web::web::{Bytes, block};

use super::dto::{Form, GenerateBody, SentPictures};
use super::error::ApiError;
use super::fields::Fields;
use super::picture;
use super::state::AppState;
use crate::app::LoraCatalog;
use crate::domain::draft::{Draft, FieldError, Rules};
use crate::domain::limits::Limits;
use crate::domain::model::ModelInfo;
use crate::domain::picture::OutputFormat;
use crate::domain::request::{GenerationRequest, OperationKind, StepCache};

/// A valid request, and a hash of the body it came in.
#[derive(Debug)]
pub struct Intake {
    /// The request.
    pub request: GenerationRequest,
    /// Equal for equal bodies.
    pub fingerprint: u64,
}

/// What drafts are checked against; can travel to another thread.
#[derive(Clone)]
pub struct Checker {
    /// The loaded model.
    pub model: Arc<ModelInfo>,
    /// Bounds of a request.
    pub limits: Limits,
    step_cache: StepCache,
    loras: LoraCatalog,
}

impl Checker {
    /// For the loaded model.
    ///
    /// # Errors
    /// 503 while there is none.
    pub fn new(state: &AppState) -> Result<Self, ApiError> {
        Ok(Self {
            model: state.model_info()?,
            limits: state.limits,
            step_cache: state.step_cache,
            loras: state.loras.clone(),
        })
    }

    /// Makes a request of a draft.
    ///
    /// # Errors
    /// The first field that cannot be accepted.
    pub fn build(&self, kind: OperationKind, draft: Draft) -> Result<GenerationRequest, ApiError> {
        let loras: Vec<String> = if draft.loras.is_empty() {
            Vec::new()
        } else {
            (self.loras)().into_iter().map(|lora| lora.name).collect()
        };
        let rules = Rules {
            model: &self.model,
            limits: &self.limits,
            step_cache: self.step_cache,
            loras: &loras,
        };
        Ok(draft.build(kind, &rules)?)
    }
}

/// Reads a request from a body. `wanted` is the format that the `Accept` header asks for.
///
/// # Errors
/// Whatever is wrong with the body, a field or a picture.
pub async fn read(
    checker: Checker,
    bytes: Bytes,
    form: Form,
    wanted: Option<OutputFormat>,
) -> Result<Intake, ApiError> {
    block(move || {
        let (kind, body) = GenerateBody::read(Fields::of_body(&bytes)?, form)?;
        let (mut draft, pictures) = body.into_draft();
        prefer_format(&mut draft, wanted)?;
        decode(&mut draft, pictures, &checker.limits)?;
        let mut hasher = DefaultHasher::new();
        bytes.hash(&mut hasher);
        Ok(Intake {
            request: checker.build(kind, draft)?,
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
