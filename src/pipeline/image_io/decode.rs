//! Files to pixels. Limits are checked before anything is decoded; the EXIF orientation is applied.

use std::io::Cursor;

use image::codecs::{jpeg::JpegDecoder, png::PngDecoder, webp::WebPDecoder};
use image::{DynamicImage, GrayImage, ImageDecoder, ImageFormat, Luma, Rgb, RgbImage};

use super::ImageError;
use crate::domain::limits::Limits;
use crate::domain::picture::{InputImage, InputMask};

/// Decodes a PNG, JPEG or WebP file (of an animation the first picture). Transparent parts are laid over white, as A1111
/// does.
///
/// # Errors
/// When the file is too large, of another format or damaged.
pub fn decode_image(bytes: &[u8], limits: &Limits) -> Result<InputImage, ImageError> {
    let image = open(bytes, limits)?;
    if !image.color().has_alpha() {
        return Ok(InputImage(image.into_rgb8()));
    }
    let rgba = image.into_rgba8();
    let over_white = |value: u8, alpha: u8| blend(value, 255, alpha);
    let (width, height) = rgba.dimensions();
    Ok(InputImage(RgbImage::from_fn(width, height, |x, y| {
        let [r, g, b, a] = rgba.get_pixel(x, y).0;
        Rgb([over_white(r, a), over_white(g, a), over_white(b, a)])
    })))
}

/// Decodes a mask: white is painted anew. Colours become grey as in Pillow's `convert("L")`; transparent parts count as
/// black, so they are kept.
///
/// # Errors
/// As [`decode_image`].
pub fn decode_mask(bytes: &[u8], limits: &Limits) -> Result<InputMask, ImageError> {
    let rgba = open(bytes, limits)?.into_rgba8();
    let (width, height) = rgba.dimensions();
    Ok(InputMask(GrayImage::from_fn(width, height, |x, y| {
        let [r, g, b, a] = rgba.get_pixel(x, y).0;
        Luma([blend(grey(r, g, b), 0, a)])
    })))
}

/// Reads the mask that a picture's transparency makes: transparent is painted anew, opaque is kept (OpenAI's masks).
/// `None` when the picture has no transparency channel.
///
/// # Errors
/// As [`decode_image`].
pub fn decode_alpha_mask(bytes: &[u8], limits: &Limits) -> Result<Option<InputMask>, ImageError> {
    let image = open(bytes, limits)?;
    if !image.color().has_alpha() {
        return Ok(None);
    }
    let rgba = image.into_rgba8();
    let (width, height) = rgba.dimensions();
    let mask = GrayImage::from_fn(width, height, |x, y| Luma([255 - rgba.get_pixel(x, y).0[3]]));
    Ok(Some(InputMask(mask)))
}

/// Pillow's luma (ITU-R 601-2), rounded.
fn grey(r: u8, g: u8, b: u8) -> u8 {
    ((u32::from(r) * 19_595 + u32::from(g) * 38_470 + u32::from(b) * 7_471 + 0x8000) >> 16) as u8
}

/// `value` over `background` with opacity `alpha`, rounded.
fn blend(value: u8, background: u8, alpha: u8) -> u8 {
    let (v, b, a) = (u32::from(value), u32::from(background), u32::from(alpha));
    ((v * a + b * (255 - a) + 127) / 255) as u8
}

fn open(bytes: &[u8], limits: &Limits) -> Result<DynamicImage, ImageError> {
    if bytes.len() > limits.max_image_bytes {
        return Err(ImageError::TooManyBytes {
            bytes: bytes.len(),
            max: limits.max_image_bytes,
        });
    }
    let cursor = Cursor::new(bytes);
    match image::guess_format(bytes).ok() {
        Some(ImageFormat::Png) => read(PngDecoder::new(cursor), limits),
        Some(ImageFormat::Jpeg) => read(JpegDecoder::new(cursor), limits),
        Some(ImageFormat::WebP) => read(WebPDecoder::new(cursor), limits),
        other => Err(ImageError::Unsupported {
            found: other.map_or("no picture", |f| f.to_mime_type()),
        }),
    }
}

