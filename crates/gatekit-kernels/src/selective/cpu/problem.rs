//! The arguments as slices, and the step that all passes share.

use std::ops::Range;

use crate::{
    float::Float,
    pieces::{Cut, Piece, States},
    simd::Arithmetic,
};

/// Widths of a block of channels: whole cache lines, and so many that what a block keeps of every step (a sum over
/// its channels for `b` and `c`) is little beside the channels themselves.
const NARROWEST: usize = 16;
const WIDEST: usize = 128;

/// A selective scan's arguments in row-major order. The steps of all sequences follow one another as rows.
#[derive(Debug)]
pub(crate) struct Problem<'a, F> {
    pub channels: usize,
    /// Numbers of the state of a channel, N.
    pub size: usize,
    /// Rows of every sequence; none is empty, and they cover all rows in order.
    pub sequences: &'a [Range<usize>],
    /// `[rows, channels]`
    pub x: &'a [F],
    /// `[rows, channels]`
    pub delta: &'a [F],
    /// `[channels, N]`
    pub a: &'a [F],
    /// `[rows, N]`
    pub b: &'a [F],
    /// `[rows, N]`
    pub c: &'a [F],
    /// `[sequences, channels, N]`
    pub initial_state: Option<&'a [F]>,
}

impl<F: Float> Problem<'_, F> {
    pub fn rows(&self) -> usize {
        self.x.len() / self.channels
    }

    /// Numbers of the state of a sequence.
    pub fn state_len(&self) -> usize {
        self.channels * self.size
    }

    /// What the passes cost, in states that are advanced by a step.
    pub fn work(&self) -> usize {
        self.rows() * self.state_len()
    }

    pub fn cut(&self) -> Cut {
        Cut::new(self.sequences, self.channels, NARROWEST, WIDEST)
    }

    /// A block's part of row `row` of `[rows, channels]`.
    #[inline(always)]
    pub fn channels_of<'r>(&self, values: &'r [F], row: usize, block: &Range<usize>) -> &'r [F] {
        &values[row * self.channels..][block.clone()]
    }

    /// Row `row` of `[rows, N]`.
    #[inline(always)]
    pub fn numbers_of<'r>(&self, values: &'r [F], row: usize) -> &'r [F] {
        &values[row * self.size..][..self.size]
    }

    /// A block's part of `[channels, N]`, transposed.
    #[inline(always)]
    pub fn load(&self, values: &[F], block: &Range<usize>, to: &mut [F]) {
        for (channel, numbers) in
            values.chunks_exact(self.size).skip(block.start).take(block.len()).enumerate()
        {
            for (n, number) in numbers.iter().enumerate() {
                to[n * block.len() + channel] = *number;
            }
        }
    }

    /// The inverse of [`load`](Self::load), into a buffer of the block's own.
    #[inline(always)]
    pub fn store(&self, from: &[F], width: usize, to: &mut [F]) {
        for (channel, numbers) in to.chunks_exact_mut(self.size).enumerate() {
            for (n, number) in numbers.iter_mut().enumerate() {
                *number = from[n * width + channel];
            }
        }
    }

    /// A block's part of the state that a piece starts from, transposed.
    #[inline(always)]
    pub fn load_state(&self, states: &States<F>, piece: &Piece, block: &Range<usize>, to: &mut [F]) {
        match states.of(piece, self.state_len()) {
            Some(state) => self.load(state, block, to),
            None => to.fill(F::default()),
        }
    }

    /// Advances the states of a block by one step.
    #[inline(always)]
    pub fn advance<A: Arithmetic>(&self, row: usize, block: &Range<usize>, a: &[F], s: &mut [F]) {
        let (x, delta) = (self.channels_of(self.x, row, block), self.channels_of(self.delta, row, block));
        let states = s.chunks_exact_mut(block.len()).zip(a.chunks_exact(block.len()));
        for ((s, a), b) in states.zip(self.numbers_of(self.b, row)) {
            for (((s, a), x), delta) in s.iter_mut().zip(a).zip(x).zip(delta) {
                *s = s.multiply_add::<A>((*delta * *a).exp::<A>(), *x * *b);
            }
        }
    }
}
