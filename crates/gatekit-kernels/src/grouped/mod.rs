//! Products of rows that are sorted by group with one matrix a group: what the operation computes, and where it goes
//! from there.

mod autodiff;
mod backend;
#[cfg(feature = "cubecl")]
mod cube;
mod portable;

use std::sync::Arc;

use burn::{backend::Dispatch, tensor::Tensor};

pub use backend::GroupedBackend;

/// Rows `offsets[e] .. offsets[e + 1]` of `x` times the transpose of `weight[e]`.
///
/// Differentiable in both tensors; a group without rows has a gradient of zeros. Every group is one matrix product, in
/// the forward pass and twice in the backward pass, and a matrix of a group is never copied for another.
///
/// # Shapes
///
/// - `x`: `[rows, in]`, sorted by group
/// - `offsets`: where the rows of every group begin, and `rows`: one more than there are groups
/// - `weight`: `[groups, out, in]`, in the type of `x`
/// - result: `[rows, out]`
///
/// # Panics
///
/// When shapes or types do not fit, or the offsets do not rise from 0 to `rows`.
pub fn grouped_matmul(x: Tensor<2>, offsets: &[usize], weight: Tensor<3>) -> Tensor<2> {
    let ([rows, width], [groups, out, from]) = (x.dims(), weight.dims());
    assert!(
        width == from && offsets.len() == groups + 1,
        "grouped_matmul: `x` {:?} and {} offsets do not fit `weight` {:?}",
        x.dims(),
        offsets.len(),
        weight.dims()
    );
    assert!(
        offsets[0] == 0 && offsets[groups] == rows && offsets.is_sorted(),
        "grouped_matmul: `offsets` {offsets:?} do not rise from 0 to {rows}"
    );
    assert!(
        x.dtype() == weight.dtype(),
        "grouped_matmul: `x` is in {:?}, `weight` in {:?}: cast one of them first",
        x.dtype(),
        weight.dtype()
    );
    if rows == 0 {
        return Tensor::zeros([0, out], (&x.device(), x.dtype()));
    }
    Tensor::from_dispatch(<Dispatch as GroupedBackend>::grouped_matmul(
        x.into_dispatch(),
        weight.into_dispatch(),
        Arc::from(offsets),
    ))
}
