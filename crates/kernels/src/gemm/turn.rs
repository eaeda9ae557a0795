//! Rows of a weight into a panel, sixteen of them at a time.

use crate::gemm::PANEL;
use crate::simd::{Element, Kernel, LANES, Words, dispatch, inlined};

/// Groups of channels that are moved at a time: as many as there are words in what is loaded of each row.
const GROUPS: usize = 4;

/// Moves 32 rows of `taps * channels` numbers, the taps innermost, into a panel `[taps][channels / G][32][G]` of groups as wide as a
/// word: one f32 or two bf16. Returns whether it knows these sizes; if not, nothing was done.
pub(super) fn turn<T: Element>(rows: &[T], taps: usize, out: &mut [T]) -> bool {
    let inputs = rows.len() / PANEL;
    let per_word = size_of::<u32>() / size_of::<T>();
    let groups = inputs / taps / per_word;
    if inputs * PANEL != rows.len()
        || groups * taps * per_word != inputs
        || !groups.is_multiple_of(GROUPS)
        || out.len() < rows.len()
    {
        return false;
    }
    match taps {
        1 => dispatch(Turn::<T, 1> { rows, groups, out }),
        9 => dispatch(Turn::<T, 9> { rows, groups, out }),
        _ => return false,
    }
    true
}

struct Turn<'a, T, const TAPS: usize> {
    rows: &'a [T],
    groups: usize,
    out: &'a mut [T],
}

impl<T: Element, const TAPS: usize> Kernel for Turn<'_, T, TAPS> {
    type Out = ();
    #[inline(always)]
    fn run<S: Words>(self, s: S) {
        let stride = size_of_val(self.rows) / PANEL;
        let out = self.out.as_mut_ptr().cast::<f32>();
        for first in (0..self.groups).step_by(GROUPS) {
            for half in [0, LANES] {
                let rows = self.rows.as_ptr().cast::<u8>();
                // Word `i` of what these groups have, of sixteen rows. (`array::from_fn` would not be inlined.)
                let mut words = [[s.splat_word(0); 4]; TAPS];
                for (part, words) in words.iter_mut().enumerate() {
                    let at = half * stride + (first * TAPS + part * 4) * size_of::<u32>();
                    // SAFETY: `turn` has checked that rows are `groups * TAPS` words long, and there are 32.
                    *words = unsafe { s.load_rows(rows.add(at), stride) };
                }
                let word = inlined(
                    #[inline(always)]
                    |index: usize| words[index / 4][index % 4],
                );
                for group in 0..GROUPS {
                    for tap in 0..TAPS {
                        let number = if T::IS_BF16 && TAPS > 1 {
                            pair_of_tap(s, &word, group * TAPS, TAPS, tap)
                        } else {
                            word(group * TAPS + tap)
                        };
                        let line = tap * self.groups + first + group;
                        // SAFETY: `out` holds `TAPS * groups` lines of 32 words, and `line` is one of them.
                        unsafe { s.store(out.add(line * PANEL + half), s.as_numbers(number)) };
                    }
                }
            }
        }
    }
}

/// The numbers of one tap in two channels that follow each other, in words that begin at `first`: the first channel has `taps`
/// numbers, an odd number of them, and then comes the second.
#[inline(always)]
fn pair_of_tap<S: Words>(s: S, word: &impl Fn(usize) -> S::W, first: usize, taps: usize, tap: usize) -> S::W {
    let (a, b) = (word(first + tap / 2), word(first + (taps + tap) / 2));
    if tap.is_multiple_of(2) {
        s.or(s.mask(a, 0xffff), s.mask(b, 0xffff_0000))
    } else {
        s.or(s.right(a, 16), s.left(b, 16))
    }
}
