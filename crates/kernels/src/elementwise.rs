//! Passes over whole tensors: activations, sums, rotary positions, layouts.

use crate::error::{Result, check_dim, check_len, check_positive, volume};
use crate::gemm::Activation;
use crate::pool::parallel_chunks;
use crate::simd::{Element, Kernel, LANES, Simd, View, ViewMut, dispatch, load_some, store_some};

/// Numbers of one task.
const TASK: usize = 1 << 15;

/// `out[i] = activation(x[i])`.
///
/// # Errors
/// If the lengths differ.
pub fn activate<T: Element>(x: &[T], activation: Activation, out: &mut [T]) -> Result<()> {
    check_len("output", out.len(), x.len())?;
    match (T::view(x), T::view_mut(out)) {
        (View::F32(x), ViewMut::F32(out)) => each(out, |at, out| {
            dispatch(Activate {
                x: &x[at..][..out.len()],
                activation,
                out,
            });
        }),
        (View::Bf16(x), ViewMut::Bf16(out)) => each(out, |at, out| {
            dispatch(Activate {
                x: &x[at..][..out.len()],
                activation,
                out,
            });
        }),
        _ => {}
    }
    Ok(())
}

/// `out[i] = a[i] + b[i]`.
///
/// # Errors
/// If the lengths differ.
pub fn add<T: Element>(a: &[T], b: &[T], out: &mut [T]) -> Result<()> {
    check_len("second term", b.len(), a.len())?;
    check_len("output", out.len(), a.len())?;
    match (T::view(a), T::view(b), T::view_mut(out)) {
        (View::F32(a), View::F32(b), ViewMut::F32(out)) => {
            each(out, |at, out| {
                dispatch(Add {
                    a: &a[at..][..out.len()],
                    b: &b[at..][..out.len()],
                    out,
                });
            });
        }
        (View::Bf16(a), View::Bf16(b), ViewMut::Bf16(out)) => {
            each(out, |at, out| {
                dispatch(Add {
                    a: &a[at..][..out.len()],
                    b: &b[at..][..out.len()],
                    out,
                });
            });
        }
        _ => {}
    }
    Ok(())
}

/// `out[i] = x[i]` in another type, rounded to nearest even.
///
/// # Errors
/// If the lengths differ.
pub fn convert<A: Element, B: Element>(x: &[A], out: &mut [B]) -> Result<()> {
    check_len("output", out.len(), x.len())?;
    match (A::view(x), B::view_mut(out)) {
        (View::F32(x), ViewMut::F32(out)) => out.copy_from_slice(x),
        (View::Bf16(x), ViewMut::Bf16(out)) => out.copy_from_slice(x),
        (View::F32(x), ViewMut::Bf16(out)) => each(out, |at, out| {
            dispatch(Convert {
                x: &x[at..][..out.len()],
                out,
            });
        }),
        (View::Bf16(x), ViewMut::F32(out)) => each(out, |at, out| {
            dispatch(Convert {
                x: &x[at..][..out.len()],
                out,
            });
        }),
    }
    Ok(())
}

fn each<T: Send>(out: &mut [T], run: impl Fn(usize, &mut [T]) + Sync) {
    parallel_chunks(out, TASK, |index, out| run(index * TASK, out));
}

struct Activate<'a, T> {
    x: &'a [T],
    activation: Activation,
    out: &'a mut [T],
}

impl<T: Element> Kernel for Activate<'_, T> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (x, out) in self.x.chunks(LANES).zip(self.out.chunks_mut(LANES)) {
            store_some(s, out, self.activation.apply(s, load_some(s, x)));
        }
    }
}

struct Add<'a, T> {
    a: &'a [T],
    b: &'a [T],
    out: &'a mut [T],
}

impl<T: Element> Kernel for Add<'_, T> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for ((a, b), out) in self
            .a
            .chunks(LANES)
            .zip(self.b.chunks(LANES))
            .zip(self.out.chunks_mut(LANES))
        {
            store_some(s, out, s.add(load_some(s, a), load_some(s, b)));
        }
    }
}

struct Convert<'a, A, B> {
    x: &'a [A],
    out: &'a mut [B],
}

impl<A: Element, B: Element> Kernel for Convert<'_, A, B> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (x, out) in self.x.chunks(LANES).zip(self.out.chunks_mut(LANES)) {
            store_some(s, out, load_some(s, x));
        }
    }
}

