//! What Burn's kernel fusion must know of an operation before it runs: the shapes and types of its results.
//!
//! Fusion queues an operation and runs it later on the backend below, with that backend's kernels; until then these
//! functions stand for the results. They take what the operation takes, tensors as their shapes and types, and nothing
//! checks them against what it returns: shapes are those that the operation documents, types follow from the rule of the
//! [crate].

use std::sync::Arc;

use burn::{backend::fusion::custom::TensorSpec, tensor::Shape};

use crate::{
    channels::ChannelNormSpec,
    conv::ConvolutionSpec,
    convolution::{ImageConvolutionSpec, ImageGradients},
    grouped::ExpertSpec,
    norm::NormSpec,
    primitive::accumulation,
    rows::RowMap,
    scan::{ElementwiseSpec, GradientOf, ScanSpec, StepSpec, WriteKind},
    selective::SelectiveSpec,
};

type Two = (TensorSpec, TensorSpec);
type Three = (TensorSpec, TensorSpec, TensorSpec);
type Four = (TensorSpec, TensorSpec, TensorSpec, TensorSpec);
type Six = (TensorSpec, TensorSpec, TensorSpec, TensorSpec, TensorSpec, TensorSpec);

/// A result of the type of the main input.
fn output(shape: &Shape, main: &TensorSpec) -> TensorSpec {
    TensorSpec::new(shape.clone(), main.dtype)
}

/// A state, of the type that sums over the main input are made in.
fn state(shape: impl Into<Shape>, main: &TensorSpec) -> TensorSpec {
    TensorSpec::new(shape.into(), accumulation(main.dtype))
}

/// The gradient of an argument, a single zero for an absent one.
fn gradient(argument: &TensorSpec, is_given: bool) -> TensorSpec {
    if is_given { argument.clone() } else { TensorSpec::new([1].into(), argument.dtype) }
}

/// How many sequences `batch` rows hold.
fn sequences(batch: usize, boundaries: &Option<Arc<[usize]>>) -> usize {
    boundaries.as_ref().map_or(batch, |boundaries| boundaries.len() - 1)
}

/// Output and final state of a matrix-state scan.
pub(crate) fn matrix_scan(
    q: &TensorSpec,
    _k: &TensorSpec,
    v: &TensorSpec,
    _log_decay: &TensorSpec,
    _beta: &TensorSpec,
    _initial_state: &TensorSpec,
    spec: &ScanSpec,
) -> Two {
    let (batch, heads, key_dim, value_dim) = (q.shape[0], q.shape[2], q.shape[3], v.shape[3]);
    let states = [sequences(batch, &spec.boundaries), heads, key_dim, value_dim];
    (output(&v.shape, q), state(states, q))
}

/// Gradients of the arguments of a matrix-state scan.
pub(crate) fn matrix_scan_backward(
    q: &TensorSpec,
    k: &TensorSpec,
    v: &TensorSpec,
    log_decay: &TensorSpec,
    beta: &TensorSpec,
    initial_state: &TensorSpec,
    _gradient: &TensorSpec,
    _of: &GradientOf,
    spec: &ScanSpec,
) -> Six {
    (
        q.clone(),
        k.clone(),
        v.clone(),
        gradient(log_decay, spec.has_decay()),
        gradient(beta, spec.write == WriteKind::Delta),
        gradient(initial_state, spec.has_initial_state),
    )
}

/// Output and state of one step of a matrix-state scan.
pub(crate) fn matrix_scan_step(
    q: &TensorSpec,
    _k: &TensorSpec,
    v: &TensorSpec,
    _log_decay: &TensorSpec,
    _beta: &TensorSpec,
    old: &TensorSpec,
    _spec: &StepSpec,
) -> Two {
    (output(&v.shape, q), state(old.shape.clone(), q))
}

/// States of every step and final states of an elementwise scan.
pub(crate) fn elementwise_scan(
    x: &TensorSpec,
    _log_decay: &TensorSpec,
    _initial_state: &TensorSpec,
    spec: &ElementwiseSpec,
) -> Two {
    let (batch, dim) = (x.shape[0], x.shape[2]);
    (x.clone(), state([sequences(batch, &spec.boundaries), dim], x))
}

/// Gradients of the arguments of an elementwise scan.
pub(crate) fn elementwise_scan_backward(
    output: &TensorSpec,
    log_decay: &TensorSpec,
    initial_state: &TensorSpec,
    _gradient: &TensorSpec,
    _of: &GradientOf,
    spec: &ElementwiseSpec,
) -> Three {
    (output.clone(), log_decay.clone(), gradient(initial_state, spec.has_initial_state))
}

/// Output and final state of a selective scan.
pub(crate) fn selective_scan(
    x: &TensorSpec,
    _delta: &TensorSpec,
    a: &TensorSpec,
    _b: &TensorSpec,
    _c: &TensorSpec,
    _initial_state: &TensorSpec,
    spec: &SelectiveSpec,
) -> Two {
    let (channels, size) = (a.shape[0], a.shape[1]);
    (x.clone(), state([sequences(x.shape[0], &spec.boundaries), channels, size], x))
}

