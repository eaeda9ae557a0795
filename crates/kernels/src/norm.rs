//! Group, layer and root-mean-square norms over channels-last activations. Statistics are f32 lanes, combined in f64.

use crate::error::{Result, check_dim, check_len, check_positive, volume};
use crate::gemm::Activation;
use crate::pool::{SharedMut, parallel_chunks, parallel_for};
use crate::simd::{Element, Kernel, LANES, Simd, View, ViewMut, dispatch, load_some, store_some};

/// Rows whose sums are made together. Fixed, so that statistics do not depend on the number of threads.
const STAT_ROWS: usize = 128;
/// Numbers of one task of a pass.
const TASK: usize = 1 << 15;

/// Normalises each group of neighbouring channels of each picture, then scales and shifts by channel, then applies the
/// activation. `x` is (batch, pixels, channels); `scale` and `shift` are (channels).
///
/// # Errors
/// If a slice does not fit, or the groups do not divide the channels.
pub fn group_norm<T: Element>(
    x: &[T],
    (batch, pixels, channels): (usize, usize, usize),
    groups: usize,
    (scale, shift): (&[f32], &[f32]),
    eps: f32,
    activation: Activation,
    out: &mut [T],
) -> Result<()> {
    check_positive("groups", groups)?;
    check_positive("channels", channels)?;
    check_dim("channels over groups", channels % groups, 0)?;
    check_len("picture", x.len(), volume(&[batch, pixels, channels]))?;
    check_len("output", out.len(), x.len())?;
    check_len("scale", scale.len(), channels)?;
    check_len("shift", shift.len(), channels)?;
    if x.is_empty() {
        return Ok(());
    }
    let dims = (batch, pixels, channels);
    match (T::view(x), T::view_mut(out)) {
        (View::F32(x), ViewMut::F32(out)) => grouped(x, dims, groups, (scale, shift), eps, activation, out),
        (View::Bf16(x), ViewMut::Bf16(out)) => grouped(x, dims, groups, (scale, shift), eps, activation, out),
        _ => {}
    }
    Ok(())
}

fn grouped<T: Element>(
    x: &[T],
    (batch, pixels, channels): (usize, usize, usize),
    groups: usize,
    (scale, shift): (&[f32], &[f32]),
    eps: f32,
    activation: Activation,
    out: &mut [T],
) {
    let blocks = pixels.div_ceil(STAT_ROWS);
    let mut sums = vec![0f32; batch * blocks * 2 * channels];
    parallel_chunks(&mut sums, 2 * channels, |index, sums| {
        let (image, block) = (index / blocks, index % blocks);
        let picture = &x[image * pixels * channels..][..pixels * channels];
        let rows = &picture[block * STAT_ROWS * channels..((block + 1) * STAT_ROWS).min(pixels) * channels];
        dispatch(ChannelSums {
            rows,
            pivot: &picture[..channels],
            sums,
        });
    });
    let per_group = channels / groups;
    let mut affine = vec![0f32; batch * 2 * channels];
    for image in 0..batch {
        let (scales, shifts) = affine[image * 2 * channels..][..2 * channels].split_at_mut(channels);
        let pivot = &x[image * pixels * channels..][..channels];
        for group in 0..groups {
            let members = group * per_group..(group + 1) * per_group;
            let (mean, variance) = moments(
                &sums[image * blocks * 2 * channels..][..blocks * 2 * channels],
                pivot,
                members.clone(),
                pixels,
            );
            let inverse = 1.0 / (variance + f64::from(eps)).sqrt();
            for c in members {
                let by = f64::from(scale[c]) * inverse;
                scales[c] = by as f32;
                shifts[c] = (f64::from(shift[c]) - mean * by) as f32;
            }
        }
    }
    let rows = (TASK / channels).max(1);
    let per_image = pixels.div_ceil(rows);
    let shared = SharedMut::new(out);
    parallel_for(batch * per_image, |task| {
        let (image, block) = (task / per_image, task % per_image);
        let from = (image * pixels + block * rows) * channels;
        let to = (image * pixels + ((block + 1) * rows).min(pixels)) * channels;
        let (scale, shift) = affine[image * 2 * channels..][..2 * channels].split_at(channels);
        // SAFETY: the rows of different tasks do not overlap.
        let out = unsafe { shared.piece(from, to) };
        dispatch(Affine {
            x: &x[from..to],
            scale,
            shift,
            activation,
            out,
        });
    });
}