/// Gated activation of an unpacked product: `x` is (rows, 2 * half), `out[r, i] = x[r, i] * activation(x[r, half + i])`.
///
/// # Errors
/// If the lengths do not fit.
pub fn gate<T: Element>(x: &[T], half: usize, activation: Activation, out: &mut [T]) -> Result<()> {
    check_positive("half", half)?;
    check_dim("rest of a row", out.len() % half, 0)?;
    check_len("input", x.len(), volume(&[out.len(), 2]))?;
    match (T::view(x), T::view_mut(out)) {
        (View::F32(x), ViewMut::F32(out)) => gate_rows(x, half, activation, out),
        (View::Bf16(x), ViewMut::Bf16(out)) => gate_rows(x, half, activation, out),
        _ => {}
    }
    Ok(())
}

fn gate_rows<T: Element>(x: &[T], half: usize, activation: Activation, out: &mut [T]) {
    let rows = (TASK / half).max(1);
    parallel_chunks(out, rows * half, |task, out| {
        dispatch(Gate {
            x: &x[task * rows * 2 * half..][..2 * out.len()],
            half,
            activation,
            out,
        });
    });
}

struct Gate<'a, T> {
    x: &'a [T],
    half: usize,
    activation: Activation,
    out: &'a mut [T],
}

impl<T: Element> Kernel for Gate<'_, T> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (x, out) in self
            .x
            .chunks_exact(2 * self.half)
            .zip(self.out.chunks_exact_mut(self.half))
        {
            let (values, gates) = x.split_at(self.half);
            for ((v, g), out) in values.chunks(LANES).zip(gates.chunks(LANES)).zip(out.chunks_mut(LANES)) {
                store_some(
                    s,
                    out,
                    s.mul(load_some(s, v), self.activation.apply(s, load_some(s, g))),
                );
            }
        }
    }
}

/// Rotary positions on neighbouring pairs, `x` being (batch, tokens, heads * width): pair `i` of a token's head turns by the
/// angle whose cosine and sine are `cos[token, i]` and `sin[token, i]`, each (tokens, width / 2). With `norm`, each head is first
/// divided by the root of its mean square (plus the eps) and multiplied by the scale, (width): FLUX's queries and keys.
///
/// # Errors
/// If a slice does not fit the dimensions.
pub fn rope<T: Element>(
    x: &[T],
    (batch, tokens, heads, width): (usize, usize, usize, usize),
    (cos, sin): (&[f32], &[f32]),
    norm: Option<(&[f32], f32)>,
    out: &mut [T],
) -> Result<()> {
    check_dim("odd part of a head", width % 2, 0)?;
    check_len("input", x.len(), volume(&[batch, tokens, heads, width]))?;
    check_len("output", out.len(), x.len())?;
    check_len("cosines", cos.len(), volume(&[tokens, width / 2]))?;
    check_len("sines", sin.len(), cos.len())?;
    if let Some((scale, _)) = norm {
        check_len("norm", scale.len(), width)?;
    }
    if x.is_empty() {
        return Ok(());
    }
    let turn = Turn {
        cos,
        sin,
        norm,
        width,
        heads,
        tokens,
    };
    match (T::view(x), T::view_mut(out)) {
        (View::F32(x), ViewMut::F32(out)) => turn.all(x, out),
        (View::Bf16(x), ViewMut::Bf16(out)) => turn.all(x, out),
        _ => {}
    }
    Ok(())
}

#[derive(Clone, Copy)]
struct Turn<'a> {
    cos: &'a [f32],
    sin: &'a [f32],
    norm: Option<(&'a [f32], f32)>,
    width: usize,
    heads: usize,
    tokens: usize,
}

impl Turn<'_> {
    fn all<T: Element>(self, x: &[T], out: &mut [T]) {
        let row = self.heads * self.width;
        let rows = (TASK / row).max(1);
        parallel_chunks(out, rows * row, |task, out| {
            dispatch(TurnRows {
                turn: self,
                x: &x[task * rows * row..][..out.len()],
                first: task * rows,
                out,
            });
        });
    }
}

struct TurnRows<'a, T> {
    turn: Turn<'a>,
    x: &'a [T],
    first: usize,
    out: &'a mut [T],
}

