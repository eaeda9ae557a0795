//! Pixels to files, with the text that tells how the picture was made.

use std::io::Cursor;

use image::codecs::{jpeg::JpegDecoder, jpeg::JpegEncoder, webp::WebPDecoder, webp::WebPEncoder};
use image::{ExtendedColorType, ImageDecoder, ImageEncoder, ImageError, ImageFormat, RgbImage};

use super::exif;
use crate::domain::picture::OutputFormat;

/// Quality of JPEG files, of 100.
pub const DEFAULT_JPEG_QUALITY: u8 = 95;

/// The keyword that A1111 and ComfyUI users' tools look for.
const KEYWORD: &str = "parameters";

/// Encodes a picture; `quality` (1 to 100) is JPEG's. `parameters` goes into PNG's text and into JPEG's and WebP's EXIF
/// comment, which are the places where A1111 looks.
///
/// # Errors
/// When the encoder refuses the picture, such as one that is too large for the format.
pub fn encode(
    image: &RgbImage,
    format: OutputFormat,
    quality: u8,
    parameters: Option<&str>,
) -> Result<Vec<u8>, ImageError> {
    let mut bytes = Vec::new();
    match format {
        OutputFormat::Png => png(&mut bytes, image, parameters).map_err(png_error)?,
        OutputFormat::Jpeg => write(
            JpegEncoder::new_with_quality(&mut bytes, quality.clamp(1, 100)),
            image,
            parameters,
        )?,
        OutputFormat::Webp => write(WebPEncoder::new_lossless(&mut bytes), image, parameters)?,
    }
    Ok(bytes)
}

fn write<E: ImageEncoder>(mut encoder: E, image: &RgbImage, parameters: Option<&str>) -> Result<(), ImageError> {
    if let Some(text) = parameters {
        let block = exif::with_comment(text);
        // One JPEG segment holds 64 KiB; a longer text is left out rather than the picture.
        if block.len() < 65_000 {
            encoder.set_exif_metadata(block).map_err(ImageError::Unsupported)?;
        }
    }
    encoder.write_image(image.as_raw(), image.width(), image.height(), ExtendedColorType::Rgb8)
}

fn png(bytes: &mut Vec<u8>, image: &RgbImage, parameters: Option<&str>) -> Result<(), png::EncodingError> {
    let mut encoder = png::Encoder::new(bytes, image.width(), image.height());
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    if let Some(text) = parameters {
        // As Pillow does: Latin-1 where it can, UTF-8 otherwise.
        if text.chars().all(|c| u32::from(c) < 256) {
            encoder.add_text_chunk(KEYWORD.to_owned(), text.to_owned())?;
        } else {
            encoder.add_itxt_chunk(KEYWORD.to_owned(), text.to_owned())?;
        }
    }
    let mut writer = encoder.write_header()?;
    writer.write_image_data(image.as_raw())?;
    writer.finish()
}

fn png_error(error: png::EncodingError) -> ImageError {
    match error {
        png::EncodingError::IoError(error) => ImageError::IoError(error),
        other => ImageError::Encoding(image::error::EncodingError::new(ImageFormat::Png.into(), other)),
    }
}

/// The parameters text in a picture's file, where there is one.
#[must_use]
pub fn read_parameters(bytes: &[u8]) -> Option<String> {
    let cursor = Cursor::new(bytes);
    match image::guess_format(bytes).ok()? {
        ImageFormat::Png => png_text(bytes),
        ImageFormat::Jpeg => exif::comment(&JpegDecoder::new(cursor).ok()?.exif_metadata().ok()??),
        ImageFormat::WebP => exif::comment(&WebPDecoder::new(cursor).ok()?.exif_metadata().ok()??),
        _ => None,
    }
}

fn png_text(bytes: &[u8]) -> Option<String> {
    let reader = png::Decoder::new(Cursor::new(bytes)).read_info().ok()?;
    let info = reader.info();
    let plain = info.uncompressed_latin1_text.iter().find(|t| t.keyword == KEYWORD);
    let packed = info.compressed_latin1_text.iter().find(|t| t.keyword == KEYWORD);
    let utf8 = info.utf8_text.iter().find(|t| t.keyword == KEYWORD);
    plain
        .map(|t| t.text.clone())
        .or_else(|| utf8.and_then(|t| t.get_text().ok()))
        .or_else(|| packed.and_then(|t| t.get_text().ok()))
}

#[cfg(test)]
mod tests {
    use super::super::decode_image;
    use super::*;
    use crate::domain::limits::Limits;
    use image::Rgb;

    fn picture() -> RgbImage {
        RgbImage::from_fn(40, 24, |x, y| Rgb([(x * 6) as u8, (y * 10) as u8, 128]))
    }

    #[test]
    fn lossless_formats_give_the_picture_back() {
        for format in [OutputFormat::Png, OutputFormat::Webp] {
            let bytes = encode(&picture(), format, 90, None).unwrap();
            assert_eq!(decode_image(&bytes, &Limits::default()).unwrap().0, picture());
            assert_eq!(read_parameters(&bytes), None);
        }
    }

    #[test]
    fn parameters_are_found_again_in_every_format() {
        for text in ["a cat, Müller\nSteps: 4, Seed: 1", "猫 😀\nSteps: 4"] {
            for format in OutputFormat::ALL {
                let bytes = encode(&picture(), format, 90, Some(text)).unwrap();
                assert_eq!(read_parameters(&bytes).as_deref(), Some(text), "{format:?}");
                assert!(decode_image(&bytes, &Limits::default()).is_ok());
            }
        }
    }

    #[test]
    fn jpeg_quality_changes_the_size() {
        let size = |quality| encode(&picture(), OutputFormat::Jpeg, quality, None).unwrap().len();
        assert!(size(30) < size(95));
    }
}
