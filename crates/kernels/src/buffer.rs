//! Memory aligned to cache lines: packed weights, and per-thread scratch that is kept from call to call.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::cell::RefCell;
use std::ptr::NonNull;

/// Values that may be made of any bits, zero among them.
///
/// # Safety
/// Every bit pattern must be a valid value, and the type must have no padding and no drop.
pub(crate) unsafe trait Plain: Copy + Send + Sync + 'static {}
// SAFETY: plain numbers.
unsafe impl Plain for f32 {}
// SAFETY: plain numbers.
unsafe impl Plain for u8 {}
// SAFETY: plain numbers.
unsafe impl Plain for u16 {}
// SAFETY: a transparent u16.
unsafe impl Plain for half::bf16 {}

/// A zeroed, fixed-size array whose first element lies on a 64-byte boundary (2 MiB for big ones, so that huge pages can back
/// them).
pub(crate) struct AlignedVec<T: Plain> {
    start: NonNull<T>,
    len: usize,
}

// SAFETY: it owns its memory alone, as a Vec does.
unsafe impl<T: Plain> Send for AlignedVec<T> {}
// SAFETY: shared access only reads.
unsafe impl<T: Plain> Sync for AlignedVec<T> {}

impl<T: Plain> AlignedVec<T> {
    fn layout(len: usize) -> Layout {
        let bytes = len * size_of::<T>();
        let align = if bytes >= 4 << 20 { 2 << 20 } else { 64 };
        Layout::from_size_align(bytes.max(64), align).unwrap_or_else(|_| handle_alloc_error(Layout::new::<T>()))
    }

    pub(crate) fn zeroed(len: usize) -> Self {
        let layout = Self::layout(len);
        // SAFETY: the layout's size is never zero.
        let raw = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(raw.cast::<T>()) else {
            handle_alloc_error(layout)
        };
        Self { start, len }
    }
}

impl<T: Plain> std::ops::Deref for AlignedVec<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        // SAFETY: `len` elements were allocated and zeroed, and any bits are valid.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl<T: Plain> std::ops::DerefMut for AlignedVec<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`, and `self` is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl<T: Plain> Clone for AlignedVec<T> {
    fn clone(&self) -> Self {
        let mut copy = Self::zeroed(self.len);
        copy.copy_from_slice(self);
        copy
    }
}

impl<T: Plain> Drop for AlignedVec<T> {
    fn drop(&mut self) {
        // SAFETY: allocated by `zeroed` with the same layout.
        unsafe { dealloc(self.start.as_ptr().cast(), Self::layout(self.len)) }
    }
}

impl<T: Plain> std::fmt::Debug for AlignedVec<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AlignedVec({} elements)", self.len)
    }
}

/// Bytes on a 64-byte boundary, zero at first: room for the blocks of quantised weights.
#[derive(Debug)]
pub struct AlignedBytes(AlignedVec<u8>);

impl AlignedBytes {
    /// So many zeros, in memory that is not touched before it is written to.
    #[must_use]
    pub fn zeroed(len: usize) -> Self {
        Self(AlignedVec::zeroed(len))
    }
}

impl std::ops::Deref for AlignedBytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl std::ops::DerefMut for AlignedBytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

thread_local! {
    static SCRATCH: RefCell<Vec<AlignedVec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// Scratch memory of this thread, aligned to 64 bytes, holding anything; given back when dropped. Several may be alive.
pub(crate) struct Scratch {
    buffer: Option<AlignedVec<u8>>,
}

impl Scratch {
    pub(crate) fn new(bytes: usize) -> Self {
        let kept = SCRATCH.with_borrow_mut(Vec::pop);
        let buffer = match kept {
            Some(buffer) if buffer.len() >= bytes => buffer,
            _ => AlignedVec::zeroed(bytes.next_multiple_of(1 << 16)),
        };
        Self { buffer: Some(buffer) }
    }

    pub(crate) fn area(&mut self) -> &mut [u8] {
        self.buffer.as_deref_mut().unwrap_or_default()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Some(buffer) = self.buffer.take() {
            SCRATCH.with_borrow_mut(|kept| kept.push(buffer));
        }
    }
}

/// Splits the first `len` elements of type `T` off a scratch area; the rest starts on a 64-byte boundary again.
pub(crate) fn carve<T: Plain>(area: &mut [u8], len: usize) -> (&mut [T], &mut [u8]) {
    let bytes = carved_bytes::<T>(len);
    let (head, tail) = area.split_at_mut(bytes);
    debug_assert_eq!(head.as_ptr() as usize % 64, 0);
    // SAFETY: `head` has room for `len` elements, is aligned to 64 bytes, and any bits are valid values of `T`.
    let head = unsafe { std::slice::from_raw_parts_mut(head.as_mut_ptr().cast::<T>(), len) };
    (head, tail)
}

/// Bytes that [`carve`] takes for `len` elements.
pub(crate) fn carved_bytes<T: Plain>(len: usize) -> usize {
    (len * size_of::<T>()).next_multiple_of(64)
}
