//! Pictures in overlapping tiles, so that memory does not grow with the picture.
//!
//! Neighbours overlap by much and fade into each other over the whole overlap, so that what differs between them (each
//! tile has its own norm statistics) shows as no edge.

use candle_core::{DType, Device, Result, Tensor};

/// When and how the VAE works in tiles. Sizes are in latents; a latent is 8 pixels of a side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tiling {
    /// Pictures of more latents than this (their count, not a side) are done in tiles.
    pub above: usize,
    /// Side of a tile.
    pub tile: usize,
    /// Latents that neighbours share at least.
    pub overlap: usize,
}

impl Tiling {
    /// Tiles of 1024 pixels for pictures of more than about 1.6 megapixels; for those computed in `f32` on a CPU, which are to
    /// be as diffusers has them, of more than 1536x1536: those take 6 GB beside the weights.
    pub fn of(device: &Device, dtype: DType) -> Self {
        Self {
            above: if device.is_cpu() && dtype == DType::F32 {
                192 * 192
            } else {
                160 * 160
            },
            tile: 128,
            overlap: 32,
        }
    }

    /// Never in tiles.
    pub const NEVER: Self = Self {
        above: usize::MAX,
        tile: usize::MAX,
        overlap: 0,
    };

    /// Whether a picture of `height` x `width` latents is done in tiles.
    pub fn applies(&self, height: usize, width: usize) -> bool {
        height * width > self.above && (height > self.tile || width > self.tile)
    }

    fn spans(&self, size: usize) -> Vec<Span> {
        let tile = self.tile.clamp(1, size);
        let step = tile.saturating_sub(self.overlap).max(1);
        let count = (size - tile).div_ceil(step) + 1;
        let start = |i: usize| if count == 1 { 0 } else { i * (size - tile) / (count - 1) };
        (0..count)
            .map(|i| Span {
                start: start(i),
                len: tile,
            })
            .collect()
    }
}

/// A stretch of one side, in latents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    start: usize,
    len: usize,
}

/// Runs `each` over tiles of `x` and blends what it gives. `x` is `(1, H, W, C)`; a latent is `from` numbers of a side of
/// `x` and `to` of a side of the result, which is `f32`. `None` as soon as `each` gives `None`.
pub(super) fn in_tiles(
    x: &Tensor,
    tiling: &Tiling,
    (from, to): (usize, usize),
    each: impl Fn(&Tensor) -> Result<Option<Tensor>>,
) -> Result<Option<Tensor>> {
    let (_, height, width, _) = x.dims4()?;
    let (rows, columns) = (tiling.spans(height / from), tiling.spans(width / from));
    let (out_h, out_w) = (height / from * to, width / from * to);
    let (row_shares, column_shares) = (shares(&rows, out_h, to), shares(&columns, out_w, to));
    let mut canvas = Vec::new();
    let mut channels = 0;
    for (row, row_share) in rows.iter().zip(&row_shares) {
        let band = x.narrow(1, row.start * from, row.len * from)?;
        for (column, column_share) in columns.iter().zip(&column_shares) {
            let tile = band.narrow(2, column.start * from, column.len * from)?.contiguous()?;
            let Some(done) = each(&tile)? else { return Ok(None) };
            channels = done.dim(3)?;
            canvas.resize(out_h * out_w * channels, 0f32);
            let numbers = done
                .to_dtype(DType::F32)?
                .to_device(&Device::Cpu)?
                .flatten_all()?
                .to_vec1::<f32>()?;
            let line = column.len * to * channels;
            for (y, (source, row_share)) in numbers.chunks_exact(line).zip(row_share).enumerate() {
                let first = ((row.start * to + y) * out_w + column.start * to) * channels;
                let target = canvas[first..first + line].chunks_exact_mut(channels);
                for ((target, source), share) in target.zip(source.chunks_exact(channels)).zip(column_share) {
                    for (target, source) in target.iter_mut().zip(source) {
                        *target += source * (share * row_share);
                    }
                }
            }
        }
    }
    Tensor::from_vec(canvas, (1, out_h, out_w, channels), x.device()).map(Some)
}