/// Mean and variance of the channels `members` from the sums and square sums of each block, taken relative to the pivots.
fn moments<T: Element>(sums: &[f32], pivot: &[T], members: std::ops::Range<usize>, pixels: usize) -> (f64, f64) {
    let channels = pivot.len();
    let count = pixels as f64;
    let (mut mean, mut square) = (0.0, 0.0);
    let mut each = Vec::with_capacity(members.len());
    for c in members {
        let (mut sum, mut squares) = (0.0, 0.0);
        for block in sums.chunks_exact(2 * channels) {
            sum += f64::from(block[c]);
            squares += f64::from(block[channels + c]);
        }
        let off = sum / count;
        each.push((
            f64::from(pivot[c].to_f32()) + off,
            (squares / count - off * off).max(0.0),
        ));
    }
    for &(m, _) in &each {
        mean += m / each.len() as f64;
    }
    for &(m, variance) in &each {
        square += (variance + (m - mean) * (m - mean)) / each.len() as f64;
    }
    (mean, square)
}

/// Sums of `x - pivot` and of its square, by channel.
struct ChannelSums<'a, T> {
    rows: &'a [T],
    pivot: &'a [T],
    /// The sums, then the sums of squares.
    sums: &'a mut [f32],
}

impl<T: Element> Kernel for ChannelSums<'_, T> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let channels = self.pivot.len();
        let (sums, squares) = self.sums.split_at_mut(channels);
        for at in (0..channels).step_by(LANES) {
            let end = (at + LANES).min(channels);
            let pivot = load_some(s, &self.pivot[at..end]);
            let (mut sum, mut square) = ([s.zero(); 2], [s.zero(); 2]);
            for pair in self.rows.chunks(2 * channels) {
                for (i, row) in pair.chunks(channels).enumerate().take(2) {
                    let x = s.sub(load_some(s, &row[at..end]), pivot);
                    sum[i] = s.add(sum[i], x);
                    square[i] = s.fma(x, x, square[i]);
                }
            }
            store_some(s, &mut sums[at..end], s.add(sum[0], sum[1]));
            store_some(s, &mut squares[at..end], s.add(square[0], square[1]));
        }
    }
}

struct Affine<'a, T> {
    x: &'a [T],
    scale: &'a [f32],
    shift: &'a [f32],
    activation: Activation,
    out: &'a mut [T],
}

impl<T: Element> Kernel for Affine<'_, T> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let channels = self.scale.len();
        for (x, out) in self.x.chunks_exact(channels).zip(self.out.chunks_exact_mut(channels)) {
            for at in (0..channels).step_by(LANES) {
                let end = (at + LANES).min(channels);
                let v = s.fma(
                    load_some(s, &x[at..end]),
                    load_some(s, &self.scale[at..end]),
                    load_some(s, &self.shift[at..end]),
                );
                store_some(s, &mut out[at..end], self.activation.apply(s, v));
            }
        }
    }
}

/// What follows a layer norm.
#[derive(Debug, Clone, Copy)]
pub enum NormAffine<'a> {
    /// Nothing.
    None,
    /// `n * scale + shift`, each (width).
    Shared { scale: &'a [f32], shift: &'a [f32] },
    /// `n * (1 + scale) + shift`, one row of each per group of `rows_per_group` rows (AdaLN).
    Modulated {
        scale: &'a [f32],
        shift: &'a [f32],
        rows_per_group: usize,
    },
}

/// Normalises each row of `x`, (rows, width).
///
/// # Errors
/// If a slice does not fit the dimensions.
pub fn layer_norm<T: Element>(x: &[T], width: usize, affine: NormAffine<'_>, eps: f32, out: &mut [T]) -> Result<()> {
    check_rows(x.len(), width, out.len())?;
    match affine {
        NormAffine::None => {}
        NormAffine::Shared { scale, shift } => {
            check_len("scale", scale.len(), width)?;
            check_len("shift", shift.len(), width)?;
        }
        NormAffine::Modulated {
            scale,
            shift,
            rows_per_group,
        } => {
            check_positive("rows per group", rows_per_group)?;
            let groups = (x.len() / width).div_ceil(rows_per_group);
            check_len("scale", scale.len(), volume(&[groups, width]))?;
            check_len("shift", shift.len(), volume(&[groups, width]))?;
        }
    }
    by_rows(T::view(x), width, Kind::Layer(affine), eps, T::view_mut(out));
    Ok(())
}

/// Divides each row of `x`, (rows, width), by the root of its mean square and multiplies by `scale`, (width).
///
/// # Errors
/// If a slice does not fit the dimensions.
pub fn rms_norm<T: Element>(x: &[T], scale: &[f32], eps: f32, out: &mut [T]) -> Result<()> {
    check_rows(x.len(), scale.len(), out.len())?;
    by_rows(T::view(x), scale.len(), Kind::Rms(scale), eps, T::view_mut(out));
    Ok(())
}

