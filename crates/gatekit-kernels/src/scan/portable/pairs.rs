//! Products between the steps of a chunk, weighted by the decay between them, and the decays
//! themselves.
//!
//! The log decay from step `j` to step `i >= j` is the sum of the log decays of the steps after `j`
//! up to `i`. Such sums are accumulated where they are needed and never formed as differences of
//! prefix sums: every exponent is at most 0, and a near-reset costs no later step its precision.
//! Scalar decays leave the channel sum: a matrix product times a matrix of weights. Decays per key
//! channel are split at the start of each block of rows (secondary chunking); only blocks on the
//! diagonal are summed elementwise.

use burn::backend::Backend;

use super::chunks::Chunks;
use crate::{primitive::Primitive, scan::DecayKind};

/// Decay factors between the steps of a chunk and its ends; absent factors are 1.
pub(super) struct Decays<B: Backend> {
    /// From the chunk's start up to step `i`, `[rows, chunks, chunk, key_dim or 1]`.
    pub from_start: Option<Primitive<B>>,
    /// After step `i` to the chunk's end.
    pub to_end: Option<Primitive<B>>,
    /// Over the whole chunk, as a factor on states, `[rows, chunks, key_dim or 1, 1]`.
    pub whole: Option<Primitive<B>>,
}

impl<B: Backend> Decays<B> {
    /// From the log decays of all steps, `[rows, chunks, chunk, key_dim or 1]`.
    pub fn new(log_decay: Option<&Primitive<B>>) -> Self {
        let Some(log_decay) = log_decay else { return Self { from_start: None, to_end: None, whole: None } };
        let size = log_decay.dims()[2];
        let sums = log_decay.clone().cumsum(2);
        Self {
            whole: Some(sums.narrow(2, size - 1..size).exp().transpose()),
            from_start: Some(sums.exp()),
            to_end: Some(sums_after(log_decay, 2).exp()),
        }
    }
}

/// Sums of all later entries along axis `dim`, without the entry itself.
fn sums_after<B: Backend>(x: &Primitive<B>, dim: usize) -> Primitive<B> {
    let length = x.dims()[dim];
    match length {
        1 => x.zeros(x.dims()),
        _ => x.clone().reverse_cumsum(dim).narrow(dim, 1..length).pad_end(dim, length),
    }
}

/// The decay between the steps of every chunk.
pub(super) enum Pairs<B: Backend> {
    /// `weights_ij`: the decay from `j` to `i` for `i >= j`, else 0.
    Scalar { weights: Primitive<B> },
    /// Decays per key channel.
    PerKey {
        block: usize,
        /// Within each block from `j` to `i`, 0 above the diagonal:
        /// `[rows, chunks, blocks, block (i), block (j), key_dim]`.
        diagonal: Primitive<B>,
        /// From the start of its block up to each step, `[rows, chunks, chunk, key_dim]`.
        up: Primitive<B>,
        /// For every block but the first: after each earlier step to the block's start,
        /// `[rows, chunks, start, key_dim]`.
        down: Vec<Primitive<B>>,
    },
}

impl<B: Backend> Pairs<B> {
    /// `log_decay`: `[rows, chunks, chunk, key_dim or 1]`, absent without decay; `like` any tensor of
    /// the device.
    pub fn new(
        decay: DecayKind,
        log_decay: Option<&Primitive<B>>,
        chunks: &Chunks,
        like: &Primitive<B>,
    ) -> Self {
        let size = chunks.size;
        match (decay, log_decay) {
            (_, None) => Self::Scalar { weights: lower_mask(size, false, like) },
            (DecayKind::PerKey, Some(log_decay)) => Self::per_key(log_decay, chunks.block),
            (_, Some(log_decay)) => {
                let after = log_decay.clone() * lower_mask(size, true, like);
                Self::Scalar { weights: after.cumsum(2).exp() * lower_mask(size, false, like) }
            }
        }
    }

    fn per_key(log_decay: &Primitive<B>, block: usize) -> Self {
        let dims = log_decay.dims();
        let (rows, chunks, size, key_dim) = (dims[0], dims[1], dims[2], dims[3]);
        let blocks = log_decay.clone().reshape([rows, chunks, size / block, block, key_dim]);
        let mask = |strict| lower_mask(block, strict, log_decay).reshape([1, 1, 1, block, block, 1]);
        let after = blocks.clone().reshape([rows, chunks, size / block, block, 1, key_dim]) * mask(true);
        let up = blocks.clone().cumsum(3).exp().reshape(dims.clone());
        let rest = sums_after(&blocks, 3).reshape(dims);

        let mut down = vec![];
        let mut sums: Option<Primitive<B>> = None;
        for start in (block..size).step_by(block) {
            let own = start - block..start;
            let mut parts = vec![];
            if let Some(sums) = sums {
                parts.push(sums + log_decay.narrow(2, own.clone()).sum(2));
            }
            parts.push(rest.narrow(2, own));
            let next = Primitive::cat(parts, 2);
            down.push(next.clone().exp());
            sums = Some(next);
        }
        Self::PerKey { block, diagonal: after.cumsum(3).exp() * mask(false), up, down }
    }

