//! f32 numbers as the sum of two bf16, for the tiles that multiply bf16 alone.
//!
//! `x = high + low`: `high` is x to the nearest bf16, `low` what is missing to the nearest bf16, 17 bits of 24 together. Of a
//! product of two such sums the tiles make three parts, `high high + high low + low high`; what is left out is below 2^-16 of
//! the product. Summed over a depth of thousands that is as far off as a plain running sum in f32. Numbers of f16 and bf16
//! files are held exactly.

use half::bf16;

use super::PANEL;
#[cfg(target_arch = "x86_64")]
use crate::simd::LANES;
use crate::simd::{Kernel, Simd, dispatch};

/// Rows of a panel that one step of the tiles takes.
const STEP: usize = 32;
/// Numbers of a step, as pairs of bf16: `high` `[16][32][2]`, then `low`.
pub(super) const STEP_LEN: usize = 2 * STEP * PANEL;

/// Turns a panel `[k][32]`, k a multiple of 32, into steps of pairs in its own memory.
pub(super) fn split_panel(panel: &mut [f32]) {
    dispatch(SplitPanel { panel });
}

struct SplitPanel<'a> {
    panel: &'a mut [f32],
}

impl Kernel for SplitPanel<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        for step in self.panel.as_chunks_mut::<{ STEP * PANEL }>().0 {
            let numbers = *step;
            let (high, low) = step.split_at_mut(STEP * PANEL / 2);
            let lines = high
                .as_chunks_mut::<PANEL>()
                .0
                .iter_mut()
                .zip(low.as_chunks_mut::<PANEL>().0);
            let rows = numbers.as_chunks::<PANEL>().0.as_chunks::<2>().0;
            for ((high, low), [even, odd]) in lines.zip(rows) {
                for lane in 0..PANEL {
                    let ((h0, l0), (h1, l1)) = (halves(even[lane]), halves(odd[lane]));
                    high[lane] = f32::from_bits(h0 >> 16 | h1);
                    low[lane] = f32::from_bits(l0 >> 16 | l1);
                }
            }
        }
    }
}

/// Both bf16 of a number, as the upper halves of f32 bits.
#[inline(always)]
fn halves(x: f32) -> (u32, u32) {
    let high = nearest(x);
    let low = nearest(x - f32::from_bits(high));
    let finite = high & 0x7f80_0000 != 0x7f80_0000;
    (high, if finite { low } else { 0 })
}

#[inline(always)]
fn nearest(x: f32) -> u32 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) & 0xffff_0000;
    let infinite_or_nan = bits & 0x7f80_0000 == 0x7f80_0000;
    let kept = bits & 0xffff_0000 | if bits & 0xffff == 0 { 0 } else { 0x40_0000 };
    if infinite_or_nan { kept } else { rounded }
}

/// The panels of split weights as what they hold.
pub(super) fn as_bf16(panels: &[f32]) -> &[bf16] {
    // SAFETY: two bf16 take the place of an f32, and any bits are valid.
    unsafe { std::slice::from_raw_parts(panels.as_ptr().cast(), 2 * panels.len()) }
}

/// Number `(k, lane)` of a panel.
pub(super) fn number(panel: &[bf16], k: usize, lane: usize) -> f32 {
    let at = k / STEP * STEP_LEN + k % STEP / 2 * 2 * PANEL + 2 * lane + k % 2;
    panel[at].to_f32() + panel[at + STEP_LEN / 2].to_f32()
}

/// Splits `from` into slices of its length.
#[cfg(target_arch = "x86_64")]
pub(super) struct Split<'a> {
    pub(super) from: &'a [f32],
    pub(super) high: &'a mut [bf16],
    pub(super) low: &'a mut [bf16],
}

#[cfg(target_arch = "x86_64")]
impl Kernel for Split<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        split(s, self.from, self.high, self.low);
    }
}

/// Splits as many numbers as there are.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(super) fn split<S: Simd>(s: S, from: &[f32], high: &mut [bf16], low: &mut [bf16]) {
    let (from, rest) = from.as_chunks::<LANES>();
    let (high, high_rest) = high.as_chunks_mut::<LANES>();
    let (low, low_rest) = low.as_chunks_mut::<LANES>();
    for ((x, high), low) in from.iter().zip(high).zip(low) {
        split_lanes(s, x, high, low);
    }
    if rest.is_empty() {
        return;
    }
    let mut lanes = ([0.0; LANES], [bf16::ZERO; LANES], [bf16::ZERO; LANES]);
    lanes.0[..rest.len()].copy_from_slice(rest);
    split_lanes(s, &lanes.0, &mut lanes.1, &mut lanes.2);
    high_rest[..rest.len()].copy_from_slice(&lanes.1[..rest.len()]);
    low_rest[..rest.len()].copy_from_slice(&lanes.2[..rest.len()]);
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn split_lanes<S: Simd>(s: S, x: &[f32; LANES], high: &mut [bf16; LANES], low: &mut [bf16; LANES]) {
    // SAFETY: the arrays hold 16 numbers each.
    unsafe {
        let x = s.load(x.as_ptr());
        s.store_bf16(high.as_mut_ptr(), x);
        s.store_bf16(low.as_mut_ptr(), s.sub(x, s.load_bf16(high.as_ptr())));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panel_holds_seventeen_bits_of_each_number() {
        let mut panel = vec![0f32; 64 * PANEL];
        let number_at = |k: usize, lane: usize| ((k * 37 + lane * 11) as f32 - 500.0) * 1.234_567e-3;
        for (at, number) in panel.iter_mut().enumerate() {
            *number = number_at(at / PANEL, at % PANEL);
        }
        split_panel(&mut panel);
        for (k, lane) in [(0, 0), (1, 0), (31, 31), (32, 5), (63, 30)] {
            let (got, want) = (number(as_bf16(&panel), k, lane), number_at(k, lane));
            assert!((got - want).abs() <= want.abs() * 2f32.powi(-17), "{got} for {want}");
        }
    }

    #[test]
    fn half_precision_and_what_is_no_number_are_kept() {
        for x in [
            1.0,
            -0.333_251_95,
            65504.0,
            6.103_515_6e-5,
            0.0,
            f32::INFINITY,
            f32::NEG_INFINITY,
        ] {
            let (high, low) = halves(x);
            assert_eq!(f32::from_bits(high) + f32::from_bits(low), x);
        }
        let (high, low) = halves(f32::NAN);
        assert!((f32::from_bits(high) + f32::from_bits(low)).is_nan());
    }
}
