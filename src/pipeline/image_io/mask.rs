//! Inpaint masks: which pixels and latents are painted, and how the painted part goes back into the picture.

use image::{GrayImage, Rgb, RgbImage};

use super::resize_luma;

/// A mask of two values at the size of the picture to paint.
#[derive(Clone, Debug, PartialEq)]
pub struct BinaryMask {
    width: u32,
    height: u32,
    /// 1 where the picture is painted anew, row by row.
    painted: Vec<u8>,
}

impl BinaryMask {
    /// Resizes a grey mask and splits it at one half, as diffusers' mask processors do: 128 and more is painted.
    #[must_use]
    pub fn new(mask: &GrayImage, width: u32, height: u32) -> Self {
        let resized = resize_luma(mask, width, height);
        Self {
            width,
            height,
            painted: resized.as_raw().iter().map(|v| u8::from(*v >= 128)).collect(),
        }
    }

    /// Width and height in pixels.
    #[must_use]
    pub fn size(&self) -> (u32, u32) {
        (self.width, self.height)
    }

    /// Whether nothing at all is painted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.painted.iter().all(|p| *p == 0)
    }

    /// 1 for each painted pixel, 0 for each kept one: (height, width).
    #[must_use]
    pub fn values(&self) -> Vec<f32> {
        self.painted.iter().map(|p| f32::from(*p)).collect()
    }

    /// The mask of the latents, `factor` times smaller: the upper left pixel of each square, which is what
    /// `torch.nn.functional.interpolate` takes. (height / factor, width / factor).
    #[must_use]
    pub fn latent_values(&self, factor: u32) -> Vec<f32> {
        let (columns, rows) = (self.width / factor, self.height / factor);
        (0..rows)
            .flat_map(|y| (0..columns).map(move |x| (x * factor, y * factor)))
            .map(|(x, y)| f32::from(self.at(x, y)))
            .collect()
    }

    /// The picture as numbers of the VAE with the painted part blanked (0, mid grey): what inpainting models are shown.
    /// `image`: (height, width, 3), changed in place.
    pub fn blank(&self, image: &mut [f32]) {
        for (pixel, _) in image.chunks_exact_mut(3).zip(&self.painted).filter(|(_, p)| **p == 1) {
            pixel.fill(0.0);
        }
    }

    fn at(&self, x: u32, y: u32) -> u8 {
        self.painted[y as usize * self.width as usize + x as usize]
    }

    /// Opacity of the painted part, 0 to 1. It rises within the mask over `feather` pixels from its edge, so that pixels
    /// outside it are never touched.
    fn opacity(&self, feather: u32) -> Vec<f32> {
        if feather == 0 {
            return self.values();
        }
        let distances = self.distances_to_kept();
        distances
            .into_iter()
            .map(|d| (d / (feather as f32 + 1.0)).min(1.0))
            .collect()
    }

    /// Euclidean distance of each pixel's centre to the nearest kept pixel's.
    fn distances_to_kept(&self) -> Vec<f32> {
        let (w, h) = (self.width as usize, self.height as usize);
        let far = ((w + h) * (w + h)) as f32;
        let mut squares: Vec<f32> = self.painted.iter().map(|p| if *p == 1 { far } else { 0.0 }).collect();
        for x in 0..w {
            let column: Vec<f32> = (0..h).map(|y| squares[y * w + x]).collect();
            for (y, d) in lower_envelope(&column).into_iter().enumerate() {
                squares[y * w + x] = d;
            }
        }
        for row in squares.chunks_exact_mut(w) {
            row.copy_from_slice(&lower_envelope(row));
        }
        squares.into_iter().map(f32::sqrt).collect()
    }
}

