//! Gated experts in backend operations.

use std::sync::Arc;

use burn::backend::{TensorMetadata, tensor::FloatTensor};

use super::{ExpertArguments, ExpertSpec, GroupedBackend};
use crate::{
    primitive::{Primitive, accumulation},
    rows::RowMap,
};

/// The weights of the slots in their order, `[slots, 1]`.
fn sorted<B: GroupedBackend>(weights: &Primitive<B>, spec: &ExpertSpec) -> Primitive<B> {
    picked(weights.clone().reshape([spec.slots.weights(), 1]), spec.slots.order())
}

/// The rows of `x` that slots pick, in their order.
fn picked<B: GroupedBackend>(x: Primitive<B>, from: &[usize]) -> Primitive<B> {
    let map = RowMap::picking(x.dims()[0], from.to_vec());
    Primitive(B::combine_rows(x.0, Arc::new(map)))
}

/// Adds rows `[rows, width]` to the rows of zeros `[count, width]` that they belong to.
fn added<B: GroupedBackend>(rows: Primitive<B>, to: &[usize], count: usize) -> Primitive<B> {
    Primitive(B::combine_rows(rows.0, Arc::new(RowMap::adding(to, count))))
}

/// The halves of the inner rows: the gate's logits and what is gated.
fn halves<B: GroupedBackend>(rows: &Primitive<B>) -> [Primitive<B>; 2] {
    let inner = rows.dims()[1] / 2;
    [rows.narrow(1, 0..inner), rows.narrow(1, inner..2 * inner)]
}

/// The outputs and the inner rows.
pub(super) fn forward<B: GroupedBackend>(
    arguments: ExpertArguments<B>,
    spec: &ExpertSpec,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let ExpertArguments { x, weights, gate_up, down } = arguments;
    let (dtype, offsets) = (x.dtype(), Arc::<[usize]>::from(spec.slots.offsets()));
    let rows = picked(Primitive::<B>(x), spec.slots.rows());
    let kept = Primitive::<B>(B::grouped_matmul(rows.0, gate_up, offsets.clone()));
    let [gate, up] = halves(&kept);
    let activations = B::gated_product(up.0, gate.0, spec.activation);
    let outputs = Primitive::<B>(B::grouped_matmul(activations, down, offsets)).cast(accumulation(dtype));
    let weights = sorted(&Primitive::<B>(weights), spec).cast(accumulation(dtype));
    let y = added(outputs * weights, spec.slots.rows(), spec.slots.tokens());
    (y.cast(dtype).0, kept.0)
}

/// Gradients of all arguments.
pub(super) fn backward<B: GroupedBackend>(
    arguments: ExpertArguments<B>,
    kept: FloatTensor<B>,
    gradient: FloatTensor<B>,
    spec: &ExpertSpec,
) -> ExpertArguments<B> {
    let ExpertArguments { x, weights, gate_up, down } = arguments;
    let (dtype, offsets) = (x.dtype(), Arc::<[usize]>::from(spec.slots.offsets()));
    let wide = accumulation(dtype);
    let (weights, kept) = (Primitive::<B>(weights), Primitive::<B>(kept));
    let weight = sorted(&weights, spec).cast(wide);
    let [gate, up] = halves(&kept);
    let activations =
        Primitive::<B>(B::gated_product(up.0.clone(), gate.0.clone(), spec.activation)).cast(wide);
    let weighted = (activations.clone() * weight.clone()).cast(dtype);
    let dy = picked(Primitive::<B>(gradient), spec.slots.rows());
    // With weighted activations in place of the inputs, the gradient of the matrix is weighted and that of the inputs is
    // not: the gradient of the weights needs it so.
    let (da, ddown) = B::grouped_matmul_backward(weighted.0, down, dy.0, offsets.clone());
    let da = Primitive::<B>(da).cast(wide);
    let dweights = added((activations * da.clone()).sum(1), spec.slots.order(), spec.slots.weights());
    let dweights = dweights.reshape(weights.dims()).cast(weights.dtype());
    let (dup, dgate) = B::gated_product_backward(up.0, gate.0, (da * weight).cast(dtype).0, spec.activation);
    let dkept = Primitive::<B>::cat(vec![Primitive(dgate), Primitive(dup)], 1);
    let rows = picked(Primitive::<B>(x), spec.slots.rows());
    let (drows, dgate_up) = B::grouped_matmul_backward(rows.0, gate_up, dkept.0, offsets);
    let dx = added(Primitive::<B>(drows).cast(wide), spec.slots.rows(), spec.slots.tokens());
    ExpertArguments { x: dx.cast(dtype).0, weights: dweights.0, gate_up: dgate_up, down: ddown }
}
