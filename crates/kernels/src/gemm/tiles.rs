//! Products through AMX tiles that read bf16 activations where they lie, or a picture's f32 ones [split](super::split) once.
//!
//! A tile needs sixteen rows at one distance from each other. The rows of a matrix are; so are neighbouring pixels of a picture,
//! whichever tap of a convolution's window looks at them. A task of a convolution therefore copies the part of the picture that
//! it sees, with zeros around it where the picture ends, and reads all its windows from that one copy. Sums stay in the tiles over
//! the whole depth, while the next panel of weights is brought into the second-level cache.

use half::bf16;

use super::PANEL;
use super::epilogue::{Finish, Target};
use super::pack::{Data, PackedWeights};
use super::rows::Rows;
use super::split::{Split, as_bf16};
use crate::amx::{Block, Form, Sums, Tiles};
use crate::buffer::{Scratch, carve, carved_bytes};
use crate::pool::{parallel_for, threads};
use crate::simd::{View, dispatch};

/// Rows of a tile.
const TILE: usize = 16;
/// Sums of two tiles of rows and a panel.
const SUMS: usize = 2 * TILE * PANEL;
/// Depths of a matrix that is read in place: measured, shorter and longer rows are faster copied first.
const DEPTHS: std::ops::Range<usize> = 1024..3072;
/// Rows at a distance of this many numbers, or a multiple, fall into the same few sets of the first-level cache.
const COLLIDING: usize = 1024;
/// Rows of a task, about.
const ROWS: usize = 256;
/// Bytes that a task's part of a picture may take of the second-level cache.
const PART_BYTES: usize = 1280 << 10;

/// Multiplies if the rows can be read where they lie; false if not.
pub(super) fn multiply(
    a: &Rows<'_>,
    weights: &PackedWeights,
    (finish, target): (&Finish<'_>, &Target<'_>),
    first_panel: usize,
) -> bool {
    let (data, split) = match (&weights.data, a.x) {
        (Data::Bf16(data), View::Bf16(_)) => (&**data, false),
        (Data::Split(data), View::F32(_)) => (as_bf16(data), true),
        _ => return false,
    };
    let Some(grid) = Grid::of(a, split) else {
        return false;
    };
    let taps = taps(a, grid.pitch);
    let panels = weights.panels();
    // Short products are cut into runs of panels to feed every thread.
    let wanted = (3 * threads()).div_ceil(grid.tasks()).clamp(1, panels.div_ceil(4));
    let per_run = panels.div_ceil(wanted);
    let runs = panels.div_ceil(per_run);
    let product = Product {
        a,
        data,
        weights,
        finish,
        target,
        first_panel,
        taps: &taps,
    };
    parallel_for(grid.tasks() * runs, |task| {
        let run = task % runs;
        product.task(&grid, task / runs, run * per_run..panels.min((run + 1) * per_run));
    });
    true
}

/// How rows are cut into tasks.
enum Cut {
    /// Runs of rows of a matrix.
    Rows(usize),
    /// Lines and columns of a picture's blocks.
    Blocks(usize, usize),
}

struct Grid<'a> {
    a: &'a Rows<'a>,
    cut: Cut,
    /// Pixels of a line of a task's copy.
    pitch: usize,
    /// Whether activations and weights are two bf16 each.
    split: bool,
}

/// Rows of the sums that are rows of the output.
struct Run {
    at: usize,
    row: usize,
    count: usize,
}

/// What a task multiplies: where its tiles start, and which rows they make.
#[derive(Default)]
struct Left {
    tiles: Vec<usize>,
    runs: Vec<Run>,
}

impl Left {
    /// Adds `count` rows of the newest tile, from its row `from` on. Neighbours within 32 rows become one run.
    fn add_run(&mut self, from: usize, row: usize, count: usize) {
        let at = (self.tiles.len() - 1) * TILE + from;
        match self.runs.last_mut() {
            Some(run) if run.at + run.count == at && run.row + run.count == row && !at.is_multiple_of(2 * TILE) => {
                run.count += count;
            }
            _ => self.runs.push(Run { at, row, count }),
        }
    }
}

