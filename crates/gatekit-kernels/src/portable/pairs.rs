//! Products between the steps of a chunk, weighted by the decay between them.
//!
//! With `b` the prefix sums of the log decays in the chunk, all three functions contain
//! `exp(b_i - b_j)` for `i >= j` and never a positive exponent. Scalar decays leave the channel
//! sum: a matrix product times a matrix of weights. Decays per key channel are combined through a
//! reference point before each block of rows (secondary chunking); only blocks on the diagonal
//! are summed elementwise.

use burn::backend::Backend;

use super::chunks::Chunks;
use crate::{primitive::Primitive, scan::DecayKind};

/// The decay between the steps of every chunk.
pub(super) enum Pairs<B: Backend> {
    /// `weights_ij = exp(b_i - b_j)` for `i >= j`, else 0.
    Scalar { weights: Primitive<B> },
    /// Prefix sums per key channel `[rows, chunks, chunk, key_dim]`, `lower` the mask `i >= j`,
    /// `diagonal` the same for one block.
    PerKey { sums: Primitive<B>, block: usize, diagonal: Primitive<B> },
}

impl<B: Backend> Pairs<B> {
    /// `sums`: prefix sums of the log decays, absent without decay; `like` any chunked tensor.
    pub fn new(decay: DecayKind, sums: Option<&Primitive<B>>, chunks: &Chunks, like: &Primitive<B>) -> Self {
        match (decay, sums) {
            (DecayKind::PerKey, Some(sums)) => Self::PerKey {
                sums: sums.clone(),
                block: chunks.block,
                diagonal: lower_mask(chunks.block, false, like).reshape([1, 1, 1, chunks.block, chunks.block, 1]),
            },
            (_, Some(sums)) => {
                let between = sums.clone() - sums.clone().transpose();
                let mask = lower_mask(chunks.size, false, like);
                Self::Scalar { weights: between.clamp_max(0.0).exp() * mask }
            }
            (_, None) => Self::Scalar { weights: lower_mask(chunks.size, false, like) },
        }
    }

    /// `P_ij = sum_c a_ic k_jc exp(b_ic - b_jc)` for `i >= j`, else 0: `[rows, chunks, chunk, chunk]`.
    pub fn product(&self, a: &Primitive<B>, k: &Primitive<B>) -> Primitive<B> {
        match self {
            Self::Scalar { weights } => a.clone().matmul(k.clone().transpose()) * weights.clone(),
            Self::PerKey { sums, block, .. } => {
                let dims = a.dims();
                let (size, block) = (dims[2], *block);
                // [rows, chunks, blocks, block, block]
                let diagonal = (self.row_blocks(a) * self.column_blocks(k) * self.diagonal_decay()).sum(5);
                let rows = (0..size / block)
                    .map(|index| {
                        let start = index * block;
                        let own = diagonal.narrow(2, index..index + 1).reshape([dims[0], dims[1], block, block]);
                        let mut parts = Vec::with_capacity(3);
                        if start > 0 {
                            let (up, down) = factors(sums, start, block);
                            let rows = a.narrow(2, start..start + block) * up;
                            parts.push(rows.matmul((k.narrow(2, 0..start) * down).transpose()));
                        }
                        parts.push(own);
                        Primitive::cat(parts, 3).pad_end(3, size)
                    })
                    .collect();
                Primitive::cat(rows, 2)
            }
        }
    }

    /// `sum_{j <= i} w_ij k_j exp(b_i - b_j)`: `[rows, chunks, chunk, key_dim]`.
    pub fn rows(&self, w: &Primitive<B>, k: &Primitive<B>) -> Primitive<B> {
        match self {
            Self::Scalar { weights } => (w.clone() * weights.clone()).matmul(k.clone()),
            Self::PerKey { sums, block, .. } => {
                let dims = k.dims();
                let (size, block) = (dims[2], *block);
                let diagonal = (self.diagonal_weights(w) * self.column_blocks(k) * self.diagonal_decay())
                    .sum(4)
                    .reshape([dims[0], dims[1], size, dims[3]]);
                let rows = (0..size / block)
                    .map(|index| {
                        let start = index * block;
                        let own = diagonal.narrow(2, start..start + block);
                        if start == 0 {
                            return own;
                        }
                        let (up, down) = factors(sums, start, block);
                        let weights = w.narrow(2, start..start + block).narrow(3, 0..start);
                        weights.matmul(k.narrow(2, 0..start) * down) * up + own
                    })
                    .collect();
                Primitive::cat(rows, 2)
            }
        }
    }

