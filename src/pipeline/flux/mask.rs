//! The mask as FLUX.1-Fill reads it.

use image::GrayImage;

use super::latents::Grid;
use crate::pipeline::source::is_painted;

/// Every pixel of the mask, 1 where it is painted anew, packed: the `factor x factor` pixels of a latent are channels,
/// `(N, 4 * factor^2)`.
pub fn for_fill(mask: &GrayImage, grid: Grid, factor: usize) -> Vec<f32> {
    let (height, width) = grid.latent();
    let mut planes = Vec::with_capacity(factor * factor * height * width);
    for (dy, dx) in (0..factor * factor).map(|i| (i / factor, i % factor)) {
        for (y, x) in (0..height * width).map(|i| (i / width, i % width)) {
            let pixel = mask.get_pixel((x * factor + dx) as u32, (y * factor + dy) as u32);
            planes.push(f32::from(u8::from(is_painted(pixel.0[0]))));
        }
    }
    grid.pack(&planes, factor * factor)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::picture::Size;

    #[test]
    fn every_pixel_has_a_channel() {
        let mut mask = GrayImage::new(32, 16);
        mask.put_pixel(8, 0, image::Luma([255]));
        mask.put_pixel(9, 3, image::Luma([128]));
        mask.put_pixel(1, 1, image::Luma([127]));
        let grid = Grid::of(Size { width: 32, height: 16 }, 8);
        let fill = for_fill(&mask, grid, 8);
        assert_eq!(fill.len(), 2 * 256);
        assert_eq!(fill.iter().sum::<f32>(), 2.0);
        // Pixel (9, 3) is pixel (1, 3) of the latent in column 1 of the first patch: channel 25, second of its four.
        assert_eq!(fill[25 * 4 + 1], 1.0);
    }
}
