//! `x-request-id` on every answer: the caller's, or a new one. Also writes the access log.

use std::time::Instant;

use actix_web::body::{BoxBody, MessageBody};
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::header::{HeaderName, HeaderValue};
use actix_web::middleware::Next;
use uuid::Uuid;

const HEADER: HeaderName = HeaderName::from_static("x-request-id");
/// Longer ones are replaced.
const LONGEST: usize = 128;

/// The middleware.
///
/// # Errors
/// None: handlers and the key's middleware answer with a response also where they refuse.
pub async fn attach(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<BoxBody>, actix_web::Error> {
    let begun = Instant::now();
    let id = given(&request).unwrap_or_else(fresh);
    let mut response = next.call(request).await?.map_into_boxed_body();
    tracing::debug!(
        method = %response.request().method(),
        path = response.request().path(),
        status = response.status().as_u16(),
        ms = begun.elapsed().as_millis() as u64,
        request_id = id.to_str().unwrap_or_default(),
        "answered"
    );
    response.headers_mut().insert(HEADER, id);
    Ok(response)
}

fn given(request: &ServiceRequest) -> Option<HeaderValue> {
    let value = request.headers().get(HEADER)?;
    let text = value.to_str().ok()?;
    (!text.is_empty() && text.len() <= LONGEST).then(|| value.clone())
}

fn fresh() -> HeaderValue {
    HeaderValue::from_str(&Uuid::new_v4().to_string()).unwrap_or_else(|_| HeaderValue::from_static("none"))
}
