//! An allocator that keeps big blocks for the next one who asks.
//!
//! A model makes and drops tensors of the same few sizes at each step. Given back to the system, their pages would have to be
//! faulted in and cleared again, which costs as much as a cheap operation on them. Big blocks come from the system directly, on
//! huge pages where it has them (weights too), and are kept when freed, as many as were once in use and a gibibyte at most.
//!
//! Memory for weights is touched once, and much of it: there huge pages must be quick to get, see [`WeightMemory`].

use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;
use std::marker::PhantomData;

/// Small blocks are `A`'s; blocks of at least a mebibyte are kept for reuse on Linux, and `A`'s elsewhere.
#[derive(Debug)]
pub struct Reusing<A>(pub A);

thread_local! {
    static FOR_WEIGHTS: Cell<bool> = const { Cell::new(false) };
}

/// While it lives, big blocks that its thread asks for are taken to be weights.
///
/// The host of a virtual machine may take free memory back, in pieces as large as a huge page. Then a huge page takes
/// milliseconds to come back, while small pages come from pieces that were never taken. So the first huge page of a block is
/// timed; after a slow one the next blocks lie on small pages, at which products are about a hundredth slower.
#[derive(Debug)]
pub struct WeightMemory {
    outer: bool,
    /// It belongs to its thread.
    thread: PhantomData<*const ()>,
}

impl WeightMemory {
    /// From here on.
    #[must_use]
    pub fn begin() -> Self {
        Self {
            outer: FOR_WEIGHTS.replace(true),
            thread: PhantomData,
        }
    }
}

impl Drop for WeightMemory {
    fn drop(&mut self) {
        FOR_WEIGHTS.set(self.outer);
    }
}

#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
mod big {
    use std::ffi::{c_int, c_void};
    use std::ptr::null_mut;
    use std::sync::{Mutex, PoisonError};
    use std::time::{Duration, Instant};

    /// Blocks from this size on are big.
    pub(super) const LEAST: usize = 1 << 20;
    /// Bytes that are kept at most.
    const MOST_KEPT: usize = 1 << 30;
    /// Bytes that may be kept even where that is more than was ever in use.
    const FREELY_KEPT: usize = 96 << 20;
    const HUGE_PAGE: usize = 2 << 20;

    const READ_AND_WRITE: c_int = 1 | 2;
    const PRIVATE_AND_ANONYMOUS: c_int = 2 | 0x20;
    const ON_HUGE_PAGES: c_int = 14;
    const ON_SMALL_PAGES: c_int = 15;

    /// A huge page is cleared in a tenth of this.
    const SLOW: Duration = Duration::from_millis(1);
    /// Bytes on small pages before a huge one is tried again.
    const SMALL_AFTER_SLOW: usize = 256 << 20;

    // The system's, from the C library that the standard library links.
    unsafe extern "C" {
        fn mmap(start: *mut c_void, size: usize, access: c_int, kind: c_int, file: c_int, offset: i64) -> *mut c_void;
        fn munmap(start: *mut c_void, size: usize) -> c_int;
        fn madvise(start: *mut c_void, size: usize, advice: c_int) -> c_int;
    }

    /// Size that a block of `size` bytes is made with: at most an eighth larger, so that few sizes are in use.
    pub(super) fn class(size: usize) -> usize {
        let step = (size.next_power_of_two() / 16).max(64 << 10);
        size.next_multiple_of(step)
    }

    #[derive(Clone, Copy)]
    struct Block {
        start: usize,
        size: usize,
    }

    /// Freed blocks, oldest first. With those in use they take hardly more than was once in use together, so that keeping them
    /// does not raise the most that a program takes.
    struct Kept {
        blocks: [Block; 64],
        count: usize,
        bytes: usize,
        /// Bytes in use, now and at most so far.
        used: usize,
        most_used: usize,
        /// Bytes of weights that are to lie on small pages.
        small: usize,
    }

    static KEPT: Mutex<Kept> = Mutex::new(Kept {
        blocks: [Block { start: 0, size: 0 }; 64],
        count: 0,
        bytes: 0,
        used: 0,
        most_used: 0,
        small: 0,
    });

    impl Kept {
        fn remove(&mut self, index: usize) -> Block {
            let block = self.blocks[index];
            self.blocks.copy_within(index + 1..self.count, index);
            self.count -= 1;
            self.bytes -= block.size;
            block
        }