    /// `sum_c a_ic k_jc decay_ijc` for `i >= j`, else 0: `[rows, chunks, chunk, chunk]`.
    pub fn product(&self, a: &Primitive<B>, k: &Primitive<B>) -> Primitive<B> {
        match self {
            Self::Scalar { weights } => a.clone().matmul(k.clone().transpose()) * weights.clone(),
            Self::PerKey { block, diagonal, up, down } => {
                let dims = a.dims();
                let (size, block) = (dims[2], *block);
                // [rows, chunks, blocks, block, block]
                let diagonal = (row_blocks(a, block) * column_blocks(k, block) * diagonal.clone()).sum(5);
                let rows = (0..size / block)
                    .map(|index| {
                        let start = index * block;
                        let own =
                            diagonal.narrow(2, index..index + 1).reshape([dims[0], dims[1], block, block]);
                        let mut parts = Vec::with_capacity(3);
                        if start > 0 {
                            let rows = a.narrow(2, start..start + block) * up.narrow(2, start..start + block);
                            let columns = k.narrow(2, 0..start) * down[index - 1].clone();
                            parts.push(rows.matmul(columns.transpose()));
                        }
                        parts.push(own);
                        Primitive::cat(parts, 3).pad_end(3, size)
                    })
                    .collect();
                Primitive::cat(rows, 2)
            }
        }
    }

    /// `sum_{j <= i} w_ij k_j decay_ij`: `[rows, chunks, chunk, key_dim]`.
    pub fn rows(&self, w: &Primitive<B>, k: &Primitive<B>) -> Primitive<B> {
        match self {
            Self::Scalar { weights } => (w.clone() * weights.clone()).matmul(k.clone()),
            Self::PerKey { block, diagonal, up, down } => {
                let dims = k.dims();
                let (size, block) = (dims[2], *block);
                let diagonal = (diagonal_weights(w, block) * column_blocks(k, block) * diagonal.clone())
                    .sum(4)
                    .reshape([dims[0], dims[1], size, dims[3]]);
                let rows = (0..size / block)
                    .map(|index| {
                        let start = index * block;
                        let own = diagonal.narrow(2, start..start + block);
                        if start == 0 {
                            return own;
                        }
                        let weights = w.narrow(2, start..start + block).narrow(3, 0..start);
                        let columns = k.narrow(2, 0..start) * down[index - 1].clone();
                        weights.matmul(columns) * up.narrow(2, start..start + block) + own
                    })
                    .collect();
                Primitive::cat(rows, 2)
            }
        }
    }

    /// `sum_{i >= j} w_ij a_i decay_ij`: `[rows, chunks, chunk, key_dim]`.
    pub fn columns(&self, w: &Primitive<B>, a: &Primitive<B>) -> Primitive<B> {
        match self {
            Self::Scalar { weights } => (w.clone() * weights.clone()).transpose().matmul(a.clone()),
            Self::PerKey { block, diagonal, up, down } => {
                let dims = a.dims();
                let (size, block) = (dims[2], *block);
                let mut total = (diagonal_weights(w, block) * row_blocks(a, block) * diagonal.clone())
                    .sum(3)
                    .reshape([dims[0], dims[1], size, dims[3]]);
                for (start, down) in (block..size).step_by(block).zip(down) {
                    let rows = a.narrow(2, start..start + block) * up.narrow(2, start..start + block);
                    let weights = w.narrow(2, start..start + block).narrow(3, 0..start);
                    total = total + (weights.transpose().matmul(rows) * down.clone()).pad_end(2, size);
                }
                total
            }
        }
    }
}

/// Steps as rows of their blocks: `[rows, chunks, blocks, block, 1, key_dim]`.
fn row_blocks<B: Backend>(x: &Primitive<B>, block: usize) -> Primitive<B> {
    let dims = x.dims();
    x.clone().reshape([dims[0], dims[1], dims[2] / block, block, 1, dims[3]])
}

/// Steps as columns of their blocks: `[rows, chunks, blocks, 1, block, key_dim]`.
fn column_blocks<B: Backend>(x: &Primitive<B>, block: usize) -> Primitive<B> {
    let dims = x.dims();
    x.clone().reshape([dims[0], dims[1], dims[2] / block, 1, block, dims[3]])
}

/// The diagonal blocks of `[rows, chunks, chunk, chunk]`: `[rows, chunks, blocks, block, block, 1]`.
fn diagonal_weights<B: Backend>(w: &Primitive<B>, block: usize) -> Primitive<B> {
    let dims = w.dims();
    let parts = (0..dims[2] / block)
        .map(|index| {
            let steps = index * block..(index + 1) * block;
            w.narrow(2, steps.clone()).narrow(3, steps).reshape([dims[0], dims[1], 1, block, block, 1])
        })
        .collect();
    Primitive::cat(parts, 2)
}

/// `[1, 1, size, size]`: 1 where `i >= j` (`strict`: `i > j`), else 0.
pub(super) fn lower_mask<B: Backend>(size: usize, strict: bool, like: &Primitive<B>) -> Primitive<B> {
    mask(size, like, |i, j| if strict { i > j } else { i >= j })
}

pub(super) fn mask<B: Backend>(
    size: usize,
    like: &Primitive<B>,
    keep: impl Fn(usize, usize) -> bool,
) -> Primitive<B> {
    let values = (0..size * size).map(|index| f32::from(keep(index / size, index % size))).collect();
    like.constant(values, [1, 1, size, size])
}
