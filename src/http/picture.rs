//! Input pictures as they are sent: base64 or a data URL. What the bytes hold is [`image_io`]'s to judge.

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use super::error::ApiError;
use crate::domain::draft::{FieldError, shortened};
use crate::domain::limits::Limits;
use crate::domain::picture::{InputImage, InputMask};
use crate::pipeline::image_io::{self, ImageError};

const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The input picture.
///
/// # Errors
/// 400 for no base64, 413 for too many bytes, 422 for no picture or too many pixels.
pub fn image(field: &str, text: &str, limits: &Limits) -> Result<InputImage, ApiError> {
    let bytes = bytes(field, text, limits.max_image_bytes)?;
    image_io::decode_image(&bytes, limits).map_err(|error| refusal(field, &error))
}

/// The mask, as shades of grey.
///
/// # Errors
/// As for [`image`].
pub fn mask(field: &str, text: &str, limits: &Limits) -> Result<InputMask, ApiError> {
    let bytes = bytes(field, text, limits.max_image_bytes)?;
    image_io::decode_mask(&bytes, limits).map_err(|error| refusal(field, &error))
}

/// What a picture that cannot be used means to its sender.
pub fn refusal(field: &str, error: &ImageError) -> ApiError {
    match error {
        ImageError::TooManyBytes { max, .. } => ApiError::TooLarge {
            what: field.to_owned(),
            most: *max,
        },
        ImageError::TooManyPixels { .. }
        | ImageError::Unsupported { .. }
        | ImageError::Broken(_)
        | ImageError::Empty => ApiError::Picture(FieldError::new(field, error.to_string())),
    }
}

/// The bytes of a file in base64 or a data URL; much more than `most` are not even decoded.
///
/// # Errors
/// 400 for no base64, 413 for too many bytes.
pub fn bytes(field: &str, text: &str, most: usize) -> Result<Vec<u8>, ApiError> {
    let encoded = match text.strip_prefix("data:") {
        None => text,
        Some(url) => match url.split_once(',') {
            Some((head, data)) if head.ends_with(";base64") => data,
            _ => return Err(not_base64(field, text)),
        },
    };
    // Four characters are three bytes; the exact count is checked when they are decoded.
    if encoded.len() / 4 * 3 > most.saturating_mul(2) {
        return Err(ApiError::TooLarge {
            what: field.to_owned(),
            most,
        });
    }
    let compact: Vec<u8> = encoded.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    BASE64.decode(compact).map_err(|_| not_base64(field, text))
}

fn not_base64(field: &str, text: &str) -> ApiError {
    let message = format!(
        "`{}` is not base64; allowed: base64 or a data URL (data:image/png;base64,...)",
        shortened(text)
    );
    ApiError::Field(FieldError::new(field, message))
}
