//! The grouped product in backend operations.

use std::ops::Range;

use burn::backend::{Backend, tensor::FloatTensor};

use crate::primitive::Primitive;

/// The groups that have rows, and which.
fn groups(offsets: &[usize]) -> impl Iterator<Item = (usize, Range<usize>)> {
    let rows = offsets.windows(2).map(|pair| pair[0]..pair[1]);
    rows.enumerate().filter(|(_, rows)| !rows.is_empty())
}

/// The matrix of a group, `[out, in]`.
fn matrix<B: Backend>(weight: &Primitive<B>, group: usize) -> Primitive<B> {
    let dims = weight.dims();
    weight.narrow(0, group..group + 1).reshape([dims[1], dims[2]])
}

/// The forward pass: `y_e = x_e W_e^T`.
pub(super) fn forward<B: Backend>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    offsets: &[usize],
) -> FloatTensor<B> {
    let (x, weight) = (Primitive::<B>(x), Primitive::<B>(weight));
    let parts = groups(offsets)
        .map(|(group, rows)| x.narrow(0, rows).matmul(matrix(&weight, group).transpose()))
        .collect();
    Primitive::cat(parts, 0).0
}

/// Gradients of `x` and the weight: `dx_e = dy_e W_e`, `dW_e = dy_e^T x_e`.
pub(super) fn backward<B: Backend>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    gradient: FloatTensor<B>,
    offsets: &[usize],
) -> (FloatTensor<B>, FloatTensor<B>) {
    let (x, weight, gradient) = (Primitive::<B>(x), Primitive::<B>(weight), Primitive::<B>(gradient));
    let dx = groups(offsets)
        .map(|(group, rows)| gradient.narrow(0, rows).matmul(matrix(&weight, group)))
        .collect();
    let dims = weight.dims();
    let dweight = (offsets.windows(2))
        .map(|pair| match pair[1] - pair[0] {
            0 => weight.zeros([1, dims[1], dims[2]]),
            _ => {
                let (dy, x) = (gradient.narrow(0, pair[0]..pair[1]), x.narrow(0, pair[0]..pair[1]));
                dy.transpose().matmul(x).reshape([1, dims[1], dims[2]])
            }
        })
        .collect();
    (Primitive::cat(dx, 0).0, Primitive::cat(dweight, 0).0)
}
