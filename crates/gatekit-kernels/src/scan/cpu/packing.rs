//! Copies between the strided arrays and scratch memory.
//!
//! Kernels never see the callers' arrays: a chunk of a head is copied to zero-padded rows (the padding makes every row
//! a whole number of vectors, so that no kernel has a special case for odd sizes) and the results are copied back.

use crate::float::Float;
use crate::memory::Filling;
use crate::scratch::LINE;
use crate::simd::{Simd, exp};

/// The multiple that state rows are padded to.
const ROWS: usize = 8;

/// Padded number of state rows, and the padded length of a vector over them.
#[inline(always)]
pub(super) fn padded_rows(dim: usize) -> (usize, usize) {
    (dim.next_multiple_of(ROWS), dim.next_multiple_of(LINE))
}

/// What is done to elements while they are copied; not a closure, since these are not always inlined.
trait Function<S: Simd>: Copy {
    unsafe fn of(self, x: S::Vector) -> S::Vector;
}

#[derive(Clone, Copy)]
struct Same;
impl<S: Simd> Function<S> for Same {
    #[inline(always)]
    unsafe fn of(self, x: S::Vector) -> S::Vector {
        x
    }
}

#[derive(Clone, Copy)]
struct Times<F>(F);
impl<S: Simd> Function<S> for Times<S::Float> {
    #[inline(always)]
    unsafe fn of(self, x: S::Vector) -> S::Vector {
        unsafe { S::mul(S::splat(self.0), x) }
    }
}

#[derive(Clone, Copy)]
struct Exp;
impl<S: Simd> Function<S> for Exp {
    #[inline(always)]
    unsafe fn of(self, x: S::Vector) -> S::Vector {
        unsafe { exp::<S>(x) }
    }
}

/// Where the rows of a head are in an array `[B, T, H, D]`: its columns `start..start + width`.
#[derive(Clone, Copy)]
pub(super) struct Columns {
    /// Offset of the first column in token 0.
    pub(super) start: usize,
    /// Columns that exist.
    pub(super) width: usize,
    /// Columns of a padded row in scratch memory.
    pub(super) padded: usize,
    /// From one token to the next.
    pub(super) stride: usize,
}

impl Columns {
    /// Columns `from..from + padded` of head `head` in an array `[B, T, heads, dim]`, as far as they exist.
    pub(super) fn of(head: usize, heads: usize, dim: usize, from: usize, padded: usize) -> Self {
        Self { start: head * dim + from, width: padded.min(dim - from), padded, stride: heads * dim }
    }

    /// Offset of a token's first column.
    #[inline(always)]
    pub(super) fn at(&self, token: usize) -> usize {
        token * self.stride + self.start
    }

    /// Copies tokens `token..` to as many padded rows as `rows` holds.
    #[inline(always)]
    pub(super) unsafe fn load<S: Simd>(&self, from: &[S::Float], token: usize, rows: &mut [S::Float]) {
        unsafe { self.map::<S>(from, token, rows, Same) }
    }

    /// As [`Self::load`], times a factor.
    #[inline(always)]
    pub(super) unsafe fn load_scaled<S: Simd>(
        &self,
        from: &[S::Float],
        scale: S::Float,
        token: usize,
        rows: &mut [S::Float],
    ) {
        unsafe { self.map::<S>(from, token, rows, Times(scale)) }
    }

    /// The factors `exp(log_decay)` per column.
    #[inline(always)]
    pub(super) unsafe fn load_decay<S: Simd>(
        &self,
        log_decay: &[S::Float],
        token: usize,
        rows: &mut [S::Float],
    ) {
        unsafe { self.map::<S>(log_decay, token, rows, Exp) }
    }

    /// As [`Self::load`] from an array that may be absent, which means zeros.
    #[inline(always)]
    pub(super) unsafe fn load_or_zero<S: Simd>(
        &self,
        from: Option<&[S::Float]>,
        token: usize,
        rows: &mut [S::Float],
    ) {
        match from {
            Some(from) => unsafe { self.load::<S>(from, token, rows) },
            None => rows.fill(S::Float::default()),
        }
    }

