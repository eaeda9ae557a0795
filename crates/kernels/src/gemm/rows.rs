//! Where the rows of the left matrix come from.

use crate::simd::Element;

/// Rows of the left matrix of a product, read piece by piece.
pub(crate) trait RowSource<A: Element>: Sync {
    fn rows(&self) -> usize;
    fn inner(&self) -> usize;
    /// Pieces start and end at multiples of this many columns (or at the end of a row).
    fn granularity(&self) -> usize;
    /// All rows one after another, if they lie so.
    fn dense(&self) -> Option<&[A]>;
    /// Calls `put(row - from, column - k0, piece)` for the columns `k0..k1` of the rows `from..to`; columns not named are zero
    /// and are told by `put` with `Err(length)`.
    fn gather<'s>(&'s self, rows: (usize, usize), columns: (usize, usize), put: impl FnMut(usize, usize, Piece<'s, A>));
}

/// A run of neighbouring columns of one row.
#[derive(Clone, Copy)]
pub(crate) enum Piece<'s, A> {
    Values(&'s [A]),
    Zeros(usize),
}

/// A row-major matrix.
pub(crate) struct Dense<'a, A> {
    values: &'a [A],
    rows: usize,
    inner: usize,
}

impl<'a, A> Dense<'a, A> {
    /// `values` must hold `rows * inner` elements.
    pub(crate) fn new(values: &'a [A], rows: usize, inner: usize) -> Self {
        debug_assert_eq!(values.len(), rows * inner);
        Self { values, rows, inner }
    }
}

impl<A: Element> RowSource<A> for Dense<'_, A> {
    fn rows(&self) -> usize {
        self.rows
    }
    fn inner(&self) -> usize {
        self.inner
    }
    fn granularity(&self) -> usize {
        usize::MAX
    }
    fn dense(&self) -> Option<&[A]> {
        Some(self.values)
    }
    #[inline(always)]
    fn gather<'s>(&'s self, (from, to): (usize, usize), (k0, k1): (usize, usize), mut put: impl FnMut(usize, usize, Piece<'s, A>)) {
        for row in from..to {
            put(row - from, 0, Piece::Values(&self.values[row * self.inner + k0..row * self.inner + k1]));
        }
    }
}

/// The windows of a convolution over an NHWC picture: row = output pixel, column = (ky, kx, channel).
pub(crate) struct Windows<'a, A> {
    pub(crate) x: &'a [A],
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
}

impl<A: Element> RowSource<A> for Windows<'_, A> {
    fn rows(&self) -> usize {
        self.batch * self.out.0 * self.out.1
    }
    fn inner(&self) -> usize {
        self.kernel.0 * self.kernel.1 * self.size.2
    }
    fn granularity(&self) -> usize {
        self.size.2
    }
    fn dense(&self) -> Option<&[A]> {
        let plain = self.kernel == (1, 1) && self.stride == (1, 1) && self.before == (0, 0) && self.doubling == 0;
        (plain && self.out == (self.size.0, self.size.1)).then_some(self.x)
    }
    #[inline(always)]
    fn gather<'s>(&'s self, (from, to): (usize, usize), (k0, k1): (usize, usize), mut put: impl FnMut(usize, usize, Piece<'s, A>)) {
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
                    Piece::Values(&self.x[pixel * channels + first..][..length])
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
