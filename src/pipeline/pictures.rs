//! Interim.
use image::{GrayImage, RgbImage, imageops};

use super::source::is_painted;
use crate::domain::picture::{EncodedImage, Size};

pub fn resize_picture(picture: &RgbImage, size: Size) -> RgbImage {
    if (picture.width(), picture.height()) == (size.width, size.height) {
        return picture.clone();
    }
    imageops::resize(picture, size.width, size.height, imageops::FilterType::Lanczos3)
}

pub fn resize_mask(picture: &GrayImage, size: Size) -> GrayImage {
    if (picture.width(), picture.height()) == (size.width, size.height) {
        return picture.clone();
    }
    imageops::resize(picture, size.width, size.height, imageops::FilterType::Lanczos3)
}

pub fn to_picture(values: &[f32], width: u32, height: u32) -> RgbImage {
    let bytes = values
        .iter()
        .map(|v| ((v / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0).round_ties_even() as u8)
        .collect();
    RgbImage::from_raw(width, height, bytes).unwrap_or_default()
}

pub struct Paste {
    mask: GrayImage,
}

impl Paste {
    pub fn new(mask: &GrayImage, _feather: u32) -> Self {
        Self { mask: mask.clone() }
    }

    pub fn onto(&self, picture: &RgbImage, painted: &RgbImage) -> RgbImage {
        RgbImage::from_fn(picture.width(), picture.height(), |x, y| {
            let painted_here = is_painted(self.mask.get_pixel(x, y).0[0]);
            *(if painted_here { painted } else { picture }).get_pixel(x, y)
        })
    }
}

pub fn encode(
    picture: &RgbImage,
    request: &crate::domain::request::GenerationRequest,
    _info: &crate::domain::model::ModelInfo,
    index: u64,
) -> Result<EncodedImage, image::ImageError> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    picture.write_to(&mut bytes, image::ImageFormat::Png)?;
    Ok(EncodedImage {
        bytes: bytes.into_inner(),
        format: request.output_format,
        size: request.size,
        seed: request.seed.wrapping_add(index),
    })
}