fn read<D: ImageDecoder>(decoder: image::ImageResult<D>, limits: &Limits) -> Result<DynamicImage, ImageError> {
    let mut decoder = decoder.map_err(ImageError::Broken)?;
    let (width, height) = decoder.dimensions();
    if width == 0 || height == 0 {
        return Err(ImageError::Empty);
    }
    if u64::from(width) * u64::from(height) > limits.max_image_pixels {
        return Err(ImageError::TooManyPixels {
            width,
            height,
            max: limits.max_image_pixels,
        });
    }
    // A damaged orientation tag is no reason to refuse the picture.
    let orientation = decoder
        .orientation()
        .unwrap_or(image::metadata::Orientation::NoTransforms);
    let mut image = DynamicImage::from_decoder(decoder).map_err(ImageError::Broken)?;
    image.apply_orientation(orientation);
    Ok(image)
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{Rgba, RgbaImage};

    fn png(image: &DynamicImage) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        image.write_to(&mut bytes, ImageFormat::Png).unwrap();
        bytes.into_inner()
    }

    #[test]
    fn limits_are_named_and_checked_before_decoding() {
        let bytes = png(&DynamicImage::new_rgb8(20, 10));
        let limits = |max_image_bytes, max_image_pixels| Limits {
            max_image_bytes,
            max_image_pixels,
            ..Limits::default()
        };
        let error = decode_image(&bytes, &limits(1000, 199)).unwrap_err().to_string();
        assert_eq!(error, "the picture has 20x10 pixels; at most 199 are allowed in all");
        let error = decode_image(&bytes, &limits(10, 1000)).unwrap_err().to_string();
        assert!(error.ends_with("at most 10 are allowed"), "{error}");
        assert!(decode_image(&bytes, &limits(1000, 200)).is_ok());
        // A header that promises a billion pixels and then ends.
        let mut huge = bytes[..33].to_vec();
        huge[16..20].copy_from_slice(&60_000u32.to_be_bytes());
        huge[20..24].copy_from_slice(&60_000u32.to_be_bytes());
        assert!(decode_image(&huge, &Limits::default()).is_err());
    }

    #[test]
    fn other_formats_and_damage_are_told_apart() {
        let limits = Limits::default();
        let error = decode_image(b"GIF89a\x01\x00\x01\x00", &limits)
            .unwrap_err()
            .to_string();
        assert_eq!(error, "the file is image/gif; send a PNG, JPEG or WebP picture");
        assert!(matches!(
            decode_image(b"hello", &limits),
            Err(ImageError::Unsupported { .. })
        ));
        assert!(matches!(
            decode_image(b"", &limits),
            Err(ImageError::Unsupported { .. })
        ));
        let bytes = png(&DynamicImage::new_rgb8(50, 50));
        for cut in [9, 20, 40, bytes.len() - 20] {
            assert!(decode_image(&bytes[..cut], &limits).is_err(), "{cut}");
        }
    }

    #[test]
    fn transparency_is_white_in_pictures_and_kept_in_masks() {
        let image = RgbaImage::from_fn(3, 1, |x, _| {
            [
                Rgba([10, 20, 30, 255]),
                Rgba([10, 20, 30, 0]),
                Rgba([255, 255, 255, 255]),
            ][x as usize]
        });
        let bytes = png(&DynamicImage::ImageRgba8(image));
        let limits = Limits::default();
        let decoded = decode_image(&bytes, &limits).unwrap().0;
        assert_eq!(decoded.as_raw(), &[10, 20, 30, 255, 255, 255, 255, 255, 255]);
        assert_eq!(decode_mask(&bytes, &limits).unwrap().0.as_raw(), &[18, 0, 255]);
        let alpha = decode_alpha_mask(&bytes, &limits).unwrap().unwrap();
        assert_eq!(alpha.0.as_raw(), &[0, 255, 0]);
        let opaque = png(&DynamicImage::new_rgb8(2, 2));
        assert!(decode_alpha_mask(&opaque, &limits).unwrap().is_none());
    }
}