impl<T: Element> Kernel for TurnRows<'_, T> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Turn {
            cos,
            sin,
            norm,
            width,
            heads,
            tokens,
        } = self.turn;
        let mut both = vec![0f32; 2 * width];
        for (i, (x, out)) in self
            .x
            .chunks_exact(heads * width)
            .zip(self.out.chunks_exact_mut(heads * width))
            .enumerate()
        {
            let token = (self.first + i) % tokens;
            let (c, t) = both.split_at_mut(width);
            for pair in 0..width / 2 {
                let (cos, sin) = (cos[token * width / 2 + pair], sin[token * width / 2 + pair]);
                c[2 * pair] = cos;
                c[2 * pair + 1] = cos;
                t[2 * pair] = -sin;
                t[2 * pair + 1] = sin;
            }
            for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
                let by = match norm {
                    Some((_, eps)) => {
                        let mut sum = s.zero();
                        for x in x.chunks(LANES) {
                            let x = load_some(s, x);
                            sum = s.fma(x, x, sum);
                        }
                        1.0 / (s.sum(sum) / width as f32 + eps).sqrt()
                    }
                    None => 1.0,
                };
                for at in (0..width).step_by(LANES) {
                    let end = (at + LANES).min(width);
                    let mut v = load_some(s, &x[at..end]);
                    if let Some((scale, _)) = norm {
                        v = s.mul(s.mul(v, s.splat(by)), load_some(s, &scale[at..end]));
                    }
                    let turned = s.mul(s.swap_pairs(v), load_some(s, &t[at..end]));
                    store_some(s, &mut out[at..end], s.fma(v, load_some(s, &c[at..end]), turned));
                }
            }
        }
    }
}

/// Every pixel four times: (batch, height, width, channels) to (batch, 2 height, 2 width, channels).
///
/// # Errors
/// If a length does not fit.
pub fn upsample2x<T: Element>(
    x: &[T],
    (batch, height, width, channels): (usize, usize, usize, usize),
    out: &mut [T],
) -> Result<()> {
    check_len("picture", x.len(), volume(&[batch, height, width, channels]))?;
    check_len("output", out.len(), volume(&[x.len(), 4]))?;
    let row = width * channels;
    parallel_chunks(out, 4 * row, |index, out| {
        let (upper, lower) = out.split_at_mut(2 * row);
        for (pair, pixel) in upper
            .chunks_exact_mut(2 * channels)
            .zip(x[index * row..][..row].chunks_exact(channels))
        {
            let (left, right) = pair.split_at_mut(channels);
            left.copy_from_slice(pixel);
            right.copy_from_slice(pixel);
        }
        lower.copy_from_slice(upper);
    });
    Ok(())
}

/// Rows of `a` and rows of `b` side by side: (rows, wa) and (rows, wb) to (rows, wa + wb).
///
/// # Errors
/// If a length does not fit.
pub fn concat<T: Element>(a: &[T], b: &[T], (wa, wb): (usize, usize), out: &mut [T]) -> Result<()> {
    check_positive("width", wa.min(wb))?;
    check_dim("rest of a row", a.len() % wa, 0)?;
    let rows = a.len() / wa;
    check_len("right rows", b.len(), volume(&[rows, wb]))?;
    check_len("output", out.len(), volume(&[rows, wa + wb]))?;
    let width = wa + wb;
    let some = (TASK / width).max(1);
    parallel_chunks(out, some * width, |task, out| {
        for (i, out) in out.chunks_exact_mut(width).enumerate() {
            let row = task * some + i;
            out[..wa].copy_from_slice(&a[row * wa..][..wa]);
            out[wa..].copy_from_slice(&b[row * wb..][..wb]);
        }
    });
    Ok(())
}

/// (batch, channels, pixels) to (batch, pixels, channels), or back with the two counts exchanged.
///
/// # Errors
/// If a length does not fit.
pub fn transpose<T: Element>(x: &[T], (batch, rows, columns): (usize, usize, usize), out: &mut [T]) -> Result<()> {
    check_len("input", x.len(), volume(&[batch, rows, columns]))?;
    check_len("output", out.len(), x.len())?;
    if x.is_empty() {
        return Ok(());
    }
    const BLOCK: usize = 32;
    let bands = columns.div_ceil(BLOCK);
    let shared = crate::pool::SharedMut::new(out);
    crate::pool::parallel_for(batch * bands, |task| {
        let (image, band) = (task / bands, task % bands);
        let (first, last) = (band * BLOCK, (band * BLOCK + BLOCK).min(columns));
        let x = &x[image * rows * columns..][..rows * columns];
        // SAFETY: the output rows of different tasks do not overlap.
        let out = unsafe { shared.piece((image * columns + first) * rows, (image * columns + last) * rows) };
        for row in (0..rows).step_by(BLOCK) {
            for column in first..last {
                for r in row..(row + BLOCK).min(rows) {
                    out[(column - first) * rows + r] = x[r * columns + column];
                }
            }
        }
    });
    Ok(())
}
