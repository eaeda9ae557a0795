//! Every answer that is no success: one enum, one table to statuses and codes, one JSON form.

use std::time::Duration;

use actix::MailboxError;
use actix_web::error::BlockingError;
use actix_web::http::{StatusCode, header};
use actix_web::{HttpResponse, ResponseError};
use serde_json::{Value, json};

use crate::actors::messages::Refusal;
use crate::domain::draft::{DraftError, FieldError};
use crate::domain::job::{JobError, JobErrorKind};

/// What a caller is told went wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApiError {
    /// A field is missing, of the wrong type, out of range, or does not apply.
    #[error("{0}")]
    Field(FieldError),
    /// The body is no JSON object.
    #[error("the body is not a JSON object: {0}")]
    NotJson(String),
    /// No key, or a wrong one.
    #[error("send the API key as `Authorization: Bearer KEY`")]
    Unauthorized,
    /// There is no such thing.
    #[error("{0} does not exist")]
    NotFound(String),
    /// The path exists, the method does not.
    #[error("{0} is not allowed here")]
    MethodNotAllowed(String),
    /// Another model is loaded.
    #[error("{0}")]
    OtherModel(String),
    /// An idempotency key that came with another request.
    #[error("{0}")]
    KeyReused(String),
    /// The job was cancelled while its caller waited.
    #[error("the job was cancelled")]
    Cancelled,
    /// Too many bytes.
    #[error("{what} is too large; allowed: up to {most} bytes")]
    TooLarge {
        /// The body, or a field.
        what: String,
        /// The limit.
        most: usize,
    },
    /// Another type of body.
    #[error("content type `{0}` is not accepted; send application/json")]
    ContentType(String),
    /// Another type of body where a form is needed.
    #[error("content type `{0}` is not accepted; send multipart/form-data")]
    FormType(String),
    /// A form that breaks off or is no form.
    #[error("the form cannot be read: {0}")]
    BadForm(String),
    /// A picture that cannot be used.
    #[error("{0}")]
    Picture(FieldError),
    /// The queue is full.
    #[error("the queue is full: {capacity} jobs wait; try again in {} s", .retry_after.as_secs())]
    QueueFull {
        /// Jobs that may wait.
        capacity: usize,
        /// When to try again.
        retry_after: Duration,
    },
    /// There is no model, or the worker stops.
    #[error("{0}")]
    NotReady(String),
    /// The model failed.
    #[error("{0}")]
    Model(String),
    /// Something that should not happen.
    #[error("internal error: {0}")]
    Internal(String),
}

impl ApiError {
    /// The table: status and code of each error.
    fn row(&self) -> (StatusCode, &'static str) {
        match self {
            Self::Field(_) => (StatusCode::BAD_REQUEST, "invalid_value"),
            Self::NotJson(_) => (StatusCode::BAD_REQUEST, "invalid_json"),
            Self::Unauthorized => (StatusCode::UNAUTHORIZED, "unauthorized"),
            Self::NotFound(_) => (StatusCode::NOT_FOUND, "not_found"),
            Self::MethodNotAllowed(_) => (StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed"),
            Self::OtherModel(_) => (StatusCode::CONFLICT, "model_not_loaded"),
            Self::KeyReused(_) => (StatusCode::CONFLICT, "idempotency_key_reused"),
            Self::Cancelled => (StatusCode::CONFLICT, "cancelled"),
            Self::TooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "too_large"),
            Self::BadForm(_) => (StatusCode::BAD_REQUEST, "invalid_form"),
            Self::ContentType(_) | Self::FormType(_) => (StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type"),
            Self::Picture(_) => (StatusCode::UNPROCESSABLE_ENTITY, "unusable_image"),
            Self::QueueFull { .. } => (StatusCode::TOO_MANY_REQUESTS, "queue_full"),
            Self::NotReady(_) => (StatusCode::SERVICE_UNAVAILABLE, "not_ready"),
            Self::Model(_) => (StatusCode::INTERNAL_SERVER_ERROR, "model_failed"),
            Self::Internal(_) => (StatusCode::INTERNAL_SERVER_ERROR, "internal"),
        }
    }

    /// The code on the wire.
    pub fn code(&self) -> &'static str {
        self.row().1
    }

    fn param(&self) -> Option<&str> {
        match self {
            Self::Field(error) | Self::Picture(error) => Some(&error.field),
            Self::OtherModel(_) => Some("model"),
            Self::TooLarge { what, .. } if what != BODY => Some(what),
            _ => None,
        }
    }

    /// `{"error":{"code","message","param"?}}`
    pub fn json(&self) -> Value {
        let mut error = json!({"code": self.code(), "message": self.to_string()});
        if let Some(param) = self.param() {
            error["param"] = param.into();
        }
        json!({ "error": error })
    }
}

/// What [`ApiError::TooLarge`] calls the whole body.
pub const BODY: &str = "the body";

impl ResponseError for ApiError {
    fn status_code(&self) -> StatusCode {
        self.row().0
    }

    fn error_response(&self) -> HttpResponse {
        let mut answer = HttpResponse::build(self.status_code());
        if let Self::QueueFull { retry_after, .. } = self {
            answer.insert_header((header::RETRY_AFTER, retry_after.as_secs()));
        }
        if *self == Self::Unauthorized {
            answer.insert_header((header::WWW_AUTHENTICATE, "Bearer"));
            // Browsers ask for a password then; the key counts as one.
            answer.append_header((header::WWW_AUTHENTICATE, "Basic realm=\"sd-worker\""));
        }
        answer.json(self.json())
    }
}

impl From<FieldError> for ApiError {
    fn from(error: FieldError) -> Self {
        Self::Field(error)
    }
}

impl From<DraftError> for ApiError {
    fn from(error: DraftError) -> Self {
        match error {
            DraftError::Field(error) => Self::Field(error),
            DraftError::OtherModel { .. } => Self::OtherModel(error.to_string()),
        }
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::QueueFull { capacity, retry_after } => Self::QueueFull { capacity, retry_after },
            Refusal::Draining | Refusal::NoModel => Self::NotReady(refusal.to_string()),
            Refusal::KeyReused => Self::KeyReused(refusal.to_string()),
        }
    }
}

impl From<&JobError> for ApiError {
    fn from(error: &JobError) -> Self {
        let JobError { kind, message } = error;
        match kind {
            JobErrorKind::BadRequest { field } => {
                let own = message.strip_prefix(&format!("{field}: ")).unwrap_or(message);
                Self::Field(FieldError::new(field, own))
            }
            JobErrorKind::Model => Self::Model(message.clone()),
            JobErrorKind::Unavailable => Self::NotReady(message.clone()),
        }
    }
}

impl From<MailboxError> for ApiError {
    fn from(error: MailboxError) -> Self {
        Self::Internal(format!("the jobs actor does not answer: {error}"))
    }
}

impl From<BlockingError> for ApiError {
    fn from(error: BlockingError) -> Self {
        Self::Internal(error.to_string())
    }
}
