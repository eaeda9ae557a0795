//! Packed latents: FLUX's transformer reads 2x2 patches of the latents as one token of four times the channels.

use crate::domain::picture::Size;

/// A picture's patches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    /// Rows of patches.
    pub rows: usize,
    /// Columns of patches.
    pub columns: usize,
}

impl Grid {
    /// The patches of a picture whose VAE shrinks it by `factor`.
    pub fn of(size: Size, factor: usize) -> Self {
        Self {
            rows: size.height as usize / (2 * factor),
            columns: size.width as usize / (2 * factor),
        }
    }

    /// Tokens of the picture.
    pub fn tokens(self) -> usize {
        self.rows * self.columns
    }

    /// Rows and columns of the latents.
    pub fn latent(self) -> (usize, usize) {
        (2 * self.rows, 2 * self.columns)
    }

    /// Packs planes `(channels, H, W)`, the order in which diffusers draws noise, to tokens `(N, 4 * channels)`.
    pub fn pack(self, planes: &[f32], channels: usize) -> Vec<f32> {
        let (height, width) = self.latent();
        self.places(channels)
            .map(|(c, y, x)| planes[(c * height + y) * width + x])
            .collect()
    }

    /// Unpacks tokens `(N, 4 * channels)` to planes `(channels, H, W)`.
    pub fn unpack(self, tokens: &[f32], channels: usize) -> Vec<f32> {
        let (height, width) = self.latent();
        let mut planes = vec![0.0; tokens.len()];
        for ((c, y, x), value) in self.places(channels).zip(tokens) {
            planes[(c * height + y) * width + x] = *value;
        }
        planes
    }

    /// Channel, row and column of each number of the packed form, in its order.
    fn places(self, channels: usize) -> impl Iterator<Item = (usize, usize, usize)> {
        let columns = self.columns;
        (0..self.tokens()).flat_map(move |token| {
            let (row, column) = (2 * (token / columns), 2 * (token % columns));
            (0..channels * 4).map(move |i| (i / 4, row + i / 2 % 2, column + i % 2))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packs_as_diffusers_does() {
        let grid = Grid::of(Size { width: 48, height: 32 }, 8);
        assert_eq!((grid.rows, grid.columns, grid.latent()), (2, 3, (4, 6)));
        let planes: Vec<f32> = (0..2 * 24).map(|i| i as f32).collect();
        let packed = grid.pack(&planes, 2);
        // The first token: rows 0 and 1, columns 0 and 1 of plane 0, then of plane 1.
        assert_eq!(packed[..8], [0.0, 1.0, 6.0, 7.0, 24.0, 25.0, 30.0, 31.0]);
        // The fifth: the second row of patches, second column.
        assert_eq!(packed[4 * 8..4 * 8 + 4], [14.0, 15.0, 20.0, 21.0]);
        assert_eq!(grid.unpack(&packed, 2), planes);
    }
}
