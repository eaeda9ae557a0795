//! Cache blocking: which rows, columns and depths are multiplied together, and in what order.
//!
//! A task is a block of rows times a run of panels. For each depth block it reads or gathers its rows once, then goes panel by
//! panel. With several depth blocks the sums wait in an f32 buffer; the last one finishes them. Block sizes depend on the
//! dimensions alone where they decide the order of a sum, so results do not depend on the number of threads.

#[cfg(target_arch = "x86_64")]
use half::bf16;

use super::PANEL;
use super::epilogue::{Finish, Target};
use super::gather::GatherF32;
#[cfg(target_arch = "x86_64")]
use super::gather::{GatherBf16, Order};
use super::micro::{self, PanelPtr};
use super::pack::{Data, PackedWeights};
use super::rows::Rows;
use crate::buffer::{Scratch, carve, carved_bytes};
use crate::error::{Result, check_len, volume};
#[cfg(target_arch = "x86_64")]
use crate::isa::{Isa, isa};
use crate::pool::{parallel_for, threads};
use crate::simd::{LANES, View, ViewMut, dispatch};

/// How the sums are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Method {
    /// Fused multiply-adds on f32.
    F32,
    /// AVX512-BF16 dot products.
    #[cfg(target_arch = "x86_64")]
    Dot,
    /// AMX tiles.
    #[cfg(target_arch = "x86_64")]
    Tiles,
}