/// For each span, how much it counts at each of its places: it rises from its edge over what it shares with its
/// neighbours, and all spans together count 1 everywhere.
fn shares(spans: &[Span], size: usize, scale: usize) -> Vec<Vec<f32>> {
    let mut total = vec![0f32; size];
    let raw: Vec<Vec<f32>> = spans
        .iter()
        .enumerate()
        .map(|(i, span)| {
            let len = span.len * scale;
            let before = i
                .checked_sub(1)
                .map_or(0, |p| (spans[p].start + spans[p].len - span.start) * scale);
            let after = spans
                .get(i + 1)
                .map_or(0, |next| (span.start + span.len - next.start) * scale);
            let rise = |place: usize, ramp: usize| {
                if place < ramp {
                    (place as f32 + 0.5) / ramp as f32
                } else {
                    1.0
                }
            };
            let weights: Vec<f32> = (0..len)
                .map(|at| rise(at, before) * rise(len - 1 - at, after))
                .collect();
            total[span.start * scale..][..len]
                .iter_mut()
                .zip(&weights)
                .for_each(|(sum, weight)| *sum += weight);
            weights
        })
        .collect();
    let normalise = |(weights, span): (Vec<f32>, &Span)| {
        let sums = &total[span.start * scale..];
        weights.iter().zip(sums).map(|(weight, sum)| weight / sum).collect()
    };
    raw.into_iter().zip(spans).map(normalise).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TILING: Tiling = Tiling {
        above: 10,
        tile: 6,
        overlap: 2,
    };

    #[test]
    fn only_large_pictures_are_done_in_tiles() {
        let sides = [(160, 160), (144, 256), (192, 192), (256, 256)];
        let applies = |dtype| sides.map(|(height, width)| Tiling::of(&Device::Cpu, dtype).applies(height, width));
        assert_eq!(applies(DType::F32), [false, false, false, true]);
        assert_eq!(applies(DType::BF16), [false, true, true, true]);
    }

    #[test]
    fn spans_cover_the_side_and_share_enough() {
        for size in 1..40 {
            let spans = TILING.spans(size);
            assert_eq!(spans[0].start, 0);
            let last = spans[spans.len() - 1];
            assert_eq!(last.start + last.len, size);
            assert!(
                spans.windows(2).all(|w| w[0].start + w[0].len >= w[1].start + 2),
                "{size}: {spans:?}"
            );
        }
    }

    #[test]
    fn what_is_local_comes_out_the_same_in_tiles() {
        let numbers: Vec<f32> = (0..13 * 17 * 2).map(|i| (i as f32 * 0.1).sin()).collect();
        let x = Tensor::from_vec(numbers, (1, 13, 17, 2), &Device::Cpu).unwrap();
        let doubled = |x: &Tensor| crate::ops::upsample_nearest2x(x).map(Some);
        let whole = doubled(&x).unwrap().unwrap();
        let tiled = in_tiles(&x, &TILING, (1, 2), doubled).unwrap().unwrap();
        let worst = (whole - tiled)
            .unwrap()
            .abs()
            .unwrap()
            .flatten_all()
            .unwrap()
            .max(0)
            .unwrap();
        assert!(worst.to_scalar::<f32>().unwrap() < 1e-6);
        assert!(in_tiles(&x, &TILING, (1, 2), |_| Ok(None)).unwrap().is_none());
    }

    #[test]
    fn small_pictures_are_done_at_once() {
        assert!(!TILING.applies(3, 3));
        assert!(!TILING.applies(6, 6));
        assert!(TILING.applies(7, 6));
        assert!(!Tiling::NEVER.applies(9999, 9999));
    }
}
