//! Scratch memory of the jobs.

use std::cell::RefCell;

use crate::float::Float;

/// The multiple of floats that vectorised widths are padded to, and that pieces of scratch memory are aligned to.
pub(crate) const LINE: usize = 16;

/// Bytes that can be floats of either type.
#[repr(C, align(128))]
#[derive(Clone, Copy)]
struct Line([f64; LINE]);

/// Hands out aligned pieces of one block of memory.
pub(crate) struct Arena<'a, F>(&'a mut [F]);

impl<'a, F> Arena<'a, F> {
    /// The next `len` floats, of unspecified value.
    #[inline(always)]
    pub(crate) fn take(&mut self, len: usize) -> &'a mut [F] {
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
pub(crate) fn with_scratch<F: Float>(pieces: &[usize], work: impl FnOnce(Arena<F>)) {
    SCRATCH.with_borrow_mut(|lines| {
        let floats: usize = pieces.iter().map(|len| len.next_multiple_of(LINE)).sum();
        let need = (floats * size_of::<F>()).div_ceil(size_of::<Line>());
        if lines.len() < need {
            lines.resize(need, Line([0.0; LINE]));
        }
        // SAFETY: lines have no padding bytes, float32 and float64 no invalid bytes; `need` lines hold the floats.
        let floats = unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), floats) };
        work(Arena(floats));
    });
}