/// Squared distances along one line: `min over q of (p - q)^2 + f(q)` (Felzenszwalb and Huttenlocher 2012).
fn lower_envelope(f: &[f32]) -> Vec<f32> {
    let value = |q: usize| f64::from(f[q]) + (q * q) as f64;
    // Parabolas of the envelope, each with where it starts.
    let mut hull: Vec<(usize, f64)> = Vec::with_capacity(f.len());
    for q in 0..f.len() {
        let mut start = f64::NEG_INFINITY;
        while let Some(&(p, from)) = hull.last() {
            start = (value(q) - value(p)) / (2.0 * (q as f64 - p as f64));
            if start > from {
                break;
            }
            hull.pop();
            start = f64::NEG_INFINITY;
        }
        hull.push((q, start));
    }
    let mut k = 0;
    (0..f.len())
        .map(|p| {
            while hull.get(k + 1).is_some_and(|(_, from)| *from < p as f64) {
                k += 1;
            }
            let q = hull[k].0;
            let d = p as f32 - q as f32;
            d * d + f[q]
        })
        .collect()
}

/// The painted picture with the kept part of the original put back, bit by bit. With `feather` pixels of width the
/// painted part fades in from its edge. All three have the same size.
#[must_use]
pub fn paste_back(painted: &RgbImage, original: &RgbImage, mask: &BinaryMask, feather: u32) -> RgbImage {
    let opacity = mask.opacity(feather);
    let mut result = original.clone();
    for ((to, from), alpha) in result.pixels_mut().zip(painted.pixels()).zip(opacity) {
        if alpha >= 1.0 {
            *to = *from;
        } else if alpha > 0.0 {
            let mix = |a: u8, b: u8| (f32::from(a) + (f32::from(b) - f32::from(a)) * alpha).round() as u8;
            *to = Rgb([mix(to[0], from[0]), mix(to[1], from[1]), mix(to[2], from[2])]);
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::Luma;

    /// White square from (4, 4) to (11, 11) of 16x16.
    fn square() -> BinaryMask {
        let inside = |v: u32| (4..12).contains(&v);
        let mask = GrayImage::from_fn(16, 16, |x, y| Luma([if inside(x) && inside(y) { 255 } else { 0 }]));
        BinaryMask::new(&mask, 16, 16)
    }

    #[test]
    fn kept_pixels_come_back_exactly_with_and_without_feather() {
        let original = RgbImage::from_fn(16, 16, |x, y| Rgb([x as u8, y as u8, 100]));
        let painted = RgbImage::from_pixel(16, 16, Rgb([255, 255, 0]));
        for feather in [0, 1, 3, 200] {
            let result = paste_back(&painted, &original, &square(), feather);
            for (x, y, pixel) in result.enumerate_pixels() {
                if square().at(x, y) == 0 {
                    assert_eq!(pixel, original.get_pixel(x, y), "{feather}");
                }
            }
        }
        assert_eq!(
            paste_back(&painted, &original, &square(), 0).get_pixel(4, 4).0,
            [255, 255, 0]
        );
    }

    #[test]
    fn a_feather_rises_from_the_edge() {
        let opacity = square().opacity(3);
        let row: Vec<f32> = (4..8).map(|x| opacity[8 * 16 + x]).collect();
        assert_eq!(row, [0.25, 0.5, 0.75, 1.0]);
    }

    #[test]
    fn distances_are_euclidean() {
        let mut mask = square();
        mask.painted.fill(1);
        mask.painted[0] = 0;
        let distances = mask.distances_to_kept();
        assert_eq!(distances[3 * 16 + 4], 5.0);
        assert_eq!(distances[0], 0.0);
        assert_eq!(distances[15 * 16], 15.0);
    }

    #[test]
    fn latents_take_the_corner_of_each_square() {
        let values = square().latent_values(8);
        assert_eq!(values, [0.0, 0.0, 0.0, 1.0]);
        let mut image = vec![0.5; 16 * 16 * 3];
        square().blank(&mut image);
        assert_eq!((image[0], image[(8 * 16 + 8) * 3]), (0.5, 0.0));
    }

    #[test]
    fn one_half_is_painted() {
        let mask = GrayImage::from_raw(2, 1, vec![127, 128]).unwrap();
        assert_eq!(BinaryMask::new(&mask, 2, 1).values(), [0.0, 1.0]);
    }
}
