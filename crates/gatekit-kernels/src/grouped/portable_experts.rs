//! Gated experts in backend operations.

use std::sync::Arc;

use burn::backend::{Backend, TensorMetadata, tensor::FloatTensor};

use super::{ExpertArguments, ExpertSpec, GroupedBackend};
use crate::primitive::{Primitive, accumulation};

/// The weights of the slots in their order, `[slots, 1]`.
fn sorted<B: Backend>(weights: &Primitive<B>, spec: &ExpertSpec) -> Primitive<B> {
    let slots = &spec.slots;
    weights
        .clone()
        .reshape([slots.weights()])
        .select(0, slots.order().to_vec())
        .reshape([slots.rows().len(), 1])
}

/// Adds rows `[rows, width]` to the rows of zeros `[count, width]` that they belong to.
pub(super) type AddRows<B> = fn(Primitive<B>, &[usize], usize) -> Primitive<B>;

/// [`AddRows`] of any backend.
pub(super) fn add_rows<B: Backend>(rows: Primitive<B>, to: &[usize], count: usize) -> Primitive<B> {
    let width = rows.dims()[1];
    rows.zeros([count, width]).select_add(0, to.to_vec(), rows)
}

/// The halves of the inner rows: the gate's logits and what is gated.
fn halves<B: Backend>(rows: &Primitive<B>) -> [Primitive<B>; 2] {
    let inner = rows.dims()[1] / 2;
    [rows.narrow(1, 0..inner), rows.narrow(1, inner..2 * inner)]
}

/// The outputs and the inner rows.
pub(super) fn forward<B: GroupedBackend>(
    arguments: ExpertArguments<B>,
    spec: &ExpertSpec,
    add: AddRows<B>,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let ExpertArguments { x, weights, gate_up, down } = arguments;
    let (dtype, offsets) = (x.dtype(), Arc::<[usize]>::from(spec.slots.offsets()));
    let rows = Primitive::<B>(x).select(0, spec.slots.rows().to_vec());
    let kept = Primitive::<B>(B::grouped_matmul(rows.0, gate_up, offsets.clone()));
    let [gate, up] = halves(&kept);
    let activations = B::gated_product(up.0, gate.0, spec.activation);
    let outputs = Primitive::<B>(B::grouped_matmul(activations, down, offsets)).cast(accumulation(dtype));
    let weights = sorted(&Primitive::<B>(weights), spec).cast(accumulation(dtype));
    let y = add(outputs * weights, spec.slots.rows(), spec.slots.tokens());
    (y.cast(dtype).0, kept.0)
}

/// Gradients of all arguments.
pub(super) fn backward<B: GroupedBackend>(
    arguments: ExpertArguments<B>,
    kept: FloatTensor<B>,
    gradient: FloatTensor<B>,
    spec: &ExpertSpec,
    add: AddRows<B>,
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
    let dy = Primitive::<B>(gradient).select(0, spec.slots.rows().to_vec());
    // With weighted activations in place of the inputs, the gradient of the matrix is weighted and that of the inputs is
    // not: the gradient of the weights needs it so.
    let (da, ddown) = B::grouped_matmul_backward(weighted.0, down, dy.0, offsets.clone());
    let da = Primitive::<B>(da).cast(wide);
    let dweights = add((activations * da.clone()).sum(1), spec.slots.order(), spec.slots.weights());
    let dweights = dweights.reshape(weights.dims()).cast(weights.dtype());
    let (dup, dgate) = B::gated_product_backward(up.0, gate.0, (da * weight).cast(dtype).0, spec.activation);
    let dkept = Primitive::<B>::cat(vec![Primitive(dgate), Primitive(dup)], 1);
    let rows = Primitive::<B>(x).select(0, spec.slots.rows().to_vec());
    let (drows, dgate_up) = B::grouped_matmul_backward(rows.0, gate_up, dkept.0, offsets);
    let dx = add(Primitive::<B>(drows).cast(wide), spec.slots.rows(), spec.slots.tokens());
    ExpertArguments { x: dx.cast(dtype).0, weights: dweights.0, gate_up: dgate_up, down: ddown }
}