        fn use_more(&mut self, bytes: usize) {
            self.used += bytes;
            self.most_used = self.most_used.max(self.used);
        }

        /// Bytes that may be kept now.
        fn room(&self) -> usize {
            self.most_used.saturating_sub(self.used).clamp(FREELY_KEPT, MOST_KEPT)
        }

        /// Gives the oldest back to the system until at most so many bytes are kept.
        fn shrink(&mut self, bytes: usize) {
            while self.bytes > bytes {
                let oldest = self.remove(0);
                unmap(oldest.start, oldest.size);
            }
        }
    }

    /// A block of a class's size, and whether it is known to be zero. Null if there is no memory.
    pub(super) fn take(size: usize, weights: bool) -> (*mut u8, bool) {
        let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
        kept.use_more(size);
        let newest = (0..kept.count).rev().find(|&i| kept.blocks[i].size == size);
        if let Some(index) = newest {
            return (kept.remove(index).start as *mut u8, false);
        }
        // What lies idle makes room for what is new.
        let room = kept.room();
        kept.shrink(room);
        let small = weights && kept.small > 0;
        if small {
            kept.small = kept.small.saturating_sub(size);
        }
        drop(kept);
        let start = map(size);
        if start.is_null() {
            KEPT.lock().unwrap_or_else(PoisonError::into_inner).used -= size;
            return (start, true);
        }
        advise(start as usize, size, if small { ON_SMALL_PAGES } else { ON_HUGE_PAGES });
        if weights && !small && size > HUGE_PAGE && first_touch(start) > SLOW {
            advise(start as usize + HUGE_PAGE, size - HUGE_PAGE, ON_SMALL_PAGES);
            KEPT.lock().unwrap_or_else(PoisonError::into_inner).small = SMALL_AFTER_SLOW;
        }
        (start, true)
    }

    /// How long the first page of a new block takes to come.
    fn first_touch(start: *mut u8) -> Duration {
        let begun = Instant::now();
        // SAFETY: the block is new, and zero is what it holds.
        unsafe { start.write_volatile(0) };
        begun.elapsed()
    }

    fn advise(start: usize, size: usize, advice: c_int) {
        // SAFETY: advice about memory that `map` made.
        unsafe { madvise(start as *mut c_void, size, advice) };
    }

    /// Takes back a block that [`take`] gave.
    pub(super) fn give(start: *mut u8, size: usize) {
        let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
        kept.used -= size;
        let room = kept.room();
        if size > room {
            drop(kept);
            return unmap(start as usize, size);
        }
        kept.shrink(room - size);
        if kept.count == kept.blocks.len() {
            let oldest = kept.remove(0);
            unmap(oldest.start, oldest.size);
        }
        let count = kept.count;
        kept.blocks[count] = Block {
            start: start as usize,
            size,
        };
        kept.count += 1;
        kept.bytes += size;
    }

    fn map(size: usize) -> *mut u8 {
        // SAFETY: asks for new memory at no fixed place.
        let raw = unsafe {
            mmap(
                null_mut(),
                size + HUGE_PAGE,
                READ_AND_WRITE,
                PRIVATE_AND_ANONYMOUS,
                -1,
                0,
            )
        };
        if raw as isize == -1 {
            return null_mut();
        }
        let (raw, end) = (raw as usize, raw as usize + size + HUGE_PAGE);
        let start = raw.next_multiple_of(HUGE_PAGE);
        unmap(raw, start - raw);
        unmap(start + size, end - start - size);
        start as *mut u8
    }

    fn unmap(start: usize, size: usize) {
        if size > 0 {
            // SAFETY: whole pages that `map` made and nobody uses.
            unsafe { munmap(start as *mut c_void, size) };
        }
    }
}

#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
fn is_big(layout: &Layout) -> bool {
    layout.size() >= big::LEAST && layout.align() <= 2 << 20
}

// SAFETY: big blocks are whole mappings of their class's size, given to one owner at a time; all others are the inner
// allocator's. Which of both a block is follows from its layout alone.
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
unsafe impl<A: GlobalAlloc> GlobalAlloc for Reusing<A> {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if is_big(&layout) {
            return big::take(big::class(layout.size()), FOR_WEIGHTS.get()).0;
        }
        // SAFETY: the caller's promise.
        unsafe { self.0.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if !is_big(&layout) {
            // SAFETY: the caller's promise.
            return unsafe { self.0.alloc_zeroed(layout) };
        }
        let (start, zero) = big::take(big::class(layout.size()), FOR_WEIGHTS.get());
        if !zero {
            // SAFETY: the block has at least this size.
            unsafe { start.write_bytes(0, layout.size()) };
        }
        start
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        if is_big(&layout) {
            return big::give(start, big::class(layout.size()));
        }
        // SAFETY: the caller's promise.
        unsafe { self.0.dealloc(start, layout) };
    }