fn check_rows(len: usize, width: usize, out: usize) -> Result<()> {
    check_positive("width", width)?;
    check_dim("rest of a row", len % width, 0)?;
    check_len("output", out, len)
}

#[derive(Clone, Copy)]
enum Kind<'a> {
    Layer(NormAffine<'a>),
    Rms(&'a [f32]),
}

fn by_rows(x: View<'_>, width: usize, kind: Kind<'_>, eps: f32, out: ViewMut<'_>) {
    match (x, out) {
        (View::F32(x), ViewMut::F32(out)) => all_rows(x, width, kind, eps, out),
        (View::Bf16(x), ViewMut::Bf16(out)) => all_rows(x, width, kind, eps, out),
        _ => {}
    }
}

fn all_rows<T: Element>(x: &[T], width: usize, kind: Kind<'_>, eps: f32, out: &mut [T]) {
    let rows = (TASK / width).max(1);
    parallel_chunks(out, rows * width, |task, out| {
        let first = task * rows;
        dispatch(RowNorm {
            x: &x[first * width..][..out.len()],
            width,
            first,
            kind,
            eps,
            out,
        });
    });
}

struct RowNorm<'a, T> {
    x: &'a [T],
    width: usize,
    first: usize,
    kind: Kind<'a>,
    eps: f32,
    out: &'a mut [T],
}

impl<T: Element> Kernel for RowNorm<'_, T> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let width = self.width;
        for (i, (x, out)) in self
            .x
            .chunks_exact(width)
            .zip(self.out.chunks_exact_mut(width))
            .enumerate()
        {
            match self.kind {
                Kind::Rms(scale) => {
                    let by = 1.0 / (squares(s, x, 0.0) / width as f32 + self.eps).sqrt();
                    finish(s, x, out, (0.0, by), (Some((scale, 0.0)), None));
                }
                Kind::Layer(affine) => {
                    let mean = total(s, x) / width as f32;
                    let by = 1.0 / (squares(s, x, mean) / width as f32 + self.eps).sqrt();
                    let after = match affine {
                        NormAffine::None => (None, None),
                        NormAffine::Shared { scale, shift } => (Some((scale, 0.0)), Some(shift)),
                        NormAffine::Modulated {
                            scale,
                            shift,
                            rows_per_group,
                        } => {
                            let at = (self.first + i) / rows_per_group * width;
                            (Some((&scale[at..at + width], 1.0)), Some(&shift[at..at + width]))
                        }
                    };
                    finish(s, x, out, (mean, by), after);
                }
            }
        }
    }
}

#[inline(always)]
fn total<S: Simd, T: Element>(s: S, x: &[T]) -> f32 {
    let mut sums = [s.zero(); 2];
    for pair in x.chunks(2 * LANES) {
        for (i, x) in pair.chunks(LANES).enumerate().take(2) {
            sums[i] = s.add(sums[i], load_some(s, x));
        }
    }
    s.sum(s.add(sums[0], sums[1]))
}

/// Sum of (x - mean)^2.
#[inline(always)]
fn squares<S: Simd, T: Element>(s: S, x: &[T], mean: f32) -> f32 {
    let (whole, rest) = x.as_chunks::<LANES>();
    let mean_lanes = s.splat(mean);
    let mut sums = [s.zero(); 2];
    for pair in whole.chunks(2) {
        for (i, x) in pair.iter().enumerate().take(2) {
            let x = s.sub(load_some(s, x), mean_lanes);
            sums[i] = s.fma(x, x, sums[i]);
        }
    }
    let rest: f32 = rest.iter().map(|x| (x.to_f32() - mean) * (x.to_f32() - mean)).sum();
    s.sum(s.add(sums[0], sums[1])) + rest
}

/// A scale, and what is added to it.
type Scale<'a> = Option<(&'a [f32], f32)>;

/// `(x - mean) * by * (scale + added) + shift`.
#[inline(always)]
fn finish<S: Simd, T: Element>(
    s: S,
    x: &[T],
    out: &mut [T],
    (mean, by): (f32, f32),
    (scale, shift): (Scale<'_>, Option<&[f32]>),
) {
    let (mean, by) = (s.splat(mean), s.splat(by));
    for at in (0..x.len()).step_by(LANES) {
        let end = (at + LANES).min(x.len());
        let mut v = s.mul(s.sub(load_some(s, &x[at..end]), mean), by);
        if let Some((scale, added)) = scale {
            v = s.mul(v, s.add(load_some(s, &scale[at..end]), s.splat(added)));
        }
        if let Some(shift) = shift {
            v = s.add(v, load_some(s, &shift[at..end]));
        }
        store_some(s, &mut out[at..end], v);
    }
}
