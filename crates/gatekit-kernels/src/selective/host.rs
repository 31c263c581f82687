//! The fused loops as the selective scans of the backends whose tensors are slices of host memory.

use std::ops::Range;

use burn::{
    backend::{Backend, TensorMetadata, tensor::FloatTensor},
    tensor::{DType, Shape},
};

use super::{
    SelectiveArguments, SelectiveSpec, SelectiveStep,
    cpu::{self, Problem, StepProblem},
    portable,
};
use crate::{
    host::{HostBackend, HostFloat},
    precision::cast,
    primitive::accumulation,
    scan::GradientOf,
};

/// The forward pass.
pub(super) fn forward<B: HostBackend>(
    arguments: SelectiveArguments<B>,
    spec: &SelectiveSpec,
) -> (FloatTensor<B>, FloatTensor<B>) {
    if !spec.fused {
        return portable::forward(arguments, spec);
    }
    let dtype = arguments.x.dtype();
    let arguments = arguments.widened();
    let (y, state) = match accumulation(dtype) {
        DType::F64 => forward_in::<B, f64>(&arguments, spec),
        _ => forward_in::<B, f32>(&arguments, spec),
    };
    (cast::<B>(y, dtype), state)
}

fn forward_in<B: HostBackend, F: HostFloat>(
    arguments: &SelectiveArguments<B>,
    spec: &SelectiveSpec,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let shape = arguments.x.shape();
    let [y, state] = with_problem::<B, F, _>(arguments, spec, cpu::forward);
    (B::write(y, shape), B::write(state, state_shape(arguments, spec)))
}

/// The backward pass.
pub(super) fn backward<B: HostBackend>(
    arguments: SelectiveArguments<B>,
    gradient: FloatTensor<B>,
    of: GradientOf,
    spec: &SelectiveSpec,
) -> SelectiveArguments<B> {
    if !spec.fused {
        return portable::backward(arguments, gradient, of, spec);
    }
    let dtypes = arguments.dtypes();
    let arguments = arguments.widened();
    let gradient = cast::<B>(gradient, arguments.x.dtype());
    match arguments.x.dtype() {
        DType::F64 => backward_in::<B, f64>(&arguments, &gradient, of, spec),
        _ => backward_in::<B, f32>(&arguments, &gradient, of, spec),
    }
    .narrowed(dtypes)
}

fn backward_in<B: HostBackend, F: HostFloat>(
    arguments: &SelectiveArguments<B>,
    gradient: &FloatTensor<B>,
    of: GradientOf,
    spec: &SelectiveSpec,
) -> SelectiveArguments<B> {
    let gradient = B::read::<F>(gradient);
    let (output, state) = match of {
        GradientOf::Output => (Some(&*gradient), None),
        GradientOf::FinalState => (None, Some(&*gradient)),
    };
    let gradients = with_problem::<B, F, _>(arguments, spec, |problem| cpu::backward(problem, output, state));
    let SelectiveArguments { x, delta, a, b, c, .. } = arguments;
    SelectiveArguments {
        x: B::write(gradients.x, x.shape()),
        delta: B::write(gradients.delta, delta.shape()),
        a: B::write(gradients.a, a.shape()),
        b: B::write(gradients.b, b.shape()),
        c: B::write(gradients.c, c.shape()),
        initial_state: match spec.has_initial_state {
            true => B::write(gradients.initial_state, state_shape(arguments, spec)),
            false => B::write(vec![F::default()], Shape::new([1])),
        },
    }
}

/// One step; writes the new state into the memory of the old one where nothing else holds it.
pub(super) fn step<B: HostBackend>(arguments: SelectiveStep<B>) -> (FloatTensor<B>, FloatTensor<B>) {
    let dtype = arguments.x.dtype();
    let arguments = arguments.widened();
    let (y, state) = match accumulation(dtype) {
        DType::F64 => step_in::<B, f64>(arguments),
        _ => step_in::<B, f32>(arguments),
    };
    (cast::<B>(y, dtype), state)
}

fn step_in<B: HostBackend, F: HostFloat>(arguments: SelectiveStep<B>) -> (FloatTensor<B>, FloatTensor<B>) {
    let SelectiveStep { x, delta, a, b, c, state } = arguments;
    let (shape, state_shape) = (x.shape(), state.shape());
    let mut states = B::take::<F>(state);
    let problem = StepProblem {
        channels: state_shape[1],
        size: state_shape[2],
        x: &B::read(&x),
        delta: &B::read(&delta),
        a: &B::read(&a),
        b: &B::read(&b),
        c: &B::read(&c),
    };
    let y = cpu::step(&problem, &mut states);
    (B::write(y, shape), B::write(states, state_shape))
}

/// `[batch or segments, channels, N]`.
fn state_shape<B: Backend>(arguments: &SelectiveArguments<B>, spec: &SelectiveSpec) -> Shape {
    let (x, a) = (arguments.x.shape(), arguments.a.shape());
    let states = spec.boundaries.as_ref().map_or(x[0], |boundaries| boundaries.len() - 1);
    Shape::new([states, a[0], a[1]])
}

fn with_problem<B: HostBackend, F: HostFloat, R>(
    arguments: &SelectiveArguments<B>,
    spec: &SelectiveSpec,
    run: impl FnOnce(&Problem<F>) -> R,
) -> R {
    let SelectiveArguments { x, delta, a, b, c, initial_state } = arguments;
    let (shape, sizes) = (x.shape(), a.shape());
    let sequences: Vec<Range<usize>> = (0..shape[0])
        .flat_map(|row| {
            let start = row * shape[1];
            spec.sequences(shape[1]).into_iter().map(move |steps| start + steps.start..start + steps.end)
        })
        .collect();
    let initial_state = spec.has_initial_state.then(|| B::read(initial_state));
    run(&Problem {
        channels: sizes[0],
        size: sizes[1],
        sequences: &sequences,
        x: &B::read(x),
        delta: &B::read(delta),
        a: &B::read(a),
        b: &B::read(b),
        c: &B::read(c),
        initial_state: initial_state.as_deref(),
    })
}
