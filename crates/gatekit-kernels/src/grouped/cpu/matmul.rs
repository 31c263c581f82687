//! Rows that are sorted by group times one matrix a group.

use std::{mem::MaybeUninit, ops::Range};

use super::{
    cut::{Piece, for_each, parts, pieces},
    product::{Lines, Product, SCRATCH, scratch},
};
use crate::{
    float::Float,
    memory::{Filling, filled},
    simd::Level,
};

/// Most rows of a job that packs a matrix of its group.
const ROWS: usize = 512;

/// Most columns of a job.
const COLUMNS: usize = 256;

/// Sizes of the matrices `[groups, out, width]`.
#[derive(Clone, Copy)]
pub(crate) struct Sizes {
    pub(crate) out: usize,
    pub(crate) width: usize,
}

/// Pieces of the rows, and columns of the result.
fn jobs(offsets: &[usize], columns: usize) -> Vec<(Piece, Range<usize>)> {
    let pieces = pieces(offsets, ROWS).into_iter();
    pieces.flat_map(|piece| parts(columns, COLUMNS).map(move |part| (piece.clone(), part))).collect()
}

/// `y_e = x_e W_e^T`.
pub(crate) fn matmul<F: Float>(x: &[F], weight: &[F], offsets: &[usize], sizes: Sizes) -> Vec<F> {
    let Sizes { out, width } = sizes;
    let rows = offsets[offsets.len() - 1];
    let level = Level::best();
    assert!(x.len() == rows * width && weight.len() == (offsets.len() - 1) * out * width);
    // SAFETY: every row and column is in one job, whose product writes it; the level is this processor's.
    let [y] = unsafe {
        filled([rows * out], |[y]: [&mut [MaybeUninit<F>]; 1]| {
            let y = Filling::unwritten(y);
            for_each(&jobs(offsets, out), rows * out * width, &SCRATCH, |(piece, columns), mut arena| {
                let matrix = (piece.group * out + columns.start) * width;
                let product = Product {
                    rows: piece.rows.len(),
                    columns: columns.len(),
                    depth: width,
                    left: Lines::all(x[piece.rows.start * width..].as_ptr(), width),
                    left_transposed: false,
                    right: Lines::all(weight[matrix..].as_ptr(), width),
                    right_transposed: true,
                    out: Lines::all(y.start().add(piece.rows.start * out + columns.start), out),
                    add: false,
                };
                product.run(level, &mut scratch(&mut arena));
            });
        })
    };
    y
}

/// What a job of the backward pass computes.
enum Job {
    /// Columns of the gradient of some rows.
    X(Piece, Range<usize>),
    /// Rows of the gradient of a group's matrix.
    Weight(usize, Range<usize>),
}

/// Gradients of `x` and the weight: `dx_e = dy_e W_e`, `dW_e = dy_e^T x_e`.
pub(crate) fn matmul_backward<F: Float>(
    x: &[F],
    weight: &[F],
    gradient: &[F],
    offsets: &[usize],
    sizes: Sizes,
) -> [Vec<F>; 2] {
    let Sizes { out, width } = sizes;
    let (rows, groups) = (offsets[offsets.len() - 1], offsets.len() - 1);
    let level = Level::best();
    assert!(x.len() == rows * width && weight.len() == groups * out * width && gradient.len() == rows * out);
    let of_weight =
        (0..groups).flat_map(|group| parts(out, COLUMNS).map(move |part| Job::Weight(group, part)));
    let of_x = jobs(offsets, width).into_iter().map(|(piece, part)| Job::X(piece, part));
    let jobs: Vec<Job> = of_weight.chain(of_x).collect();
    // SAFETY: every element of the gradients is in one job, whose product writes it, also where the depth is 0; the
    // level is this processor's.
    unsafe {
        filled([rows * width, weight.len()], |[dx, dweight]: [&mut [MaybeUninit<F>]; 2]| {
            let (dx, dweight) = (Filling::unwritten(dx), Filling::unwritten(dweight));
            for_each(&jobs, 2 * rows * out * width, &SCRATCH, |job, mut arena| {
                let product = match job {
                    Job::X(piece, columns) => Product {
                        rows: piece.rows.len(),
                        columns: columns.len(),
                        depth: out,
                        left: Lines::all(gradient[piece.rows.start * out..].as_ptr(), out),
                        left_transposed: false,
                        right: Lines::all(
                            weight[piece.group * out * width + columns.start..].as_ptr(),
                            width,
                        ),
                        right_transposed: false,
                        out: Lines::all(dx.start().add(piece.rows.start * width + columns.start), width),
                        add: false,
                    },
                    Job::Weight(group, part) => {
                        let rows = offsets[*group]..offsets[group + 1];
                        Product {
                            rows: part.len(),
                            columns: width,
                            depth: rows.len(),
                            left: Lines::all(gradient.as_ptr().add(rows.start * out + part.start), out),
                            left_transposed: true,
                            right: Lines::all(x.as_ptr().add(rows.start * width), width),
                            right_transposed: false,
                            out: Lines::all(dweight.start().add((group * out + part.start) * width), width),
                            add: false,
                        }
                    }
                };
                product.run(level, &mut scratch(&mut arena));
            });
        })
    }
}
