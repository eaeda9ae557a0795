//! Where each number of a weight goes when it is packed, and the loops that move them there.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use super::turn::turn;
use super::{Columns, PANEL};
use crate::buffer::{AlignedVec, Plain, Scratch, carve, carved_bytes};
use crate::error::{KernelError, Result, check_positive, volume};
use crate::pool::parallel_chunks;
use crate::simd::{Element, ViewMut};

/// Groups of channels that are moved at a time: with 32 outputs and nine taps they stay in the first cache.
const BLOCK: usize = 8;

/// Where a weight's numbers go.
#[derive(Clone, Copy)]
pub(super) struct Order {
    outputs: usize,
    inputs: usize,
    columns: Columns,
    taps: usize,
}

impl Order {
    pub(super) fn of((outputs, inputs): (usize, usize), columns: Columns, taps: usize) -> Result<Self> {
        check_positive("outputs", outputs)?;
        check_positive("inputs", inputs)?;
        check_positive("taps", taps)?;
        if columns == Columns::Gated && outputs % 2 == 1 {
            return Err(KernelError::Dimension {
                what: "gated outputs",
                got: outputs,
                want: outputs + 1,
            });
        }
        if inputs % taps != 0 {
            return Err(KernelError::Dimension {
                what: "inputs",
                got: inputs,
                want: inputs.next_multiple_of(taps),
            });
        }
        if volume(&[outputs, inputs, 2]) == usize::MAX {
            return Err(KernelError::Length {
                what: "weights",
                got: 0,
                want: usize::MAX,
            });
        }
        Ok(Self {
            outputs,
            inputs,
            columns,
            taps,
        })
    }

    /// Numbers of a panel, its inputs padded with zeros to a multiple of 32.
    fn panel_len(&self) -> usize {
        self.inputs.next_multiple_of(32) * PANEL
    }

    /// Moves `source` into panels, its inputs in groups of `G`: one (f32) or two (bf16). `settle` gets each panel when it is full.
    pub(super) fn pack<const G: usize, S: Copy + Sync, D: Plain>(
        self,
        source: &[S],
        convert: impl Fn(S) -> D + Sync,
        settle: impl Fn(&mut [D]) + Sync,
    ) -> AlignedVec<D> {
        let panel_len = self.panel_len();
        let mut data = AlignedVec::zeroed(panel_count(self.outputs, self.columns) * panel_len);
        parallel_chunks(&mut data, panel_len, |panel, out| {
            let rows = panel_rows(panel, self.outputs, self.columns)
                .map(|row| row.map(|row| &source[row * self.inputs..(row + 1) * self.inputs]));
            self.fill::<G, S, D>(&rows, out, &convert);
            settle(out);
        });
        data
    }