impl<'a> Grid<'a> {
    /// `None` if tiles cannot be read from these rows.
    fn of(a: &'a Rows<'a>, split: bool) -> Option<Self> {
        let channels = a.size.2;
        if !channels.is_multiple_of(32) || a.stride != (1, 1) || a.doubling != 0 {
            return None;
        }
        if a.is_dense() {
            let rows = a.count();
            let per_task = rows.div_ceil(rows.div_ceil(ROWS)).next_multiple_of(2 * TILE);
            let in_place = DEPTHS.contains(&channels) && !channels.is_multiple_of(COLLIDING);
            return (rows >= TILE && in_place && !split).then_some(Self {
                a,
                cut: Cut::Rows(per_task),
                pitch: 1,
                split,
            });
        }
        let (height, width) = a.out;
        let lines = |columns: usize| {
            let pixel_bytes = channels * size_of::<bf16>() * if split { 2 } else { 1 };
            let line_bytes = (columns + a.kernel.1 - 1) * pixel_bytes;
            let most = (PART_BYTES / line_bytes).saturating_sub(a.kernel.0 - 1);
            (ROWS / columns).min(most).clamp(1, height)
        };
        let columns = match width {
            w if w.is_multiple_of(2 * TILE) && 2 * lines(2 * TILE) >= lines(TILE) => 2 * TILE,
            w if w.is_multiple_of(TILE) => TILE,
            w => w,
        };
        let lines = height.div_ceil(height.div_ceil(lines(columns)));
        Some(Self {
            a,
            cut: Cut::Blocks(lines, columns),
            pitch: columns + a.kernel.1 - 1,
            split,
        })
    }

    fn tasks(&self) -> usize {
        match self.cut {
            Cut::Rows(rows) => self.a.count().div_ceil(rows),
            Cut::Blocks(lines, columns) => self.a.batch * self.a.out.0.div_ceil(lines) * (self.a.out.1 / columns),
        }
    }

    /// Pixels' numbers of a task's copy, with what the last tile reads beyond it.
    fn part_len(&self) -> usize {
        match self.cut {
            Cut::Rows(_) => 0,
            Cut::Blocks(lines, _) => {
                let pixels = (lines * self.pitch).next_multiple_of(TILE);
                (pixels + (self.a.kernel.0 - 1) * self.pitch + self.a.kernel.1) * self.a.size.2
            }
        }
    }

    fn rows(&self, from: usize, to: usize) -> Left {
        let mut left = Left::default();
        for row in (from..to).step_by(TILE) {
            // The last tile ends with the last row, whatever it shares with the one before.
            let start = row.min(to.saturating_sub(TILE));
            left.tiles.push(start * self.a.size.2);
            left.add_run(row - start, row, TILE.min(to - row));
        }
        left
    }

