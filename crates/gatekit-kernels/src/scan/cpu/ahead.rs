//! What the next chunk needs, fetched while the current one is computed.
//!
//! Rows of a head are a stride apart, which no processor foresees, and all at once they would wait for one another: they
//! are spread evenly over the computation.

use std::{cell::Cell, ops::Range};

use super::packing::Columns;
use super::parallel::STEPS;
use crate::simd::Simd;

/// Arrays that a pass reads and writes, at most.
const ARRAYS: usize = 9;

/// Bytes of a cache line.
const CACHE_LINE: usize = 64;

/// The rows of the next chunk.
pub(super) struct Ahead<F> {
    rows: [Row<F>; ARRAYS * STEPS],
    count: usize,
    /// The row that is fetched next.
    next: Cell<usize>,
    /// Moments of the computation, and what is due: a row whenever it reaches them.
    moments: Cell<usize>,
    due: Cell<usize>,
}

/// A row of floats.
#[derive(Clone, Copy)]
struct Row<F> {
    start: *const F,
    width: usize,
}

impl<F> Ahead<F> {
    pub(super) fn new() -> Self {
        Self {
            rows: [const { Row { start: std::ptr::null(), width: 0 } }; ARRAYS * STEPS],
            count: 0,
            next: Cell::new(0),
            moments: Cell::new(1),
            due: Cell::new(0),
        }
    }

    /// Plans to fetch these tokens, at most [`STEPS`], of each array that there is.
    #[inline(always)]
    pub(super) fn plan(
        &mut self,
        tokens: Range<usize>,
        arrays: impl IntoIterator<Item = Option<(Columns, *const F)>>,
    ) {
        self.count = 0;
        for (columns, start) in arrays.into_iter().flatten() {
            for token in tokens.clone() {
                let start = start.wrapping_add(columns.at(token));
                self.rows[self.count] = Row { start, width: columns.width };
                self.count += 1;
            }
        }
        self.next.set(0);
    }

    /// Spreads them over this many calls of [`Self::fetch`].
    #[inline(always)]
    pub(super) fn spread(&self, moments: usize) {
        self.moments.set(moments);
        self.due.set(0);
    }

    /// Fetches the rows that are due.
    ///
    /// # Safety
    /// See [`Simd`].
    #[inline(always)]
    pub(super) unsafe fn fetch<S: Simd<Float = F>>(&self) {
        let mut due = self.due.get() + self.count;
        while due >= self.moments.get() && self.next.get() < self.count {
            due -= self.moments.get();
            let row = &self.rows[self.next.get()];
            for at in (0..row.width).step_by(CACHE_LINE / size_of::<F>()) {
                unsafe { S::prefetch(row.start.wrapping_add(at)) };
            }
            self.next.set(self.next.get() + 1);
        }
        self.due.set(due);
    }
}

/// The chunk after `steps` tokens from `token` on.
#[inline(always)]
pub(super) fn after(tokens: &Range<usize>, token: usize, steps: usize) -> Range<usize> {
    token + steps..tokens.end.min(token + steps + STEPS)
}

/// The chunk before `token`.
#[inline(always)]
pub(super) fn before(tokens: &Range<usize>, token: usize) -> Range<usize> {
    tokens.start.max(token.saturating_sub(STEPS))..token
}
