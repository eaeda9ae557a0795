//! What the tests share: a scripted pipeline, a running worker, a reader of events, a hive.

mod events;
mod fake;
mod hive;
mod worker;

pub use events::{Event, names};
pub use fake::info;
pub use hive::{FakeHive, HANG_UP};
pub use worker::{Answer, Plan, Worker, wait_until};

use base64::Engine;

/// A grey PNG in base64.
pub fn png(width: u32, height: u32) -> String {
    let mut bytes = std::io::Cursor::new(Vec::new());
    let pixels = image::RgbImage::from_pixel(width, height, image::Rgb([128, 128, 128]));
    pixels.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    base64::engine::general_purpose::STANDARD.encode(bytes.into_inner())
}
