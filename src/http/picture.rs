//! Input pictures: base64 or a data URL, checked for size before they are decoded.

use std::io::Cursor;

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader};

use super::error::ApiError;
use crate::domain::draft::{FieldError, shortened};
use crate::domain::limits::Limits;
use crate::domain::picture::{InputImage, InputMask};

const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The input picture, without its transparency.
///
/// # Errors
/// 400 for no base64, 413 for too many bytes, 422 for no picture or too many pixels.
pub fn image(field: &str, text: &str, limits: &Limits) -> Result<InputImage, ApiError> {
    decode(field, text, limits).map(|picture| InputImage(picture.into_rgb8()))
}

/// The mask, as shades of grey.
///
/// # Errors
/// As for [`image`].
pub fn mask(field: &str, text: &str, limits: &Limits) -> Result<InputMask, ApiError> {
    decode(field, text, limits).map(|picture| InputMask(picture.into_luma8()))
}

fn decode(field: &str, text: &str, limits: &Limits) -> Result<DynamicImage, ApiError> {
    let bytes = bytes(field, text, limits.max_image_bytes)?;
    let unusable = |message: String| ApiError::Picture(FieldError::new(field, message));
    let reader = ImageReader::new(Cursor::new(&bytes))
        .with_guessed_format()
        .map_err(|error| unusable(error.to_string()))?;
    match reader.format() {
        Some(ImageFormat::Png | ImageFormat::Jpeg | ImageFormat::WebP) => {}
        _ => return Err(unusable("the bytes are no picture; allowed: PNG, JPEG, WebP".into())),
    }
    let broken = |error: image::ImageError| unusable(format!("the picture is broken: {error}"));
    let mut decoder = reader.into_decoder().map_err(broken)?;
    let (width, height) = decoder.dimensions();
    let pixels = u64::from(width) * u64::from(height);
    if pixels > limits.max_image_pixels {
        let most = limits.max_image_pixels;
        return Err(unusable(format!(
            "{width}x{height} are {pixels} pixels; allowed: up to {most}"
        )));
    }
    let orientation = decoder.orientation().map_err(broken)?;
    let mut picture = DynamicImage::from_decoder(decoder).map_err(broken)?;
    picture.apply_orientation(orientation);
    Ok(picture)
}

fn bytes(field: &str, text: &str, most: usize) -> Result<Vec<u8>, ApiError> {
    let encoded = match text.strip_prefix("data:") {
        None => text,
        Some(url) => match url.split_once(',') {
            Some((head, data)) if head.ends_with(";base64") => data,
            _ => return Err(not_base64(field, text)),
        },
    };
    // Four characters are three bytes.
    if encoded.len() / 4 * 3 > most.saturating_add(3) {
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