/// Gradients of the arguments of a selective scan.
pub(crate) fn selective_scan_backward(
    x: &TensorSpec,
    delta: &TensorSpec,
    a: &TensorSpec,
    b: &TensorSpec,
    c: &TensorSpec,
    initial_state: &TensorSpec,
    _gradient: &TensorSpec,
    _of: &GradientOf,
    spec: &SelectiveSpec,
) -> Six {
    (
        x.clone(),
        delta.clone(),
        a.clone(),
        b.clone(),
        c.clone(),
        gradient(initial_state, spec.has_initial_state),
    )
}

/// Output and state of one step of a selective scan.
pub(crate) fn selective_scan_step(
    x: &TensorSpec,
    _delta: &TensorSpec,
    _a: &TensorSpec,
    _b: &TensorSpec,
    _c: &TensorSpec,
    old: &TensorSpec,
    _fused: &bool,
) -> Two {
    (x.clone(), state(old.shape.clone(), x))
}

/// Gradients of the arguments of a norm.
pub(crate) fn rms_norm_backward(
    x: &TensorSpec,
    weight: &TensorSpec,
    logits: &TensorSpec,
    _gradient: &TensorSpec,
    spec: &NormSpec,
) -> Three {
    (x.clone(), weight.clone(), gradient(logits, spec.gate.is_some()))
}

/// Gradients of the arguments of a short convolution.
pub(crate) fn short_convolution_backward(
    x: &TensorSpec,
    weight: &TensorSpec,
    bias: &TensorSpec,
    state: &TensorSpec,
    _gradient: &TensorSpec,
    spec: &ConvolutionSpec,
) -> Four {
    (x.clone(), weight.clone(), gradient(bias, spec.has_bias), gradient(state, spec.has_state))
}

/// Result of a convolution of images.
pub(crate) fn image_convolution(
    x: &TensorSpec,
    weight: &TensorSpec,
    _scale: &TensorSpec,
    _bias: &TensorSpec,
    spec: &ImageConvolutionSpec,
) -> TensorSpec {
    let [height, width] = spec.result([x.shape[2], x.shape[3]], [weight.shape[2], weight.shape[3]]);
    output(&[x.shape[0], weight.shape[0], height, width].into(), x)
}

/// Gradients of the arguments of a convolution of images.
pub(crate) fn image_convolution_backward(
    x: &TensorSpec,
    weight: &TensorSpec,
    _gradient: &TensorSpec,
    _spec: &ImageConvolutionSpec,
    wanted: &ImageGradients,
) -> Three {
    let bias = TensorSpec::new([weight.shape[0]].into(), x.dtype);
    (gradient(x, wanted.x), gradient(weight, wanted.weight), gradient(&bias, wanted.bias))
}

/// Mean and variance of the channels.
pub(crate) fn channel_statistics(x: &TensorSpec) -> Two {
    let row = output(&[x.shape[1]].into(), x);
    (row.clone(), row)
}

/// Maps of some groups mixed.
pub(crate) fn mix_maps(x: &TensorSpec, weights: &TensorSpec, _spatial: &TensorSpec) -> TensorSpec {
    output(&[x.shape[0], x.shape[1] / weights.shape[1], x.shape[2]].into(), x)
}

/// Gradients of the arguments of a normalisation of channels.
pub(crate) fn channel_norm_backward(
    x: &TensorSpec,
    gamma: &TensorSpec,
    beta: &TensorSpec,
    _mean: &TensorSpec,
    _variance: &TensorSpec,
    _gradient: &TensorSpec,
    _spec: &ChannelNormSpec,
) -> Three {
    (x.clone(), gamma.clone(), beta.clone())
}

/// Result of a grouped product.
pub(crate) fn grouped_matmul(x: &TensorSpec, weight: &TensorSpec, _offsets: &Arc<[usize]>) -> TensorSpec {
    output(&[x.shape[0], weight.shape[1]].into(), x)
}

/// Rows put together.
pub(crate) fn combine_rows(x: &TensorSpec, map: &Arc<RowMap>) -> TensorSpec {
    output(&[map.targets(), x.shape[1]].into(), x)
}

/// Outputs and inner rows of gated experts.
pub(crate) fn gated_experts_kept(
    x: &TensorSpec,
    _weights: &TensorSpec,
    gate_up: &TensorSpec,
    _down: &TensorSpec,
    spec: &ExpertSpec,
) -> Two {
    (x.clone(), output(&[spec.slots.rows().len(), gate_up.shape[1]].into(), x))
}

/// Gradients of the arguments of gated experts.
pub(crate) fn gated_experts_backward(
    x: &TensorSpec,
    weights: &TensorSpec,
    gate_up: &TensorSpec,
    down: &TensorSpec,
    _kept: &TensorSpec,
    _gradient: &TensorSpec,
    _spec: &ExpertSpec,
) -> Four {
    (x.clone(), weights.clone(), gate_up.clone(), down.clone())
}
