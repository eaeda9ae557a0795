//! 8-bit pixels to the numbers of a VAE and back, as `VaeImageProcessor` computes them. Layout: (height, width, 3).

use image::RgbImage;

/// Pixels to -1..1.
#[must_use]
pub fn to_model(image: &RgbImage) -> Vec<f32> {
    image
        .as_raw()
        .iter()
        .map(|v| 2.0 * (f32::from(*v) / 255.0) - 1.0)
        .collect()
}

/// -1..1 to pixels: clamped, rounded to even at ties. Values that are not finite become 0.
#[must_use]
pub fn from_model(values: &[f32], width: u32, height: u32) -> RgbImage {
    let pixels = values
        .iter()
        .map(|v| ((v * 0.5 + 0.5).clamp(0.0, 1.0) * 255.0).round_ties_even() as u8)
        .collect();
    RgbImage::from_raw(width, height, pixels).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_comes_back() {
        let image = RgbImage::from_raw(16, 16, (0..768).map(|i| (i % 256) as u8).collect()).unwrap();
        assert_eq!(from_model(&to_model(&image), 16, 16), image);
    }

    #[test]
    fn what_is_out_of_range_is_clamped() {
        assert_eq!(from_model(&[-7.0, 9.0, f32::NAN], 1, 1).as_raw(), &[0, 255, 0]);
    }
}