    /// Copies the part of the picture that block `index` sees.
    fn block(&self, index: usize, (lines, columns): (usize, usize), part: &mut [bf16]) -> Left {
        let (a, pitch) = (self.a, self.pitch);
        let (height, width) = a.out;
        let (across, down) = (width / columns, height.div_ceil(lines));
        let (image, first_line, first_column) = (
            index / (across * down),
            index / across % down * lines,
            index % across * columns,
        );
        let lines = lines.min(height - first_line);
        let channels = a.size.2;
        let (part, low) = part.split_at_mut(self.part_len());
        for (line, to) in part
            .chunks_exact_mut(pitch * channels)
            .take(lines + a.kernel.0 - 1)
            .enumerate()
        {
            let low = if self.split {
                &mut low[line * pitch * channels..][..pitch * channels]
            } else {
                &mut []
            };
            copy_line(a, (image, first_line + line, first_column), to, low);
        }
        let mut left = Left::default();
        let first_row = (image * height + first_line) * width + first_column;
        if columns.is_multiple_of(TILE) {
            for (line, column) in (0..lines).flat_map(|line| (0..columns).step_by(TILE).map(move |c| (line, c))) {
                left.tiles.push((line * pitch + column) * channels);
                left.add_run(0, first_row + line * width + column, TILE);
            }
            return left;
        }
        // Tiles run on from line to line; the rows between two lines are made and not used.
        for first in (0..(lines - 1) * pitch + columns).step_by(TILE) {
            left.tiles.push(first * channels);
            let mut from = 0;
            while from < TILE {
                let (line, column) = ((first + from) / pitch, (first + from) % pitch);
                if column < columns && line < lines {
                    let count = (columns - column).min(TILE - from);
                    left.add_run(from, first_row + line * width + column, count);
                }
                from += pitch - column;
            }
        }
        left
    }
}

/// One line of a task's copy: what the windows of the output pixels from (`line` - top row of the window, `column`) on see. Of
/// f32 pictures, `low` gets what `to` rounds away.
fn copy_line(a: &Rows<'_>, (image, line, column): (usize, usize, usize), to: &mut [bf16], low: &mut [bf16]) {
    let (height, width, channels) = a.size;
    let y = line.wrapping_sub(a.before.0);
    if y >= height {
        to.fill(bf16::ZERO);
        return low.fill(bf16::ZERO);
    }
    let pixels = to.len() / channels;
    let left = a.before.1.saturating_sub(column).min(pixels);
    let first = (column + left).saturating_sub(a.before.1).min(width);
    let held = (pixels - left).min(width - first);
    let values = left * channels..(left + held) * channels;
    let start = ((image * height + y) * width + first) * channels;
    for line in [&mut *to, &mut *low] {
        if !line.is_empty() {
            line[..values.start].fill(bf16::ZERO);
            line[values.end..].fill(bf16::ZERO);
        }
    }
    match a.x {
        View::Bf16(x) => to[values.clone()].copy_from_slice(&x[start..][..values.len()]),
        View::F32(x) => dispatch(Split {
            from: &x[start..][..values.len()],
            high: &mut to[values.clone()],
            low: &mut low[values],
        }),
    }
}

/// Where each tap of the window reads, in numbers behind a tile's start.
fn taps(a: &Rows<'_>, pitch: usize) -> Vec<usize> {
    let (height, width) = a.kernel;
    (0..height)
        .flat_map(|y| (0..width).map(move |x| (y * pitch + x) * a.size.2))
        .collect()
}

struct Product<'a> {
    a: &'a Rows<'a>,
    data: &'a [bf16],
    weights: &'a PackedWeights,
    finish: &'a Finish<'a>,
    target: &'a Target<'a>,
    /// Of the output, that the weights' first panel belongs to.
    first_panel: usize,
    taps: &'a [usize],
}

