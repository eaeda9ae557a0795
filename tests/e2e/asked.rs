//! Asking a worker for pictures, and looking at them.

use std::io::Cursor;
use std::ops::Range;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use image::{DynamicImage, GrayImage, ImageFormat, Luma, Rgb, RgbImage};
use serde_json::{Value, json};

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

/// Paints a red heart, asks for a blue one where the square mask is, checks that nothing else changed, and gives the mean colour of
/// the new heart's middle.
pub fn inpainted_heart(worker: &Worker, masked: Range<u32>, steps: u32) -> [f32; 3] {
    let body = json!({"prompt": "a red heart on a yellow background", "seed": 2, "steps": steps});
    let heart = worker.paint("/txt2img", &body);
    let inside = |x: u32, y: u32| masked.contains(&x) && masked.contains(&y);
    let mask = GrayImage::from_fn(128, 128, |x, y| Luma([if inside(x, y) { 255 } else { 0 }]));
    let body = json!({
        "prompt": "a blue heart on a yellow background", "image": base64_of(&heart), "mask": base64_of(&mask),
        "strength": 1.0, "seed": 1, "steps": steps,
    });
    let painted = worker.paint("/inpaint", &body);
    for (x, y, pixel) in painted.enumerate_pixels() {
        assert!(
            inside(x, y) || pixel == heart.get_pixel(x, y),
            "{x}, {y} is outside the mask"
        );
    }
    only(&painted, 44, 44, 40)
}
