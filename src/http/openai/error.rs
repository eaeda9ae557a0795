//! Errors as OpenAI's clients read them: `{"error":{"message","type","param","code"}}`.

use actix_web::http::StatusCode;
use actix_web::{HttpResponse, ResponseError};
use serde_json::{Value, json};

use super::super::error::ApiError;
use crate::domain::draft::{DraftError, FieldError};

/// An [`ApiError`] in another form.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct OpenAiError(#[from] ApiError);

impl OpenAiError {
    /// The body.
    pub fn json(error: &ApiError) -> Value {
        let mut body = error.json();
        let status = error.status_code();
        body["error"]["type"] = match status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        }
        .into();
        if body["error"]["param"].is_null() {
            body["error"]["param"] = json!(null);
        }
        body
    }
}

impl From<FieldError> for OpenAiError {
    fn from(error: FieldError) -> Self {
        Self(error.into())
    }
}

impl From<DraftError> for OpenAiError {
    fn from(error: DraftError) -> Self {
        Self(error.into())
    }
}

impl ResponseError for OpenAiError {
    fn status_code(&self) -> StatusCode {
        self.0.status_code()
    }

    fn error_response(&self) -> HttpResponse {
        let native = self.0.error_response();
        let mut answer = HttpResponse::build(native.status());
        for (name, value) in native.headers() {
            answer.insert_header((name.clone(), value.clone()));
        }
        answer.json(Self::json(&self.0))
    }
}