impl Product<'_> {
    fn task(&self, grid: &Grid<'_>, index: usize, panels: std::ops::Range<usize>) {
        let room = grid.part_len() * if grid.split { 2 } else { 1 };
        let mut scratch = Scratch::new(2 * carved_bytes::<f32>(SUMS) + carved_bytes::<bf16>(room));
        let (sums, rest) = carve::<f32>(scratch.area(), 2 * SUMS);
        let (part, _) = carve::<bf16>(rest, room);
        let (left, base) = match grid.cut {
            Cut::Rows(rows) => {
                let (from, to) = (index * rows, self.a.count().min((index + 1) * rows));
                let View::Bf16(x) = self.a.x else { return };
                (grid.rows(from, to), x.as_ptr())
            }
            Cut::Blocks(lines, columns) => (grid.block(index, (lines, columns), part), part.as_ptr()),
        };
        let low = grid.split.then(|| grid.part_len() * size_of::<bf16>());
        // SAFETY: this module is used where tiles are available.
        let tiles = unsafe { Tiles::configure() };
        let (first, second) = sums.split_at_mut(SUMS);
        let sums: [*mut f32; 2] = [first.as_mut_ptr(), second.as_mut_ptr()];
        // Each block is finished while the tiles work on the next one.
        let mut waiting: Option<(usize, &[Run], *const f32)> = None;
        for panel in panels {
            let mut runs = left.runs.as_slice();
            for (pair, starts) in left.tiles.chunks(2).enumerate() {
                let sums = sums[pair % 2];
                // SAFETY: the tiles lie in the activations or in the copy, and 32 rows of sums exist.
                unsafe { self.multiply(&tiles, (base, low), starts, (panel, pair), sums) };
                let (here, later) = runs.split_at(runs.partition_point(|run| run.at < (pair + 1) * 2 * TILE));
                runs = later;
                if let Some(block) = waiting.replace((panel, here, sums)) {
                    self.finish(block);
                }
            }
            if let Some(block) = waiting.take() {
                self.finish(block);
            }
        }
    }

    /// Makes the sums of one or two tiles of rows and a panel. `low` is how many bytes behind the high parts of activations the
    /// low ones lie, if they are split.
    ///
    /// # Safety
    /// The tiles that start `starts` numbers behind `base` must be readable for all taps, and 32 rows of 32 sums writable.
    #[inline]
    unsafe fn multiply(
        &self,
        tiles: &Tiles,
        (base, low): (*const bf16, Option<usize>),
        starts: &[usize],
        (panel, pair): (usize, usize),
        sums: *mut f32,
    ) {
        let columns = self.weights.outputs() - (panel * PANEL).min(self.weights.outputs());
        let form = match starts.len() {
            1 => Form::Upper,
            _ if columns <= PANEL / 2 && !self.weights.is_gated() => Form::Left,
            _ => Form::Full,
        };
        let (upper, lower) = (starts[0], starts[starts.len() - 1]);
        let channels = self.a.size.2;
        let (inputs, steps) = (self.weights.inputs(), channels / 32);
        let parts = if low.is_some() { 2 } else { 1 };
        let weights = &self.data[panel * inputs * PANEL * parts..][..inputs * PANEL * parts];
        let ahead = 128 * parts;
        let next = weights.as_ptr_range().end.wrapping_add(pair * inputs / 32 * ahead);
        tiles.zero();
        for (tap, offset) in self.taps.iter().enumerate() {
            // SAFETY: the caller's promise; the panel holds the whole depth.
            unsafe {
                let product = Block {
                    a: base.add(upper + offset),
                    a_lower: base.add(lower + offset),
                    a_row: channels * size_of::<bf16>(),
                    a_step: 64,
                    b: weights[tap * channels * PANEL * parts..].as_ptr(),
                    b_row: 4 * PANEL,
                    b_step: 64 * PANEL,
                    steps,
                    next: next.wrapping_add(tap * steps * ahead),
                };
                match low {
                    Some(low) => tiles.add_split(form, product, low),
                    None => tiles.add(form, product),
                }
            }
        }
        // SAFETY: the caller's promise.
        unsafe {
            tiles.store(
                form,
                Sums {
                    at: sums,
                    row: 4 * PANEL,
                },
            );
        }
    }

    /// Finishes the runs of one block of 32 rows, whose sums are complete.
    #[inline]
    fn finish(&self, (panel, runs, sums): (usize, &[Run], *const f32)) {
        for run in runs {
            self.a.runs(run.row, run.count, |from, place| {
                // SAFETY: the sums are 32 rows; these rows and panels are this task's alone.
                unsafe {
                    let sums = sums.add((run.at % (2 * TILE) + from) * PANEL);
                    self.target.finish(self.finish, sums, place, self.first_panel + panel);
                }
            });
        }
    }
}
