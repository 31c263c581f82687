//! Cuts sequences into chunks of equal length, padded with steps that change nothing.

use std::ops::Range;

use burn::backend::Backend;

use crate::{primitive::Primitive, scan::ScanSpec};

/// How `[batch, time, heads, dim]` becomes `[rows, chunks, chunk, dim]`.
///
/// A padded step has a zero key, value and log decay: the state passes through it unchanged. Rows
/// are batch times heads; packed sequences have one row a head and their chunks follow one another.
#[derive(Debug, Clone)]
pub(super) struct Chunks {
    batch: usize,
    time: usize,
    heads: usize,
    pub size: usize,
    /// Length of the blocks whose decays are combined elementwise; divides `size`.
    pub block: usize,
    pub count: usize,
    /// Time steps of each sequence that share the rows: one, or the packed segments.
    steps: Vec<Range<usize>>,
    /// Chunks of each of those sequences.
    pub sequences: Vec<Range<usize>>,
}

impl Chunks {
    /// The cut for queries of shape `[batch, time, heads, _]`.
    pub fn new(dims: &[usize], spec: &ScanSpec) -> Self {
        let (batch, time, heads) = (dims[0], dims[1], dims[2]);
        let steps: Vec<Range<usize>> = match &spec.boundaries {
            Some(boundaries) => boundaries.windows(2).map(|pair| pair[0]..pair[1]).collect(),
            None => std::iter::once(0..time).collect(),
        };
        let longest = steps.iter().map(Range::len).max().unwrap_or(1);
        let block = spec.sub_chunk_size.min(spec.chunk_size).min(longest);
        let size = (spec.chunk_size / block * block).min(longest.next_multiple_of(block));
        let mut count = 0;
        let sequences = steps
            .iter()
            .map(|steps| {
                let first = count;
                count += steps.len().div_ceil(size);
                first..count
            })
            .collect();
        Self { batch, time, heads, size, block, count, steps, sequences }
    }

    /// Batch rows times heads.
    pub fn rows(&self) -> usize {
        self.batch * self.heads
    }

    /// `[batch, time, heads, dim]` to `[rows, chunks, chunk, dim]`.
    pub fn cut<B: Backend>(&self, x: Primitive<B>) -> Primitive<B> {
        let dim = x.dims()[3];
        let x = x.permute(&[0, 2, 1, 3]);
        let padded = self
            .steps
            .iter()
            .zip(&self.sequences)
            .map(|(steps, chunks)| x.narrow(2, steps.clone()).pad_end(2, chunks.len() * self.size))
            .collect();
        Primitive::cat(padded, 2).reshape([self.rows(), self.count, self.size, dim])
    }

    /// The inverse of [`cut`](Self::cut).
    pub fn join<B: Backend>(&self, x: Primitive<B>) -> Primitive<B> {
        let dim = x.dims()[3];
        let x = x.reshape([self.batch, self.heads, self.count * self.size, dim]);
        let real = self
            .steps
            .iter()
            .zip(&self.sequences)
            .map(|(steps, chunks)| {
                let start = chunks.start * self.size;
                x.narrow(2, start..start + steps.len())
            })
            .collect();
        let joined = Primitive::cat(real, 2);
        debug_assert_eq!(joined.dims()[2], self.time);
        joined.permute(&[0, 2, 1, 3])
    }

    /// State `[rows, key_dim, value_dim]` of sequence `index`, from `[states, heads, ..]`.
    pub fn state<B: Backend>(&self, states: &Primitive<B>, index: usize) -> Primitive<B> {
        let dims = states.dims();
        let (key_dim, value_dim) = (dims[2], dims[3]);
        let own = if self.batch == 1 { states.narrow(0, index..index + 1) } else { states.clone() };
        own.reshape([self.rows(), key_dim, value_dim])
    }

    /// The inverse of [`state`](Self::state) for all sequences.
    pub fn states<B: Backend>(&self, states: Vec<Primitive<B>>) -> Primitive<B> {
        let dims = states[0].dims();
        let shape = [self.batch, self.heads, dims[1], dims[2]];
        Primitive::cat(states.into_iter().map(|state| state.reshape(shape)).collect(), 0)
    }

    /// Chunk `index` of `[rows, chunks, ..]`, without that axis.
    pub fn at<B: Backend>(&self, x: &Primitive<B>, index: usize) -> Primitive<B> {
        let dims = x.dims();
        x.narrow(1, index..index + 1).reshape([dims[0], dims[2], dims[3]])
    }

    /// Per-chunk matrices `[rows, a, b]` back to `[rows, chunks, a, b]`.
    pub fn stack<B: Backend>(&self, parts: Vec<Primitive<B>>) -> Primitive<B> {
        let dims = parts[0].dims();
        Primitive::cat(
            parts.into_iter().map(|part| part.reshape([dims[0], 1, dims[1], dims[2]])).collect(),
            1,
        )
    }
}
