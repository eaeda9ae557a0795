//! Reading a body: its type, then its bytes up to the limit.

use actix_web::http::header;
use actix_web::web::{Bytes, Payload};
use actix_web::{HttpMessage, HttpRequest};

use super::error::{ApiError, BODY};

/// The bytes of a JSON body.
///
/// # Errors
/// 415 for another type, 413 for too many bytes, 400 for a body that breaks off.
pub async fn json_bytes(request: &HttpRequest, payload: Payload, most: usize) -> Result<Bytes, ApiError> {
    if !request.content_type().eq_ignore_ascii_case("application/json") {
        return Err(ApiError::ContentType(request.content_type().to_owned()));
    }
    let too_large = || ApiError::TooLarge {
        what: BODY.to_owned(),
        most,
    };
    let announced = request.headers().get(header::CONTENT_LENGTH);
    let announced = announced.and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    if announced.is_some_and(|length| length > most) {
        return Err(too_large());
    }
    match payload.to_bytes_limited(most).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(error)) => Err(ApiError::NotJson(error.to_string())),
        Err(_) => Err(too_large()),
    }
}
