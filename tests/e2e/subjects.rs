//! Which emoji a picture shows: the nearest of all rendered subjects over small shifts and scales, and the background's name.
//!
//! The same measure as `models/emoji/train/evaluate.py`; pictures are compared at 32x32 with colours in 0..1.

use std::collections::BTreeMap;
use std::path::PathBuf;

use image::imageops::{self, FilterType};
use image::{Rgb, RgbImage, RgbaImage};
use serde_json::Value;

const SIDE: u32 = 32;
const WIDE: u32 = 13;
/// Sides of a subject in a picture of 32: those of the training scenes, whose subjects take 84 to 96 of 128 pixels.
const SIZES: [u32; 4] = [21, 22, 23, 24];

/// All subjects and backgrounds that the model knows.
pub struct Subjects {
    pictures: Vec<(String, RgbaImage)>,
    backgrounds: BTreeMap<String, Rgb<u8>>,
}

impl Subjects {
    /// From `tests/fixtures/emoji`.
    pub fn new() -> Self {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/emoji");
        let text = std::fs::read_to_string(folder.join("subjects.json")).unwrap();
        let names: Value = serde_json::from_str(&text).unwrap();
        let sheet = image::open(folder.join("subjects.png")).unwrap().into_rgba8();
        let pictures = names["subjects"].as_array().unwrap().iter().enumerate();
        let pictures = pictures.map(|(i, name)| {
            let (x, y) = (i as u32 % WIDE * SIDE, i as u32 / WIDE * SIDE);
            let icon = imageops::crop_imm(&sheet, x, y, SIDE, SIDE).to_image();
            (name.as_str().unwrap().to_owned(), icon)
        });
        let backgrounds = names["backgrounds"].as_object().unwrap().iter();
        let backgrounds = backgrounds.map(|(name, colour)| {
            let channel = |i: usize| u8::try_from(colour[i].as_u64().unwrap()).unwrap();
            (name.clone(), Rgb([channel(0), channel(1), channel(2)]))
        });
        Self {
            pictures: pictures.collect(),
            backgrounds: backgrounds.collect(),
        }
    }

    /// The name of the background: the one nearest to the median colour of the picture's border.
    pub fn background(&self, picture: &RgbImage) -> &str {
        let (width, height) = picture.dimensions();
        let border = picture.enumerate_pixels().filter(|(x, y, _)| {
            let inside = |at: u32, side: u32| at >= 3 && at < side - 3;
            !(inside(*x, width) && inside(*y, height))
        });
        let border: Vec<_> = border.map(|(_, _, pixel)| pixel).collect();
        let median = |channel: usize| {
            let mut values: Vec<u8> = border.iter().map(|pixel| pixel[channel]).collect();
            values.sort_unstable();
            values[values.len() / 2]
        };
        let found = Rgb([median(0), median(1), median(2)]);
        let far = |colour: &Rgb<u8>| (0..3).map(|i| u32::from(colour[i].abs_diff(found[i]))).sum::<u32>();
        self.backgrounds.iter().min_by_key(|(_, colour)| far(colour)).unwrap().0
    }

    /// The name of the nearest subject on a background of this name, and its mean absolute distance (0..1).
    pub fn nearest(&self, picture: &RgbImage, background: &str) -> (&str, f32) {
        let small = imageops::resize(picture, SIDE, SIDE, FilterType::Triangle);
        let back = self.backgrounds[background];
        let distances = self.pictures.iter().map(|(name, icon)| {
            let best = SIZES.iter().map(|&size| distance(&small, icon, size, back));
            (name.as_str(), best.fold(f32::INFINITY, f32::min))
        });
        distances.min_by(|a, b| a.1.total_cmp(&b.1)).unwrap()
    }

    /// Checks that a picture shows `subject` on `background`.
    pub fn check(&self, picture: &RgbImage, subject: &str, background: &str) {
        assert_eq!(self.background(picture), background, "the background of the {subject}");
        let (found, distance) = self.nearest(picture, background);
        assert_eq!(found, subject, "on {background}, {distance} away");
    }
}

/// Least distance of the icon at this size from the picture, over shifts by a pixel each way from the middle.
fn distance(picture: &RgbImage, icon: &RgbaImage, size: u32, back: Rgb<u8>) -> f32 {
    let icon = imageops::resize(icon, size, size, FilterType::Triangle);
    let middle = (SIDE - size) / 2;
    let shifts = (0..3).flat_map(|x| (0..3).map(move |y| (middle + x - 1, middle + y - 1)));
    let sums = shifts.map(|(left, top)| {
        let pixels = picture.enumerate_pixels().map(|(x, y, pixel)| {
            let inside = (left..left + size).contains(&x) && (top..top + size).contains(&y);
            let drawn = inside.then(|| icon.get_pixel(x - left, y - top));
            (0..3)
                .map(|i| {
                    let back = f32::from(back[i]);
                    let over = drawn.map_or(back, |d| back + (f32::from(d[i]) - back) * f32::from(d[3]) / 255.0);
                    (over - f32::from(pixel[i])).abs()
                })
                .sum::<f32>()
        });
        pixels.sum::<f32>()
    });
    sums.fold(f32::INFINITY, f32::min) / (SIDE * SIDE * 3) as f32 / 255.0
}