    /// Fetches the rows of one panel after the other and moves them into their places; `settle` as in [`Self::pack`].
    pub(super) fn pack_fetched<const G: usize, D: Plain + Element, E: Send>(
        self,
        fetch: &(impl Fn(Range<usize>, ViewMut<'_>) -> std::result::Result<(), E> + Sync),
        settle: impl Fn(&mut [D]) + Sync,
    ) -> std::result::Result<AlignedVec<D>, E> {
        let (inputs, panel_len) = (self.inputs, self.panel_len());
        let failed = Mutex::new(None);
        let mut data = AlignedVec::zeroed(panel_count(self.outputs, self.columns) * panel_len);
        parallel_chunks(&mut data, panel_len, |panel, out| {
            if lock(&failed).is_some() {
                return;
            }
            let mut scratch = Scratch::new(carved_bytes::<D>(PANEL * inputs));
            let (fetched, _) = carve::<D>(scratch.area(), PANEL * inputs);
            let rows = panel_rows(panel, self.outputs, self.columns);
            for (lane, _) in rows.iter().enumerate().filter(|(_, row)| row.is_none()) {
                fetched[lane * inputs..(lane + 1) * inputs].fill(D::default());
            }
            for range in runs(&rows) {
                let first = rows[range.start].unwrap_or(0);
                let into = &mut fetched[range.start * inputs..range.end * inputs];
                if let Err(error) = fetch(first..first + range.len(), D::view_mut(into)) {
                    lock(&failed).get_or_insert(error);
                    return;
                }
            }
            let fetched = &*fetched;
            if !turn(fetched, self.taps, out) {
                let rows: [_; PANEL] =
                    std::array::from_fn(|lane| rows[lane].map(|_| &fetched[lane * inputs..(lane + 1) * inputs]));
                self.fill::<G, D, D>(&rows, out, &|x| x);
            }
            settle(out);
        });
        match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(error),
            None => Ok(data),
        }
    }

    /// Moves the rows of a panel into their places, block by block, so that neither side is walked in long steps.
    fn fill<const G: usize, S: Copy, D: Copy>(
        self,
        rows: &[Option<&[S]>; PANEL],
        out: &mut [D],
        convert: &impl Fn(S) -> D,
    ) {
        let channels = self.inputs / self.taps;
        match self.taps {
            _ if !channels.is_multiple_of(G) => self.fill_unpaired::<G, S, D>(rows, out, convert),
            1 => fill_taps::<G, 1, S, D>(rows, out, channels, convert),
            9 => fill_taps::<G, 9, S, D>(rows, out, channels, convert),
            _ => self.fill_unpaired::<G, S, D>(rows, out, convert),
        }
    }

    /// As [`fill_taps`], for windows and channels that are rare.
    fn fill_unpaired<const G: usize, S: Copy, D: Copy>(
        self,
        rows: &[Option<&[S]>; PANEL],
        out: &mut [D],
        convert: &impl Fn(S) -> D,
    ) {
        let channels = self.inputs / self.taps;
        for (lane, row) in rows.iter().enumerate() {
            let Some(row) = row else { continue };
            for (channel, numbers) in row.chunks_exact(self.taps).enumerate() {
                for (tap, number) in numbers.iter().enumerate() {
                    let k = tap * channels + channel;
                    out[(k / G * PANEL + lane) * G + k % G] = convert(*number);
                }
            }
        }
    }
}

/// `channels` is a multiple of `G`.
#[inline]
fn fill_taps<const G: usize, const TAPS: usize, S: Copy, D: Copy>(
    rows: &[Option<&[S]>; PANEL],
    out: &mut [D],
    channels: usize,
    convert: &impl Fn(S) -> D,
) {
    let (groups, _) = out.as_chunks_mut::<G>();
    let (lines, _) = groups.as_chunks_mut::<PANEL>();
    let per_tap = channels / G;
    for first in (0..per_tap).step_by(BLOCK) {
        let last = (first + BLOCK).min(per_tap);
        for (lane, row) in rows.iter().enumerate() {
            let Some(row) = row else { continue };
            let (numbers, _) = row[first * G * TAPS..last * G * TAPS].as_chunks::<TAPS>();
            let (numbers, _) = numbers.as_chunks::<G>();
            for tap in 0..TAPS {
                let lines = &mut lines[tap * per_tap + first..tap * per_tap + last];
                for (line, numbers) in lines.iter_mut().zip(numbers) {
                    line[lane] = std::array::from_fn(|i| convert(numbers[i][tap]));
                }
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn panel_count(outputs: usize, columns: Columns) -> usize {
    match columns {
        Columns::Plain => outputs.div_ceil(PANEL),
        Columns::Gated => (outputs / 2).div_ceil(PANEL / 2),
    }
}

/// Which weight row each lane of a panel holds.
pub(super) fn panel_rows(panel: usize, outputs: usize, columns: Columns) -> [Option<usize>; PANEL] {
    std::array::from_fn(|lane| match columns {
        Columns::Plain => Some(panel * PANEL + lane).filter(|&row| row < outputs),
        Columns::Gated => {
            let half = outputs / 2;
            let column = panel * (PANEL / 2) + lane % (PANEL / 2);
            (column < half).then(|| column + if lane < PANEL / 2 { 0 } else { half })
        }
    })
}

/// Lanes whose rows follow one another in the matrix.
fn runs(rows: &[Option<usize>; PANEL]) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::with_capacity(2);
    for (lane, row) in rows.iter().enumerate() {
        let Some(row) = row else { continue };
        match runs.last_mut() {
            Some(run) if run.end == lane && rows[lane - 1].is_some_and(|before| before + 1 == *row) => run.end += 1,
            _ => runs.push(lane..lane + 1),
        }
    }
    runs
}
