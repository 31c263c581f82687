//! Rows that are sorted by group and one matrix a group, and experts over them: what the operations compute, and where
//! they go from there.

mod autodiff;
mod backend;
#[cfg(any(feature = "ndarray", feature = "flex"))]
pub(crate) mod cpu;
#[cfg(feature = "cubecl")]
mod cube;
#[cfg(any(feature = "ndarray", feature = "flex"))]
mod host;
mod plan;
mod portable;
mod portable_experts;

use std::sync::Arc;

use burn::{
    backend::{Backend, Dispatch, tensor::FloatTensor},
    tensor::Tensor,
};

use crate::{gate::Activation, precision::check_dtypes};

pub use backend::GroupedBackend;
pub use plan::SortedSlots;

/// Rows `offsets[e] .. offsets[e + 1]` of `x` times the transpose of `weight[e]`.
///
/// Differentiable in both tensors; a group without rows has a gradient of zeros. A matrix of a group is never
/// copied for another. On a GPU all groups are one launch, in the forward pass and for each of the two gradients; where
/// groups are few, the gradient of the weight is summed in slices of their rows, whose sum is a launch more.
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

/// What experts compute, besides their tensors.
#[derive(Debug, Clone, PartialEq)]
pub struct ExpertSpec {
    /// Which tokens go to which expert.
    pub slots: Arc<SortedSlots>,
    /// How the gate's logits become a gate.
    pub activation: Activation,
}

/// Gated experts from the gather to the combination: for every token n the sum over its slots s, with expert e,
/// `y_n = sum_s w_s down_e (act(gate_e x_n) * up_e x_n)`.
///
/// Differentiable in every tensor. On the CPU the tokens are read where they stand and outputs are added to their tokens
/// as they are made, in the order of the slots: neither is ever held for all slots. With gradients the inner rows
/// `[slots, 2 inner]` are kept for the backward pass, and nothing else. Elsewhere it is made of [`grouped_matmul`] and
/// tensor operations.
///
/// # Shapes
///
/// - `x`: `[tokens, width]`; result `[tokens, width]` in its type
/// - `weights`: any two axes, as many elements as `slots` says
/// - `gate_up`: `[experts, 2 inner, width]`, the gate's rows first; `down`: `[experts, width, inner]`; in the type of `x`
///
/// # Panics
///
/// When shapes or types (see the [crate]) do not fit.
pub fn gated_experts(
    x: Tensor<2>,
    weights: Tensor<2>,
    slots: &Arc<SortedSlots>,
    gate_up: Tensor<3>,
    down: Tensor<3>,
    activation: Activation,
) -> Tensor<2> {
    let ([tokens, width], [experts, rows, from]) = (x.dims(), gate_up.dims());
    assert!(
        width == from && rows % 2 == 0 && down.dims() == [experts, width, rows / 2],
        "gated_experts: `x` {:?}, `gate_up` {:?} and `down` {:?} do not fit",
        x.dims(),
        gate_up.dims(),
        down.dims()
    );
    assert!(
        tokens == slots.tokens()
            && weights.shape().num_elements() == slots.weights()
            && experts == slots.experts(),
        "gated_experts: {tokens} tokens, weights {:?} and {experts} experts, but slots for {}, {} and {}",
        weights.dims(),
        slots.tokens(),
        slots.weights(),
        slots.experts()
    );
    let dtype = x.dtype();
    assert!(
        gate_up.dtype() == dtype && down.dtype() == dtype,
        "gated_experts: `x` is in {dtype:?}, `gate_up` in {:?}, `down` in {:?}: cast them first",
        gate_up.dtype(),
        down.dtype()
    );
    check_dtypes("gated_experts", dtype, [Some(weights.dtype())]);
    if slots.rows().is_empty() {
        return x.zeros_like();
    }
    Tensor::from_dispatch(<Dispatch as GroupedBackend>::gated_experts(
        x.into_dispatch(),
        weights.into_dispatch(),
        gate_up.into_dispatch(),
        down.into_dispatch(),
        ExpertSpec { slots: slots.clone(), activation },
    ))
}

/// The tensors of experts.
#[derive(Debug)]
pub(crate) struct ExpertArguments<B: Backend> {
    pub x: FloatTensor<B>,
    pub weights: FloatTensor<B>,
    pub gate_up: FloatTensor<B>,
    pub down: FloatTensor<B>,
}

impl<B: Backend> ExpertArguments<B> {
    fn into_tuple(self) -> (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>, FloatTensor<B>) {
        (self.x, self.weights, self.gate_up, self.down)
    }
}

impl<B: Backend> Clone for ExpertArguments<B> {
    fn clone(&self) -> Self {
        Self {
            x: self.x.clone(),
            weights: self.weights.clone(),
            gate_up: self.gate_up.clone(),
            down: self.down.clone(),
        }
    }
}