    /// Copies a function of tokens `token..`, for the padding the function of 0 or 0.
    ///
    /// In vectors by hand: rows are short, so a call to copy one costs more than the copy.
    #[inline(always)]
    unsafe fn map<S: Simd>(
        &self,
        from: &[S::Float],
        token: usize,
        rows: &mut [S::Float],
        function: impl Function<S>,
    ) {
        let whole = self.width / S::LANES * S::LANES;
        for (i, row) in rows.chunks_exact_mut(self.padded).enumerate() {
            let at = self.at(token + i);
            let from = &from[at..at + self.width];
            let to = row.as_mut_ptr();
            // SAFETY: `padded`, a multiple of sixteen, bounds the writes; vectors have at most sixteen lanes.
            unsafe {
                for lane in (0..whole).step_by(S::LANES) {
                    S::store(to.add(lane), function.of(S::load(from.as_ptr().add(lane))));
                }
                let mut end = whole;
                if whole < self.width {
                    let rest = S::load_first(from.as_ptr().add(whole), self.width - whole);
                    S::store(to.add(whole), function.of(rest));
                    end += S::LANES;
                }
                for lane in (end..self.padded).step_by(S::LANES) {
                    S::store(to.add(lane), S::splat(S::Float::default()));
                }
            }
        }
    }

    /// What has been written to a token's columns.
    ///
    /// # Safety
    /// See [`Filling::written`].
    #[inline(always)]
    #[expect(clippy::mut_from_ref, reason = "disjointness is the caller's promise")]
    pub(super) unsafe fn written<'f, F>(&self, of: &'f Filling<F>, token: usize) -> &'f mut [F] {
        unsafe { of.written(self.at(token), self.width) }
    }

    /// Writes padded rows to tokens `token..`.
    ///
    /// # Safety
    /// See [`Filling::write`].
    #[inline(always)]
    pub(super) unsafe fn store<S: Simd>(&self, rows: &[S::Float], token: usize, to: &Filling<S::Float>) {
        let whole = self.width / S::LANES * S::LANES;
        for (i, row) in rows.chunks_exact(self.padded).enumerate() {
            unsafe {
                let to = to.start().add(self.at(token + i));
                for lane in (0..whole).step_by(S::LANES) {
                    S::store(to.add(lane), S::load(row.as_ptr().add(lane)));
                }
                if whole < self.width {
                    S::store_first(to.add(whole), S::load(row.as_ptr().add(whole)), self.width - whole);
                }
            }
        }
    }
}

/// The factor `exp(log_decay)` of a head `[B, T, H]`, repeated over rows of `padded` columns.
#[inline(always)]
pub(super) unsafe fn load_head_decay<S: Simd>(
    log_decay: &[S::Float],
    head: usize,
    heads: usize,
    padded: usize,
    token: usize,
    rows: &mut [S::Float],
) {
    for (i, row) in rows.chunks_exact_mut(padded).enumerate() {
        // SAFETY: rows are a multiple of sixteen wide.
        unsafe {
            let factor = exp::<S>(S::splat(log_decay[(token + i) * heads + head]));
            for lane in (0..padded).step_by(S::LANES) {
                S::store(row.as_mut_ptr().add(lane), factor);
            }
        }
    }
}

/// A block of a state `[K, V]` in scratch memory, zero-padded.
#[derive(Clone, Copy)]
pub(super) struct StateBlock {
    /// K.
    pub(super) key_dim: usize,
    /// V.
    pub(super) value_dim: usize,
    /// First vectorised index (of V, or of K when transposed).
    pub(super) from: usize,
    /// Padded vectorised width.
    pub(super) lanes: usize,
}

impl StateBlock {
    /// Copies columns of V: `block` is `[K padded, lanes]`. No state means zeros.
    #[inline(always)]
    pub(super) fn load<F: Float>(&self, state: Option<&[F]>, block: &mut [F]) {
        block.fill(F::default());
        let width = self.lanes.min(self.value_dim - self.from);
        if let Some(state) = state {
            for (to, row) in block.chunks_exact_mut(self.lanes).zip(state.chunks_exact(self.value_dim)) {
                to[..width].copy_from_slice(&row[self.from..self.from + width]);
            }
        }
    }

    /// Writes such a block to its place in a state that starts at `offset`.
    ///
    /// # Safety
    /// See [`Filling::write`].
    #[inline(always)]
    pub(super) unsafe fn store<F: Float>(&self, block: &[F], offset: usize, to: &Filling<F>) {
        let width = self.lanes.min(self.value_dim - self.from);
        for (i, row) in block.chunks_exact(self.lanes).take(self.key_dim).enumerate() {
            unsafe { to.write(offset + i * self.value_dim + self.from, &row[..width]) };
        }
    }

    /// Copies rows of K: `block` is `[V padded, lanes]`, the transpose. No state means zeros.
    #[inline(always)]
    pub(super) fn load_transposed<F: Float>(&self, state: Option<&[F]>, block: &mut [F]) {
        block.fill(F::default());
        let width = self.lanes.min(self.key_dim - self.from);
        if let Some(state) = state {
            for (lane, row) in state.chunks_exact(self.value_dim).skip(self.from).take(width).enumerate() {
                for (i, x) in row.iter().enumerate() {
                    block[i * self.lanes + lane] = *x;
                }
            }
        }
    }
}
