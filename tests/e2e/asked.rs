//! Asking a worker for pictures, and looking at them.

use std::io::Cursor;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use image::{DynamicImage, ImageFormat, Rgb, RgbImage};
use serde_json::Value;

use crate::worker::Worker;

/// Paints and gives the pictures themselves.
pub trait Asked {
    /// The one picture of a job.
    fn paint(&self, path: &str, body: &Value) -> RgbImage;
    /// All pictures of a job.
    fn paint_all(&self, path: &str, body: &Value) -> Vec<RgbImage>;
}

impl Asked for Worker {
    fn paint(&self, path: &str, body: &Value) -> RgbImage {
        let (_, bytes) = self.post(path, "image/png", body);
        image::load_from_memory(&bytes).unwrap().into_rgb8()
    }

    fn paint_all(&self, path: &str, body: &Value) -> Vec<RgbImage> {
        let (_, bytes) = self.post(path, "application/json", body);
        let answer: Value = serde_json::from_slice(&bytes).unwrap();
        let images = answer["images"].as_array().unwrap().iter();
        let images = images.map(|image| STANDARD.decode(image["b64_json"].as_str().unwrap()).unwrap());
        images
            .map(|bytes| image::load_from_memory(&bytes).unwrap().into_rgb8())
            .collect()
    }
}

/// A picture or mask as a request carries it: PNG in base64.
pub fn base64_of(picture: &(impl Clone + Into<DynamicImage>)) -> String {
    let mut png = Cursor::new(Vec::new());
    let picture: DynamicImage = picture.clone().into();
    picture.write_to(&mut png, ImageFormat::Png).unwrap();
    STANDARD.encode(png.into_inner())
}

/// The mean over all pixels.
pub fn mean(picture: &RgbImage, value: impl Fn(&Rgb<u8>) -> f32) -> f32 {
    picture.pixels().map(value).sum::<f32>() / picture.pixels().len() as f32
}

/// The mean colour of a square, 0 to 255.
pub fn only(picture: &RgbImage, left: u32, top: u32, side: u32) -> [f32; 3] {
    let part = image::imageops::crop_imm(picture, left, top, side, side).to_image();
    [0, 1, 2].map(|channel| mean(&part, |pixel| f32::from(pixel[channel])))
}