    unsafe fn realloc(&self, start: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller promises that the new size is valid for the alignment.
        let wanted = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        match (is_big(&layout), is_big(&wanted)) {
            // SAFETY: the caller's promise.
            (false, false) => unsafe { self.0.realloc(start, layout, size) },
            (true, true) if big::class(layout.size()) == big::class(size) => start,
            _ => {
                // SAFETY: both blocks hold the smaller size, and the old one is freed once, with its own layout.
                unsafe {
                    let to = self.alloc(wanted);
                    if !to.is_null() {
                        to.copy_from_nonoverlapping(start, layout.size().min(size));
                        self.dealloc(start, layout);
                    }
                    to
                }
            }
        }
    }
}

// SAFETY: all blocks are the inner allocator's.
#[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
unsafe impl<A: GlobalAlloc> GlobalAlloc for Reusing<A> {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        unsafe { self.0.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        unsafe { self.0.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { self.0.dealloc(start, layout) };
    }

    unsafe fn realloc(&self, start: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller's promise.
        unsafe { self.0.realloc(start, layout, size) }
    }
}

#[cfg(all(test, target_os = "linux", target_pointer_width = "64", not(miri)))]
mod tests {
    use super::*;
    use std::alloc::System;

    /// The first and last number of a block, after setting both.
    fn mark(start: *mut u8, size: usize) -> (u8, u8) {
        // SAFETY: the block holds `size` bytes.
        unsafe {
            let before = (start.read(), start.add(size - 1).read());
            start.write(1);
            start.add(size - 1).write(2);
            before
        }
    }

    #[test]
    fn a_freed_block_comes_back_and_is_zero_when_asked_to_be() {
        let allocator = Reusing(System);
        let size = 5_500_000;
        let layout = Layout::from_size_align(size, 64).unwrap_or(Layout::new::<u8>());
        // SAFETY: blocks are used within their size and freed once with their layout.
        unsafe {
            let first = allocator.alloc(layout);
            assert_eq!(first as usize % (2 << 20), 0);
            mark(first, size);
            allocator.dealloc(first, layout);
            let again = allocator.alloc(layout);
            assert_eq!(again, first);
            assert_eq!(mark(again, size), (1, 2));
            allocator.dealloc(again, layout);
            let zeroed = allocator.alloc_zeroed(layout);
            assert_eq!((zeroed, mark(zeroed, size)), (first, (0, 0)));
            let grown = allocator.realloc(zeroed, layout, 3 * size);
            assert_eq!((grown.read(), grown.add(size - 1).read()), (1, 2));
            let small = allocator.realloc(grown, Layout::from_size_align(3 * size, 64).unwrap_or(layout), 100);
            assert_eq!(small.read(), 1);
            allocator.dealloc(small, Layout::from_size_align(100, 64).unwrap_or(layout));
        }
    }

    #[test]
    fn weights_are_zero_and_whole_whatever_pages_they_lie_on() {
        let allocator = Reusing(System);
        let layout = Layout::from_size_align(9_000_000, 64).unwrap_or(Layout::new::<u8>());
        let outer = WeightMemory::begin();
        drop(WeightMemory::begin());
        assert!(FOR_WEIGHTS.get());
        // SAFETY: blocks are used within their size and freed once with their layout.
        unsafe {
            let blocks: Vec<_> = (0..4).map(|_| allocator.alloc_zeroed(layout)).collect();
            for block in blocks {
                assert_eq!(mark(block, layout.size()), (0, 0));
                allocator.dealloc(block, layout);
            }
        }
        drop(outer);
        assert!(!FOR_WEIGHTS.get());
    }

    #[test]
    fn sizes_are_rounded_by_an_eighth_at_most() {
        for size in [1 << 20, (1 << 20) + 1, 5_242_880, 67_108_864, 100_000_001] {
            let class = big::class(size);
            assert!(class >= size && class <= size + size / 8 && class.is_multiple_of(4096));
        }
    }
}
