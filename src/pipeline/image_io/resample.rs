//! Pillow's `Image.resize` with the Lanczos filter, to the bit: two passes of fixed-point sums over 8-bit pixels. What
//! diffusers' `VaeImageProcessor` resizes with.
//!
//! The width comes first, but since Pillow 13 the height where it shrinks by more than twice as many pixels as the width.

use image::{GrayImage, RgbImage};

/// Half the width of the filter, in source pixels at scale 1.
const SUPPORT: f64 = 3.0;
/// Fraction bits of the weights: 8 bits for the pixel and 2 for overshoot are left of 32.
const PRECISION: u32 = 32 - 8 - 2;

/// Resizes an RGB picture.
#[must_use]
pub fn resize_rgb(image: &RgbImage, width: u32, height: u32) -> RgbImage {
    let pixels = resize::<3>(image.as_raw(), image.dimensions(), (width, height));
    RgbImage::from_raw(width, height, pixels).unwrap_or_default()
}

/// Resizes a grey picture.
#[must_use]
pub fn resize_luma(image: &GrayImage, width: u32, height: u32) -> GrayImage {
    let pixels = resize::<1>(image.as_raw(), image.dimensions(), (width, height));
    GrayImage::from_raw(width, height, pixels).unwrap_or_default()
}

/// The source pixels that make one target pixel.
struct Window {
    first: usize,
    weights: Vec<i32>,
}

fn windows(source: usize, target: usize) -> Vec<Window> {
    let scale = source as f64 / target as f64;
    let filter_scale = scale.max(1.0);
    let support = SUPPORT * filter_scale;
    (0..target)
        .map(|i| {
            let center = (i as f64 + 0.5) * scale;
            let first = ((center - support + 0.5) as isize).max(0) as usize;
            let end = ((center + support + 0.5) as usize).min(source);
            let inverse = 1.0 / filter_scale;
            let raw: Vec<f64> = (first..end)
                .map(|x| lanczos(((x - first) as f64 + first as f64 - center + 0.5) * inverse))
                .collect();
            let sum: f64 = raw.iter().sum();
            let weights = raw
                .into_iter()
                .map(|w| if sum == 0.0 { w } else { w / sum })
                .map(|w| (w * f64::from(1u32 << PRECISION) + 0.5f64.copysign(w)) as i32)
                .collect();
            Window { first, weights }
        })
        .collect()
}

fn lanczos(x: f64) -> f64 {
    if (-SUPPORT..SUPPORT).contains(&x) {
        sinc(x) * sinc(x / SUPPORT)
    } else {
        0.0
    }
}

fn sinc(x: f64) -> f64 {
    if x == 0.0 {
        return 1.0;
    }
    let x = x * std::f64::consts::PI;
    x.sin() / x
}

fn resize<const C: usize>(pixels: &[u8], (from_w, from_h): (u32, u32), (to_w, to_h): (u32, u32)) -> Vec<u8> {
    let (from_w, from_h) = (from_w as usize, from_h as usize);
    let (to_w, to_h) = (to_w as usize, to_h as usize);
    if pixels.is_empty() || to_w == 0 || to_h == 0 {
        return vec![0; to_w * to_h * C];
    }
    let shrinks = |from: usize, to: usize| from as isize - to as isize;
    let height_first = to_h < from_h && shrinks(from_h, to_h) > 2 * shrinks(from_w, to_w);
    if height_first {
        rows::<C>(columns(pixels.to_vec(), from_w * C, from_h, to_h), from_w, to_w)
    } else {
        columns(rows::<C>(pixels.to_vec(), from_w, to_w), to_w * C, from_h, to_h)
    }
}

/// Resizes every row from `from` to `to` pixels.
fn rows<const C: usize>(pixels: Vec<u8>, from: usize, to: usize) -> Vec<u8> {
    if from == to {
        return pixels;
    }
    let windows = windows(from, to);
    let mut out = Vec::with_capacity(pixels.len() / from * to);
    for row in pixels.chunks_exact(from * C) {
        for window in &windows {
            let mut sums = [1i32 << (PRECISION - 1); C];
            let source = row[window.first * C..].chunks_exact(C);
            for (pixel, weight) in source.zip(&window.weights) {
                for (sum, value) in sums.iter_mut().zip(pixel) {
                    *sum += i32::from(*value) * weight;
                }
            }
            out.extend(sums.map(clip));
        }
    }
    out
}

/// Resizes every column of rows of `width` values.
fn columns(pixels: Vec<u8>, width: usize, from: usize, to: usize) -> Vec<u8> {
    if from == to {
        return pixels;
    }
    let mut out = Vec::with_capacity(width * to);
    for window in windows(from, to) {
        let mut sums = vec![1i32 << (PRECISION - 1); width];
        let source = pixels[window.first * width..].chunks_exact(width);
        for (row, weight) in source.zip(&window.weights) {
            for (sum, value) in sums.iter_mut().zip(row) {
                *sum += i32::from(*value) * weight;
            }
        }
        out.extend(sums.into_iter().map(clip));
    }
    out
}

fn clip(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{Luma, Rgb};

    #[test]
    fn a_plain_picture_stays_plain() {
        let image = RgbImage::from_pixel(31, 17, Rgb([200, 3, 77]));
        for (w, h) in [(8, 8), (100, 40), (31, 5), (1, 1)] {
            let resized = resize_rgb(&image, w, h);
            assert_eq!(resized.dimensions(), (w, h));
            assert!(resized.pixels().all(|p| p.0 == [200, 3, 77]));
        }
    }

    #[test]
    fn the_same_size_is_the_same_picture() {
        let image = GrayImage::from_fn(9, 7, |x, y| Luma([(x * 13 + y * 29) as u8]));
        assert_eq!(resize_luma(&image, 9, 7), image);
    }
}
