//! The fused CPU kernels as the scans of the backends whose tensors are slices of host memory.

use burn::{
    backend::{Backend, TensorMetadata, tensor::FloatTensor},
    tensor::{DType, Shape},
};

use super::{
    DecayKind, GradientOf, ScanArguments, ScanGradients, ScanSpec, StepSpec, WriteKind,
    cpu::{self, Decay, Problem, Segment, StepProblem},
    portable,
};
use crate::{
    host::{HostBackend, HostFloat},
    precision::cast,
};

/// The forward pass.
pub(crate) fn forward<B: HostBackend>(
    arguments: ScanArguments<B>,
    spec: &ScanSpec,
) -> (FloatTensor<B>, FloatTensor<B>) {
    if !spec.fused {
        return portable::forward(arguments, spec);
    }
    let dtype = arguments.q.dtype();
    let arguments = arguments.widened();
    let (output, state) = match dtype {
        DType::F64 => forward_in::<B, f64>(&arguments, spec),
        _ => forward_in::<B, f32>(&arguments, spec),
    };
    (cast::<B>(output, dtype), state)
}

fn forward_in<B: HostBackend, F: HostFloat>(
    arguments: &ScanArguments<B>,
    spec: &ScanSpec,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let [output, state] = result_shapes(arguments, spec);
    let result = with_problem::<B, F, _>(arguments, spec, cpu::forward);
    (B::write(result.output, output), B::write(result.state, state))
}

/// The backward pass.
pub(crate) fn backward<B: HostBackend>(
    arguments: ScanArguments<B>,
    gradient: FloatTensor<B>,
    of: GradientOf,
    spec: &ScanSpec,
) -> ScanGradients<B> {
    if !spec.fused {
        return portable::backward(arguments, gradient, of, spec);
    }
    let dtypes = arguments.dtypes();
    let arguments = arguments.widened();
    let gradient = cast::<B>(gradient, arguments.q.dtype());
    match arguments.q.dtype() {
        DType::F64 => backward_in::<B, f64>(&arguments, &gradient, of, spec),
        _ => backward_in::<B, f32>(&arguments, &gradient, of, spec),
    }
    .narrowed(dtypes)
}

fn backward_in<B: HostBackend, F: HostFloat>(
    arguments: &ScanArguments<B>,
    gradient: &FloatTensor<B>,
    of: GradientOf,
    spec: &ScanSpec,
) -> ScanGradients<B> {
    let gradient = B::read::<F>(gradient);
    let (output, state) = match of {
        GradientOf::Output => (Some(&*gradient), None),
        GradientOf::FinalState => (None, Some(&*gradient)),
    };
    let gradients = with_problem(arguments, spec, |problem| cpu::backward(problem, output, state));
    let absent = |values: Option<Vec<F>>, like: &FloatTensor<B>| match values {
        Some(values) => B::write(values, like.shape()),
        None => B::write(vec![F::default()], Shape::new([1])),
    };
    ScanGradients {
        q: B::write(gradients.q, arguments.q.shape()),
        k: B::write(gradients.k, arguments.k.shape()),
        v: B::write(gradients.v, arguments.v.shape()),
        log_decay: absent(gradients.decay, &arguments.log_decay),
        beta: absent(gradients.beta, &arguments.beta),
        initial_state: absent(gradients.initial_state, &arguments.initial_state),
    }
}

/// One step; writes the new state into the memory of the old one where nothing else holds it.
pub(crate) fn step<B: HostBackend>(
    arguments: ScanArguments<B>,
    spec: &StepSpec,
) -> (FloatTensor<B>, FloatTensor<B>) {
    if !spec.fused {
        return portable::step(arguments, spec);
    }
    let dtype = arguments.q.dtype();
    let arguments = arguments.widened();
    let (output, state) = match dtype {
        DType::F64 => step_in::<B, f64>(arguments, spec),
        _ => step_in::<B, f32>(arguments, spec),
    };
    (cast::<B>(output, dtype), state)
}

fn step_in<B: HostBackend, F: HostFloat>(
    arguments: ScanArguments<B>,
    spec: &StepSpec,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let ScanArguments { q, k, v, log_decay, beta, initial_state } = arguments;
    let (q_shape, v_shape, state_shape) = (q.shape(), v.shape(), initial_state.shape());
    let mut state = B::take::<F>(initial_state);
    let log_decay = (spec.decay != DecayKind::None).then(|| B::read(&log_decay));
    let beta = (spec.write == WriteKind::Delta).then(|| B::read(&beta));
    let problem = StepProblem {
        batch: q_shape[0],
        heads: q_shape[1],
        key_dim: q_shape[2],
        value_dim: v_shape[2],
        scale: F::of(spec.scale),
        q: &B::read(&q),
        k: &B::read(&k),
        v: &B::read(&v),
        decay: decay(spec.decay, log_decay.as_deref()),
        beta: beta.as_deref(),
    };
    let output = cpu::step(&problem, &mut state);
    (B::write(output, v_shape), B::write(state, state_shape))
}

fn decay<F>(kind: DecayKind, log_decay: Option<&[F]>) -> Decay<'_, F> {
    match (kind, log_decay) {
        (DecayKind::PerHead, Some(log_decay)) => Decay::PerHead(log_decay),
        (DecayKind::PerKey, Some(log_decay)) => Decay::PerKey(log_decay),
        _ => Decay::None,
    }
}

/// Shapes of the output and of the final state.
fn result_shapes<B: Backend>(arguments: &ScanArguments<B>, spec: &ScanSpec) -> [Shape; 2] {
    let (q, v) = (arguments.q.shape(), arguments.v.shape());
    let states = spec.boundaries.as_ref().map_or(q[0], |boundaries| boundaries.len() - 1);
    [v.clone(), Shape::new([states, q[2], q[3], v[3]])]
}

fn with_problem<B: HostBackend, F: HostFloat, R>(
    arguments: &ScanArguments<B>,
    spec: &ScanSpec,
    run: impl FnOnce(&Problem<F>) -> R,
) -> R {
    let ScanArguments { q, k, v, log_decay, beta, initial_state } = arguments;
    let (shape, value_dim) = (q.shape(), v.shape()[3]);
    let segments = match &spec.boundaries {
        Some(boundaries) => Segment::packed(boundaries),
        None => Segment::rows(shape[0], shape[1]),
    };
    let log_decay = spec.has_decay().then(|| B::read(log_decay));
    let beta = (spec.write == WriteKind::Delta).then(|| B::read(beta));
    let initial_state = spec.has_initial_state.then(|| B::read(initial_state));
    run(&Problem {
        batch: shape[0],
        time: shape[1],
        heads: shape[2],
        key_dim: shape[3],
        value_dim,
        segments: &segments,
        scale: F::of(spec.scale),
        q: &B::read(q),
        k: &B::read(k),
        v: &B::read(v),
        decay: decay(spec.decay, log_decay.as_deref()),
        beta: beta.as_deref(),
        initial_state: initial_state.as_deref(),
    })
}