#[cfg(target_arch = "x86_64")]
fn method(weights: &PackedWeights) -> Method {
    match (&weights.data, isa()) {
        (Data::Bf16(_), Isa::Amx) | (Data::Split(_), _) => Method::Tiles,
        (Data::Bf16(_), Isa::Avx512Bf16) => Method::Dot,
        _ => Method::F32,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn method(_: &PackedWeights) -> Method {
    Method::F32
}

/// Depth from which on tiles multiply a task's rows as deep as the second-level cache holds them: sums then wait so seldom that
/// they may do so further away.
const DEEP: usize = 1024;
/// Bytes of such rows.
const ROWS_BYTES: usize = 1 << 20;

/// Rows of a block of multiply-adds or dot products.
const ROWS_UNIT: usize = 12;
/// What the rows of such a task are a multiple of: fewer at once do not keep the units busy.
const ROWS_STEP: usize = 4;

/// Sizes of the blocks of one product.
#[derive(Debug, Clone, Copy)]
struct Plan {
    method: Method,
    /// Rows of a task.
    rows: usize,
    /// Panels of a task.
    panels: usize,
    /// Columns of A gathered at a time; a multiple of 32.
    depth: usize,
}

impl Plan {
    fn new(method: Method, rows: usize, weights: &PackedWeights) -> Self {
        let inner = weights.inputs().next_multiple_of(32);
        let (most_rows, most_depth, unit) = match method {
            Method::F32 => (192, 768, ROWS_UNIT),
            #[cfg(target_arch = "x86_64")]
            Method::Dot => (192, 1024, ROWS_UNIT),
            #[cfg(target_arch = "x86_64")]
            Method::Tiles if inner < DEEP => (256, 512, 32),
            #[cfg(target_arch = "x86_64")]
            Method::Tiles => (256, 3 * DEEP, 32),
        };
        let depth = inner.div_ceil(inner.div_ceil(most_depth)).next_multiple_of(32);
        let total_panels = weights.panels();
        let (most_rows, most_panels) = if depth > DEEP {
            let parts = if matches!(weights.data, Data::Split(_)) { 2 } else { 1 };
            (most_rows.min(ROWS_BYTES / 2 / parts / depth), usize::MAX)
        } else if total_panels > 20 && depth < inner {
            (most_rows * 2 / 3, 40)
        } else {
            (most_rows, 40)
        };
        let rows_per_task = rows.div_ceil(rows.div_ceil(most_rows)).next_multiple_of(unit);
        let row_tasks = rows.div_ceil(rows_per_task);
        // Wide products are cut so that the waiting sums stay in the second-level cache, short ones to feed every thread.
        let wanted = (3 * threads()).div_ceil(row_tasks).min(total_panels.div_ceil(4));
        let runs = wanted.max(total_panels.div_ceil(most_panels)).max(1);
        let (rows, panels) = if unit == ROWS_UNIT {
            even((rows, row_tasks), (total_panels, runs), threads())
        } else {
            (rows_per_task, total_panels.div_ceil(runs))
        };
        Self {
            method,
            rows,
            panels,
            depth,
        }
    }
}

/// Rows and panels of a task, so that the thread with the most work has as little as may be: from `row_tasks` blocks of rows and
/// `runs` runs of panels on, whatever cuts no more than twice as fine.
fn even((rows, row_tasks): (usize, usize), (panels, runs): (usize, usize), threads: usize) -> (usize, usize) {
    let work = |&(rows_each, panels_each): &(usize, usize)| {
        let tasks = rows.div_ceil(rows_each) * panels.div_ceil(panels_each);
        // Each task reads its rows once, about as long as it takes to multiply them with one panel.
        tasks.div_ceil(threads) * rows_each * (panels_each + 1)
    };
    let heights = (row_tasks..=row_tasks * 2).map(|tasks| rows.div_ceil(tasks).next_multiple_of(ROWS_STEP));
    heights
        .flat_map(|rows| (runs..=(runs * 2).min(panels)).map(move |runs| (rows, panels.div_ceil(runs))))
        .min_by_key(work)
        .unwrap_or((rows, panels))
}

/// `out = epilogue(a w^T)`.
pub(crate) fn multiply(a: &Rows<'_>, weights: &PackedWeights, finish: &Finish<'_>, out: ViewMut<'_>) -> Result<()> {
    multiply_columns(a, weights, (0, weights.out_columns()), finish, out)
}

/// The columns of the output from `first` on, a multiple of 32; the output has `columns` in all.
pub(crate) fn multiply_columns(
    a: &Rows<'_>,
    weights: &PackedWeights,
    (first, columns): (usize, usize),
    finish: &Finish<'_>,
    out: ViewMut<'_>,
) -> Result<()> {
    let rows = a.count();
    check_len("output", out.len(), volume(&[a.out_rows(), columns]))?;
    finish.check(a.out_rows(), columns, weights.is_gated())?;
    if rows == 0 {
        return Ok(());
    }
    let target = Target::new(out, columns, weights.is_gated());
    let method = method(weights);
    #[cfg(target_arch = "x86_64")]
    if method == Method::Tiles && super::tiles::multiply(a, weights, (finish, &target), first / PANEL) {
        return Ok(());
    }
    let plan = Plan::new(method, rows, weights);
    let row_tasks = rows.div_ceil(plan.rows);
    let runs = weights.panels().div_ceil(plan.panels);
    let first_panel = first / PANEL;
    parallel_for(row_tasks * runs, |task| {
        let (block, run) = (task / runs, task % runs);
        let rows = (block * plan.rows, ((block + 1) * plan.rows).min(rows));
        let panels = (run * plan.panels, ((run + 1) * plan.panels).min(weights.panels()));
        let task = Task {
            a,
            weights,
            finish,
            target: &target,
            plan,
            rows,
            panels,
            first_panel,
        };
        task.run();
    });
    Ok(())
}

struct Task<'a> {
    a: &'a Rows<'a>,
    weights: &'a PackedWeights,
    finish: &'a Finish<'a>,
    target: &'a Target<'a>,
    plan: Plan,
    rows: (usize, usize),
    panels: (usize, usize),
    /// Of the output, that the weights' first panel belongs to.
    first_panel: usize,
}

impl Task<'_> {
    fn run(&self) {
        match self.plan.method {
            Method::F32 => self.run_f32(),
            #[cfg(target_arch = "x86_64")]
            Method::Dot => self.run_dot(),
            #[cfg(target_arch = "x86_64")]
            Method::Tiles => self.run_tiles(),
        }
    }
}

