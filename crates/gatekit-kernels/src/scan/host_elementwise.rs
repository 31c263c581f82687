//! The fused loops as the elementwise scans of the backends whose tensors are slices of host memory.

use std::ops::Range;

use burn::{
    backend::{TensorMetadata, tensor::FloatTensor},
    tensor::{DType, Shape},
};

use super::{ElementwiseSpec, GradientOf, cpu::elementwise as cpu, portable};
use crate::{
    host::{HostBackend, HostFloat},
    precision::{cast, narrow, widen},
};

/// States of every step and final states.
pub(super) fn forward<B: HostBackend>(
    x: FloatTensor<B>,
    log_decay: FloatTensor<B>,
    initial_state: FloatTensor<B>,
    spec: &ElementwiseSpec,
) -> (FloatTensor<B>, FloatTensor<B>) {
    if !spec.fused {
        return portable::elementwise_forward::<B>(x, log_decay, initial_state, spec);
    }
    let dtype = x.dtype();
    let tensors = widen::<B, 3>([x, log_decay, initial_state]);
    let (output, state) = match tensors[0].dtype() {
        DType::F64 => forward_in::<B, f64>(&tensors, spec),
        _ => forward_in::<B, f32>(&tensors, spec),
    };
    (cast::<B>(output, dtype), state)
}

fn forward_in<B: HostBackend, F: HostFloat>(
    [x, log_decay, initial_state]: &[FloatTensor<B>; 3],
    spec: &ElementwiseSpec,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let shape = x.shape();
    let sequences = sequences(&shape, spec);
    let initial_state = spec.has_initial_state.then(|| B::read(initial_state));
    let problem = cpu::Problem::<F> {
        dim: shape[2],
        sequences: &sequences,
        log_decay: &B::read(log_decay),
        initial_state: initial_state.as_deref(),
    };
    let [output, state] = cpu::forward(&problem, &B::read(x));
    let states = Shape::new([sequences.len(), shape[2]]);
    (B::write(output, shape), B::write(state, states))
}

/// Gradients of `x`, the log decay and the initial state.
pub(super) fn backward<B: HostBackend>(
    output: FloatTensor<B>,
    log_decay: FloatTensor<B>,
    initial_state: FloatTensor<B>,
    gradient: FloatTensor<B>,
    of: GradientOf,
    spec: &ElementwiseSpec,
) -> (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>) {
    if !spec.fused {
        return portable::elementwise_backward::<B>(output, log_decay, initial_state, gradient, of, spec);
    }
    // The output is of the type of `x`, as the gradient of `x` is to be.
    let dtypes = [output.dtype(), log_decay.dtype(), initial_state.dtype()];
    let tensors = widen::<B, 4>([output, log_decay, initial_state, gradient]);
    let gradients = match tensors[0].dtype() {
        DType::F64 => backward_in::<B, f64>(&tensors, of, spec),
        _ => backward_in::<B, f32>(&tensors, of, spec),
    };
    narrow::<B, 3>(gradients, dtypes).into()
}

fn backward_in<B: HostBackend, F: HostFloat>(
    [output, log_decay, initial_state, gradient]: &[FloatTensor<B>; 4],
    of: GradientOf,
    spec: &ElementwiseSpec,
) -> [FloatTensor<B>; 3] {
    let shape = output.shape();
    let sequences = sequences(&shape, spec);
    let initial_state = spec.has_initial_state.then(|| B::read(initial_state));
    let problem = cpu::Problem::<F> {
        dim: shape[2],
        sequences: &sequences,
        log_decay: &B::read(log_decay),
        initial_state: initial_state.as_deref(),
    };
    let gradient = B::read(gradient);
    let (of_output, of_state) = match of {
        GradientOf::Output => (Some(&*gradient), None),
        GradientOf::FinalState => (None, Some(&*gradient)),
    };
    let [x, log_decay, initial] = cpu::backward(&problem, &B::read(output), of_output, of_state);
    let initial = match spec.has_initial_state {
        true => B::write(initial, Shape::new([sequences.len(), shape[2]])),
        false => B::write(vec![F::default()], Shape::new([1])),
    };
    [B::write(x, shape.clone()), B::write(log_decay, shape), initial]
}

/// Rows of every sequence.
fn sequences(shape: &Shape, spec: &ElementwiseSpec) -> Vec<Range<usize>> {
    let (batch, time) = (shape[0], shape[1]);
    match &spec.boundaries {
        Some(boundaries) => boundaries.windows(2).map(|pair| pair[0]..pair[1]).collect(),
        None => (0..batch).map(|row| row * time..(row + 1) * time).collect(),
    }
}