    /// `sum_{i >= j} w_ij a_i exp(b_i - b_j)`: `[rows, chunks, chunk, key_dim]`.
    pub fn columns(&self, w: &Primitive<B>, a: &Primitive<B>) -> Primitive<B> {
        match self {
            Self::Scalar { weights } => (w.clone() * weights.clone()).transpose().matmul(a.clone()),
            Self::PerKey { sums, block, .. } => {
                let dims = a.dims();
                let (size, block) = (dims[2], *block);
                let mut total = (self.diagonal_weights(w) * self.row_blocks(a) * self.diagonal_decay())
                    .sum(3)
                    .reshape([dims[0], dims[1], size, dims[3]]);
                for start in (block..size).step_by(block) {
                    let (up, down) = factors(sums, start, block);
                    let rows = a.narrow(2, start..start + block) * up;
                    let weights = w.narrow(2, start..start + block).narrow(3, 0..start);
                    total = total + (weights.transpose().matmul(rows) * down).pad_end(2, size);
                }
                total
            }
        }
    }

    /// `exp(b_i - b_j)` within each block, 0 above the diagonal:
    /// `[rows, chunks, blocks, block (i), block (j), key_dim]`.
    fn diagonal_decay(&self) -> Primitive<B> {
        let Self::PerKey { sums, diagonal, .. } = self else { unreachable!("only with decays per key") };
        let between = self.row_blocks(sums) - self.column_blocks(sums);
        between.clamp_max(0.0).exp() * diagonal.clone()
    }

    fn blocks(&self, x: &Primitive<B>) -> (Vec<usize>, usize) {
        let Self::PerKey { block, .. } = self else { unreachable!("only with decays per key") };
        (x.dims(), *block)
    }

    /// Steps as rows of their blocks: `[rows, chunks, blocks, block, 1, key_dim]`.
    fn row_blocks(&self, x: &Primitive<B>) -> Primitive<B> {
        let (dims, block) = self.blocks(x);
        x.clone().reshape([dims[0], dims[1], dims[2] / block, block, 1, dims[3]])
    }

    /// Steps as columns of their blocks: `[rows, chunks, blocks, 1, block, key_dim]`.
    fn column_blocks(&self, x: &Primitive<B>) -> Primitive<B> {
        let (dims, block) = self.blocks(x);
        x.clone().reshape([dims[0], dims[1], dims[2] / block, 1, block, dims[3]])
    }

    /// The diagonal blocks of `[rows, chunks, chunk, chunk]`: `[rows, chunks, blocks, block, block, 1]`.
    fn diagonal_weights(&self, w: &Primitive<B>) -> Primitive<B> {
        let (dims, block) = self.blocks(w);
        let parts = (0..dims[2] / block)
            .map(|index| {
                let steps = index * block..(index + 1) * block;
                w.narrow(2, steps.clone()).narrow(3, steps).reshape([dims[0], dims[1], 1, block, block, 1])
            })
            .collect();
        Primitive::cat(parts, 2)
    }
}

/// `exp(b_i - n)` for the rows of the block at `start` and `exp(n - b_j)` for all steps before it,
/// where `n` is `b` just before the block: both exponents are at most 0.
fn factors<B: Backend>(sums: &Primitive<B>, start: usize, block: usize) -> (Primitive<B>, Primitive<B>) {
    let reference = sums.narrow(2, start - 1..start);
    let up = (sums.narrow(2, start..start + block) - reference.clone()).exp();
    let down = (reference - sums.narrow(2, 0..start)).exp();
    (up, down)
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
    like.from_host(values, [1, 1, size, size])
}