/// One step of a task: a depth block against one panel.
struct Step {
    panel: usize,
    k0: usize,
    /// Where the sums of this block are kept.
    sums: *mut f32,
    first: bool,
}

impl Task<'_> {
    /// Walks the depth blocks and panels. `load(k0, k1)` makes the rows ready, `block(step, from, rows)` adds a few rows' sums
    /// at `step.sums`; each that is complete is finished while it is in cache and the next one is under way.
    fn walk(
        &self,
        kept: &mut [f32],
        unit: usize,
        mut load: impl FnMut(usize, usize),
        block: impl Fn(&Step, usize, usize),
    ) {
        let inner = self.weights.inputs();
        let (first_row, rows) = (self.rows.0, self.rows.1 - self.rows.0);
        let single = inner <= self.plan.depth;
        // Sums that wait are read while others are written: all through this one pointer.
        let (sums, room) = (kept.as_mut_ptr(), kept.len());
        for k0 in (0..inner).step_by(self.plan.depth) {
            let k1 = (k0 + self.plan.depth).min(inner);
            load(k0, k1);
            let mut waiting = None;
            let mut blocks = 0;
            for panel in self.panels.0..self.panels.1 {
                for row in (0..rows).step_by(unit) {
                    // Sums that are complete at once take turns in two places.
                    let start = if single { blocks % 2 * unit } else { blocks * unit };
                    blocks += 1;
                    assert!((start + unit) * PANEL <= room, "sums beyond their room");
                    let step = Step {
                        panel,
                        k0,
                        sums: sums.wrapping_add(start * PANEL),
                        first: k0 == 0,
                    };
                    let count = unit.min(rows - row);
                    block(&step, row, count);
                    if k1 < inner {
                        continue;
                    }
                    if let Some(block) = waiting.replace((panel, first_row + row, count, step.sums)) {
                        self.finish(block);
                    }
                }
            }
            if let Some(block) = waiting {
                self.finish(block);
            }
        }
    }

    /// Finishes a block whose sums are complete.
    fn finish(&self, (panel, row, count, sums): (usize, usize, usize, *mut f32)) {
        let panel = self.first_panel + panel;
        self.a.runs(row, count, |from, place| {
            // SAFETY: these rows and panels are this task's alone.
            unsafe { self.target.finish(self.finish, sums.add(from * PANEL), place, panel) };
        });
    }

    /// f32 numbers that [`Self::walk`] keeps.
    fn kept(&self, unit: usize) -> usize {
        let blocks = (self.rows.1 - self.rows.0).div_ceil(unit) * (self.panels.1 - self.panels.0);
        let single = self.weights.inputs() <= self.plan.depth;
        unit * PANEL * if single { 2 } else { blocks }
    }

    fn run_f32(&self) {
        let unit = ROWS_UNIT;
        let rows = self.rows.1 - self.rows.0;
        let round = matches!(self.weights.data, Data::Bf16(_));
        let direct = match self.a.x {
            View::F32(values) if !round && self.a.is_dense() => Some(values),
            _ => None,
        };
        // An odd number of cache lines per row keeps rows from falling into the same cache sets.
        let lda = if direct.is_some() {
            self.weights.inputs()
        } else {
            self.plan.depth + LANES
        };
        let room = if direct.is_some() { 0 } else { rows * lda };
        let kept = self.kept(unit);
        let mut scratch = Scratch::new(carved_bytes::<f32>(kept) + carved_bytes::<f32>(room));
        let (kept, scratch) = carve::<f32>(scratch.area(), kept);
        let (packed, _) = carve::<f32>(scratch, room);
        let packed = packed.as_mut_ptr();
        let base = match direct {
            Some(values) => values[self.rows.0 * lda..].as_ptr(),
            None => packed.cast_const(),
        };
        let at = std::cell::Cell::new(0);
        let depth = std::cell::Cell::new(0);
        let load = |k0: usize, k1: usize| {
            depth.set(k1 - k0);
            if direct.is_some() {
                at.set(k0);
                return;
            }
            if round {
                depth.set((k1 - k0).next_multiple_of(2));
            }
            dispatch(GatherF32 {
                a: self.a,
                rows: self.rows,
                columns: (k0, k1),
                // SAFETY: the room made above; nothing reads it meanwhile.
                out: unsafe { std::slice::from_raw_parts_mut(packed, room) },
                lda,
                round,
            });
        };
        self.walk(kept, unit, load, |step, row, count| {
            // SAFETY: the rows were made ready for this depth, the panel holds it, and the sums have room.
            unsafe {
                let a = (base.add(row * lda + at.get()), lda);
                let (c, size) = (step.sums, (count, depth.get()));
                match self.panel_ptr(step) {
                    PanelPtr::F32(b) => {
                        let b = (b, self.soon::<micro::Floats>(b, (step.panel, row), depth.get()));
                        micro::panel::<micro::Floats>(a, b, c, size, !step.first);
                    }
                    PanelPtr::Pairs(b) => {
                        let b = (b, self.soon::<micro::Widened>(b, (step.panel, row), depth.get()));
                        micro::panel::<micro::Widened>(a, b, c, size, !step.first);
                    }
                }
            }
        });
    }

    #[cfg(target_arch = "x86_64")]
    fn run_dot(&self) {
        let unit = ROWS_UNIT;
        let rows = self.rows.1 - self.rows.0;
        let lda = self.plan.depth + 2 * LANES;
        let kept = self.kept(unit);
        let mut scratch = Scratch::new(carved_bytes::<f32>(kept) + carved_bytes::<bf16>(rows * lda));
        let (kept, scratch) = carve::<f32>(scratch.area(), kept);
        let (packed, _) = carve::<bf16>(scratch, rows * lda);
        let (packed, room) = (packed.as_mut_ptr(), packed.len());
        let depth = std::cell::Cell::new(0);
        let load = |k0: usize, k1: usize| {
            depth.set((k1 - k0).next_multiple_of(2));
            let order = Order::Rows { lda };
            dispatch(GatherBf16::<false> {
                a: self.a,
                rows: self.rows,
                columns: (k0, k1),
                // SAFETY: as in `run_f32`.
                out: unsafe { std::slice::from_raw_parts_mut(packed, room) },
                low: &mut [],
                order,
            });
        };
        self.walk(kept, unit, load, |step, row, count| {
            if let PanelPtr::Pairs(b) = self.panel_ptr(step) {
                // SAFETY: as in `run_f32`.
                unsafe {
                    let a = (packed.add(row * lda).cast_const(), lda);
                    let b = (b, self.soon::<micro::Dots>(b, (step.panel, row), depth.get()));
                    micro::panel::<micro::Dots>(a, b, step.sums, (count, depth.get()), !step.first);
                }
            }
        });
    }

    #[cfg(target_arch = "x86_64")]
    fn run_tiles(&self) {
        use crate::amx::{Block, Form, Sums, TILE, Tiles};
        let unit = 32;
        let split = matches!(self.weights.data, Data::Split(_));
        let rows = self.rows.1 - self.rows.0;
        let per_tile_row = self.plan.depth / 32 * TILE;
        let room = rows.div_ceil(16) * per_tile_row;
        let parts = if split { 2 } else { 1 };
        let padded = self.weights.inputs().next_multiple_of(32);
        let kept = self.kept(unit);
        let mut scratch = Scratch::new(carved_bytes::<f32>(kept) + carved_bytes::<bf16>(parts * room));
        let (kept, scratch) = carve::<f32>(scratch.area(), kept);
        let (packed, _) = carve::<bf16>(scratch, parts * room);
        let packed = packed.as_mut_ptr();
        // SAFETY: this method is chosen where tiles are available.
        let tiles = unsafe { Tiles::configure() };
        let steps = std::cell::Cell::new(0);
        let load = |k0: usize, k1: usize| {
            steps.set((k1 - k0).div_ceil(32));
            // SAFETY: as in `run_f32`.
            let (out, low) = unsafe { std::slice::from_raw_parts_mut(packed, parts * room) }.split_at_mut(room);
            let (a, rows, columns) = (self.a, self.rows, (k0, k1));
            let order = Order::Tiles { per_tile_row };
            if split {
                dispatch(GatherBf16::<true> {
                    a,
                    rows,
                    columns,
                    out,
                    low,
                    order,
                });
            } else {
                dispatch(GatherBf16::<false> {
                    a,
                    rows,
                    columns,
                    out,
                    low,
                    order,
                });
            }
        };
        self.walk(kept, unit, load, |step, row, count| {
            let PanelPtr::Pairs(b) = self.panel_ptr(step) else {
                return;
            };
            let form = if count > 16 { Form::Full } else { Form::Upper };
            let upper = packed.cast_const().wrapping_add(row / 16 * per_tile_row);
            let product = Block {
                a: upper,
                a_lower: upper.wrapping_add(per_tile_row),
                a_row: 64,
                a_step: TILE * 2,
                b,
                b_row: 4 * PANEL,
                b_step: 64 * PANEL,
                steps: steps.get(),
                next: b.wrapping_add(parts * (padded * PANEL + row / unit * steps.get() * 128)),
            };
            // SAFETY: packed rows are readable up to a multiple of 16 (what lies beyond the last row is never stored),
            // and the sums have room for a multiple of 32 rows.
            unsafe {
                let sums = Sums {
                    at: step.sums,
                    row: 4 * PANEL,
                };
                if step.first {
                    tiles.zero();
                } else {
                    tiles.load(form, sums);
                }
                if split {
                    tiles.add_split(form, product, room * size_of::<bf16>());
                } else {
                    tiles.add(form, product);
                }
                tiles.store(form, sums);
            }
        });
        drop(tiles);
    }

    /// The part of the panel after `panel`, whose first number of this depth is at `b`, that the block at `row` asks for.
    fn soon<O: micro::Operands>(&self, b: *const O::B, (panel, row): (usize, usize), depth: usize) -> micro::Soon {
        if panel + 1 == self.panels.1 {
            return micro::Soon::nothing();
        }
        let next = b.wrapping_add(self.weights.inputs().next_multiple_of(32) * PANEL);
        let blocks = (self.rows.1 - self.rows.0).div_ceil(ROWS_UNIT);
        micro::Soon::share::<O>(next, depth, (row / ROWS_UNIT, blocks))
    }

    fn panel_ptr(&self, step: &Step) -> PanelPtr {
        let at = (step.panel * self.weights.inputs().next_multiple_of(32) + step.k0) * PANEL;
        match &self.weights.data {
            Data::F32(data) => PanelPtr::F32(data[at..].as_ptr()),
            Data::Split(data) => PanelPtr::Pairs(data[at..].as_ptr().cast()),
            Data::Bf16(data) => PanelPtr::Pairs(data[at..].as_ptr()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_get_even_shares() {
        for (rows, panels, threads) in [(2048, 20, 2), (128, 40, 2), (512, 40, 2), (8192, 10, 2), (512, 320, 16)] {
            let row_tasks = usize::div_ceil(rows, 192);
            let runs = usize::div_ceil(3 * threads, row_tasks);
            let (rows_each, panels_each) = even((rows, row_tasks), (panels, runs), threads);
            assert_eq!(rows_each % ROWS_STEP, 0);
            assert!(
                rows_each <= 192 && panels_each >= 2,
                "{rows_each} rows, {panels_each} panels"
            );
            let tasks = rows.div_ceil(rows_each) * panels.div_ceil(panels_each);
            let most = tasks.div_ceil(threads) * rows_each * panels_each;
            let share = most as f64 * threads as f64 / (rows * panels) as f64;
            assert!(share < 1.06, "{rows} rows, {panels} panels: {share} of an even share");
        }
    }

    #[test]
    fn little_work_is_one_task() {
        assert_eq!(even((1, 1), (1, 1), 2), (ROWS_STEP, 1));
        assert_eq!(even((4, 1), (2, 1), 1), (ROWS_STEP, 2));
    }
}
