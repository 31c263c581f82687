//! Scratch memory of the jobs.

use std::cell::RefCell;

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
