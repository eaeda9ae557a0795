//! Where the rows of the left matrix come from.

use crate::simd::View;

/// The windows of a convolution over an NHWC picture: row = output pixel, column = (ky, kx, channel). A plain matrix is the case
/// of one tap ([`Rows::dense`]).
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    pub(crate) x: View<'a>,
    /// Height, width and channels of the picture in memory.
    pub(crate) size: (usize, usize, usize),
    pub(crate) batch: usize,
    pub(crate) out: (usize, usize),
    pub(crate) kernel: (usize, usize),
    pub(crate) stride: (usize, usize),
    /// Zeros above and to the left.
    pub(crate) before: (usize, usize),
    /// 1 if each pixel stands for two by two (nearest upsampling in front), else 0.
    pub(crate) doubling: u32,
    /// The output is a picture twice as high and wide, of which these rows are the pixels at (2y + phase.0, 2x + phase.1).
    pub(crate) phase: Option<(usize, usize)>,
}

/// Rows of the output: `count` from `row` on, each `step` after the one before.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    pub(crate) row: usize,
    pub(crate) count: usize,
    pub(crate) step: usize,
}

impl<'a> Rows<'a> {
    /// A row-major matrix.
    pub(crate) fn dense(x: View<'a>, rows: usize, inner: usize) -> Self {
        Self {
            x,
            size: (rows, 1, inner),
            batch: 1,
            out: (rows, 1),
            kernel: (1, 1),
            stride: (1, 1),
            before: (0, 0),
            doubling: 0,
            phase: None,
        }
    }

    pub(crate) fn count(&self) -> usize {
        self.batch * self.out.0 * self.out.1
    }

    /// Rows of the whole output.
    pub(crate) fn out_rows(&self) -> usize {
        self.count() * if self.phase.is_some() { 4 } else { 1 }
    }

    /// Calls `put(from, place)` for the runs of output rows that `count` rows from `row` on are: the run's first is row
    /// `row + from`.
    #[inline]
    pub(crate) fn runs(&self, row: usize, count: usize, mut put: impl FnMut(usize, Place)) {
        let Some((down, right)) = self.phase else {
            return put(0, Place { row, count, step: 1 });
        };
        let width = self.out.1;
        let mut from = 0;
        while from < count {
            let (line, x) = ((row + from) / width, (row + from) % width);
            let run = (width - x).min(count - from);
            let place = Place {
                row: (2 * line + down) * 2 * width + 2 * x + right,
                count: run,
                step: 2,
            };
            put(from, place);
            from += run;
        }
    }

    /// Whether the rows lie one after another as they are.
    pub(crate) fn is_dense(&self) -> bool {
        let plain = self.kernel == (1, 1) && self.stride == (1, 1) && self.before == (0, 0) && self.doubling == 0;
        plain && self.out == (self.size.0, self.size.1)
    }

    #[cfg(target_arch = "x86_64")]
    /// Whether pieces start at multiples of 32 columns when the columns asked for do.
    pub(crate) fn is_aligned(&self) -> bool {
        self.size.2.is_multiple_of(32) || self.kernel == (1, 1)
    }

    /// Calls `put(row - from, column - k0, piece)` for the columns `k0..k1` of the rows `from..to`.
    #[inline(always)]
    pub(crate) fn gather(
        &self,
        (from, to): (usize, usize),
        (k0, k1): (usize, usize),
        mut put: impl FnMut(usize, usize, Piece),
    ) {
        let (height, width, channels) = self.size;
        let (full_height, full_width) = (height << self.doubling, width << self.doubling);
        for tap in k0 / channels..k1.div_ceil(channels) {
            let (ky, kx) = (tap / self.kernel.1, tap % self.kernel.1);
            let start = k0.max(tap * channels);
            let end = k1.min((tap + 1) * channels);
            let (first, length) = (start - tap * channels, end - start);
            let (mut ox, rest) = (from % self.out.1, from / self.out.1);
            let (mut oy, mut image) = (rest % self.out.0, rest / self.out.0);
            for row in from..to {
                let y = (oy * self.stride.0 + ky).wrapping_sub(self.before.0);
                let x = (ox * self.stride.1 + kx).wrapping_sub(self.before.1);
                let piece = if y < full_height && x < full_width {
                    let pixel = (image * height + (y >> self.doubling)) * width + (x >> self.doubling);
                    Piece::Values(pixel * channels + first, length)
                } else {
                    Piece::Zeros(length)
                };
                put(row - from, start - k0, piece);
                ox += 1;
                if ox == self.out.1 {
                    ox = 0;
                    oy += 1;
                    if oy == self.out.0 {
                        oy = 0;
                        image += 1;
                    }
                }
            }
        }
    }
}

/// A run of neighbouring columns of one row.
#[derive(Clone, Copy)]
pub(crate) enum Piece {
    /// Start in the picture and length.
    Values(usize, usize),
    Zeros(usize),
}
