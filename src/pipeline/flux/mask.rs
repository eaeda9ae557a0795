//! Inpaint masks as FLUX wants them: on the latents' grid to blend, or whole as input of FLUX.1-Fill.

use image::GrayImage;

use super::latents::Grid;

/// Whether a mask pixel is painted anew.
fn painted(mask: &GrayImage, x: usize, y: usize) -> bool {
    mask.get_pixel(x as u32, y as u32).0[0] >= 128
}

/// 1 where latents are painted and 0 where they are kept, packed as latents of so many channels: each takes the mask's
/// pixel at its corner, as torch's nearest interpolation.
pub fn for_latents(mask: &GrayImage, grid: Grid, factor: usize, channels: usize) -> Vec<f32> {
    let (height, width) = grid.latent();
    let corner = |i: usize| f32::from(u8::from(painted(mask, i % width * factor, i / width * factor)));
    let plane: Vec<f32> = (0..height * width).map(corner).collect();
    grid.pack(&plane.repeat(channels), channels)
}

/// Every pixel of the mask, packed: the `factor x factor` pixels of a latent are channels, `(N, 4 * factor^2)`.
pub fn for_fill(mask: &GrayImage, grid: Grid, factor: usize) -> Vec<f32> {
    let (height, width) = grid.latent();
    let mut planes = Vec::with_capacity(factor * factor * height * width);
    for (dy, dx) in (0..factor * factor).map(|i| (i / factor, i % factor)) {
        for (y, x) in (0..height * width).map(|i| (i / width, i % width)) {
            planes.push(f32::from(u8::from(painted(mask, x * factor + dx, y * factor + dy))));
        }
    }
    grid.pack(&planes, factor * factor)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::picture::Size;

    #[test]
    fn latents_take_the_corner_and_fill_takes_all() {
        let mut mask = GrayImage::new(32, 16);
        mask.put_pixel(8, 0, image::Luma([255]));
        mask.put_pixel(9, 3, image::Luma([128]));
        mask.put_pixel(1, 1, image::Luma([127]));
        let grid = Grid::of(Size { width: 32, height: 16 }, 8);
        let blended = for_latents(&mask, grid, 8, 3);
        assert_eq!(blended[..8], [0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0]);
        assert_eq!(blended.iter().sum::<f32>(), 3.0);
        let fill = for_fill(&mask, grid, 8);
        assert_eq!(fill.len(), 2 * 256);
        assert_eq!(fill.iter().sum::<f32>(), 2.0);
        // Pixel (9, 3) is pixel (1, 3) of the latent in column 1 of the first patch: channel 25, second of its four.
        assert_eq!(fill[25 * 4 + 1], 1.0);
    }
}
