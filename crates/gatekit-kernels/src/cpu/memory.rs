//! Scratch memory of the jobs, copies between it and the strided arrays, and results that several jobs fill together.
//!
//! Kernels never see the callers' arrays: a chunk of a head is copied to zero-padded rows (the padding makes every row
//! a whole number of vectors, so that no kernel has a special case for odd sizes) and the results are copied back.

use std::cell::RefCell;
use std::marker::PhantomData;

use super::simd::{Simd, exp, exp_in_place};

/// Floats in the alignment unit, and the multiple that vectorised widths are padded to.
pub(super) const LINE: usize = 16;
/// The multiple that state rows are padded to.
pub(super) const ROWS: usize = 8;

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
    fill(vectors.each_mut().map(|vector| Filling::spare(vector)));
    for (vector, len) in vectors.iter_mut().zip(lens) {
        // SAFETY: allocated above, written by `fill`.
        unsafe { vector.set_len(len) };
    }
    vectors
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
    pub(super) fn load(&self, from: &[f32], token: usize, rows: &mut [f32]) {
        for (i, row) in rows.chunks_exact_mut(self.padded).enumerate() {
            let at = self.at(token + i);
            row[..self.width].copy_from_slice(&from[at..at + self.width]);
            row[self.width..].fill(0.0);
        }
    }

    /// As [`Self::load`], times a factor.
    #[inline(always)]
    pub(super) fn load_scaled(&self, from: &[f32], scale: f32, token: usize, rows: &mut [f32]) {
        for (i, row) in rows.chunks_exact_mut(self.padded).enumerate() {
            let at = self.at(token + i);
            for (x, y) in row[..self.width].iter_mut().zip(&from[at..at + self.width]) {
                *x = scale * y;
            }
            row[self.width..].fill(0.0);
        }
    }

    /// As [`Self::load`] from an array that may be absent, which means zeros.
    #[inline(always)]
    pub(super) fn load_or_zero(&self, from: Option<&[f32]>, token: usize, rows: &mut [f32]) {
        match from {
            Some(from) => self.load(from, token, rows),
            None => rows.fill(0.0),
        }
    }

    /// The factors `exp(log_decay)` per column. Padded columns get `exp(0)`.
    #[inline(always)]
    pub(super) fn load_decay<S: Simd>(&self, log_decay: &[f32], token: usize, rows: &mut [f32]) {
        self.load(log_decay, token, rows);
        exp_in_place::<S>(rows);
    }

    /// Writes padded rows to tokens `token..`.
    ///
    /// # Safety
    /// See [`Filling::write`].
    #[inline(always)]
    pub(super) unsafe fn store(&self, rows: &[f32], token: usize, to: &Filling) {
        for (i, row) in rows.chunks_exact(self.padded).enumerate() {
            unsafe { to.write(self.at(token + i), &row[..self.width]) };
        }
    }
}

/// The factor `exp(log_decay)` of a head `[B, T, H]`, repeated over rows of `padded` columns.
#[inline(always)]
pub(super) fn load_head_decay<S: Simd>(
    log_decay: &[f32],
    head: usize,
    heads: usize,
    padded: usize,
    token: usize,
    rows: &mut [f32],
) {
    for (i, row) in rows.chunks_exact_mut(padded).enumerate() {
        row.fill(exp::<S>(log_decay[(token + i) * heads + head]));
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
    pub(super) fn load(&self, state: Option<&[f32]>, block: &mut [f32]) {
        block.fill(0.0);
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
    pub(super) unsafe fn store(&self, block: &[f32], offset: usize, to: &Filling) {
        let width = self.lanes.min(self.value_dim - self.from);
        for (i, row) in block.chunks_exact(self.lanes).take(self.key_dim).enumerate() {
            unsafe { to.write(offset + i * self.value_dim + self.from, &row[..width]) };
        }
    }

    /// Copies rows of K: `block` is `[V padded, lanes]`, the transpose. No state means zeros.
    #[inline(always)]
    pub(super) fn load_transposed(&self, state: Option<&[f32]>, block: &mut [f32]) {
        block.fill(0.0);
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
