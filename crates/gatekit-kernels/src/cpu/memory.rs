//! Scratch memory of the jobs, and results that several jobs fill together.

use std::cell::RefCell;
use std::marker::PhantomData;

/// Floats in the alignment unit, and the multiple that vectorised widths are padded to.
pub(super) const LINE: usize = 16;

#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct Line([f32; LINE]);

/// Hands out aligned pieces of one block of memory.
pub(super) struct Arena<'a>(&'a mut [f32]);

impl<'a> Arena<'a> {
    /// The next `len` floats, of unspecified value.
    #[inline(always)]
    pub(super) fn take(&mut self, len: usize) -> &'a mut [f32] {
        let (piece, rest) = std::mem::take(&mut self.0).split_at_mut(len.next_multiple_of(LINE));
        self.0 = rest;
        &mut piece[..len]
    }
}

thread_local! {
    static SCRATCH: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) };
}

/// Calls `work` with the calling thread's scratch memory, enough for pieces of the given lengths. It is kept for the next
/// call: its size depends on K and V but not on the length of the sequence.
pub(super) fn with_scratch(pieces: &[usize], work: impl FnOnce(Arena)) {
    SCRATCH.with_borrow_mut(|lines| {
        let need = pieces.iter().map(|len| len.div_ceil(LINE)).sum();
        if lines.len() < need {
            lines.resize(need, Line([0.0; LINE]));
        }
        // SAFETY: a line is sixteen floats without padding bytes.
        let floats = unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), lines.len() * LINE) };
        work(Arena(floats));
    });
}

/// A result array that jobs fill together, each its own elements.
pub(super) struct Filling<'a> {
    start: *mut f32,
    len: usize,
    owner: PhantomData<&'a mut [f32]>,
}

// SAFETY: all access is through unsafe methods whose callers touch disjoint elements.
unsafe impl Send for Filling<'_> {}
unsafe impl Sync for Filling<'_> {}

impl<'a> Filling<'a> {
    /// Shares the whole of an allocated but still empty vector.
    fn spare(vector: &'a mut Vec<f32>) -> Self {
        let len = vector.capacity();
        Self { start: vector.as_mut_ptr(), len, owner: PhantomData }
    }

    /// Shares an initialised slice.
    pub(super) fn of(slice: &'a mut [f32]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), owner: PhantomData }
    }

    /// The first element, for jobs that do their own writing.
    #[inline(always)]
    pub(super) fn start(&self) -> *mut f32 {
        self.start
    }

    /// Writes `values` from element `offset` on.
    ///
    /// # Safety
    /// No other job may access these elements meanwhile.
    #[inline(always)]
    pub(super) unsafe fn write(&self, offset: usize, values: &[f32]) {
        debug_assert!(offset + values.len() <= self.len);
        unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), self.start.add(offset), values.len()) }
    }

    /// The `len` elements from `offset` on.
    ///
    /// # Safety
    /// They must have been written, and no other job may access them meanwhile.
    #[inline(always)]
    #[expect(clippy::mut_from_ref, reason = "disjointness is the caller's promise")]
    pub(super) unsafe fn written(&self, offset: usize, len: usize) -> &mut [f32] {
        debug_assert!(offset + len <= self.len);
        unsafe { std::slice::from_raw_parts_mut(self.start.add(offset), len) }
    }
}

/// A vector of `len` elements made by `fill`, which is spared the pass that would set them to 0 first.
///
/// # Safety
/// `fill` must write every element.
pub(super) unsafe fn filled<const N: usize>(
    lens: [usize; N],
    fill: impl FnOnce([Filling; N]),
) -> [Vec<f32>; N] {
    let mut vectors = lens.map(|len| {
        let mut vector = Vec::new();
        vector.reserve_exact(len);
        vector
    });
    fill(vectors.each_mut().map(Filling::spare));
    for (vector, len) in vectors.iter_mut().zip(lens) {
        // SAFETY: allocated above, written by `fill`.
        unsafe { vector.set_len(len) };
    }
    vectors
}
