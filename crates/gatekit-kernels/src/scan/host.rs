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
use crate::{host::HostBackend, precision::cast};

/// Whether the fused kernels compute this scan; the others are left to the portable form.
fn is_fused<B: Backend>(arguments: &ScanArguments<B>, spec: &ScanSpec) -> bool {
    spec.fused && arguments.q.dtype() != DType::F64
}

/// The forward pass.
pub(crate) fn forward<B: HostBackend>(
    arguments: ScanArguments<B>,
    spec: &ScanSpec,
) -> (FloatTensor<B>, FloatTensor<B>) {
    if !is_fused(&arguments, spec) {
        return portable::forward(arguments, spec);
    }
    let dtype = arguments.q.dtype();
    let arguments = arguments.widened();
    let [output, state] = result_shapes(&arguments, spec);
    let result = with_problem(&arguments, spec, cpu::forward);
    (cast::<B>(B::write(result.output, output), dtype), B::write(result.state, state))
}

/// The backward pass.
pub(crate) fn backward<B: HostBackend>(
    arguments: ScanArguments<B>,
    gradient: FloatTensor<B>,
    of: GradientOf,
    spec: &ScanSpec,
) -> ScanGradients<B> {
    if !is_fused(&arguments, spec) {
        return portable::backward(arguments, gradient, of, spec);
    }
    let dtypes = arguments.dtypes();
    let arguments = arguments.widened();
    let gradient = cast::<B>(gradient, arguments.q.dtype());
    let gradient = B::read(&gradient);
    let (output, state) = match of {
        GradientOf::Output => (Some(&*gradient), None),
        GradientOf::FinalState => (None, Some(&*gradient)),
    };
    let gradients = with_problem(&arguments, spec, |problem| cpu::backward(problem, output, state));
    let absent = |values: Option<Vec<f32>>, like: &FloatTensor<B>| match values {
        Some(values) => B::write(values, like.shape()),
        None => B::write(vec![0.0], Shape::new([1])),
    };
    ScanGradients {
        q: B::write(gradients.q, arguments.q.shape()),
        k: B::write(gradients.k, arguments.k.shape()),
        v: B::write(gradients.v, arguments.v.shape()),
        log_decay: absent(gradients.decay, &arguments.log_decay),
        beta: absent(gradients.beta, &arguments.beta),
        initial_state: absent(gradients.initial_state, &arguments.initial_state),
    }
    .narrowed(dtypes)
}

/// One step; writes the new state into the memory of the old one where nothing else holds it.
pub(crate) fn step<B: HostBackend>(
    arguments: ScanArguments<B>,
    spec: &StepSpec,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let dtype = arguments.q.dtype();
    if !spec.fused || dtype == DType::F64 {
        return portable::step(arguments, spec);
    }
    let ScanArguments { q, k, v, log_decay, beta, initial_state } = arguments.widened();
    let (q_shape, v_shape, state_shape) = (q.shape(), v.shape(), initial_state.shape());
    let mut state = B::take(initial_state);
    let log_decay = (spec.decay != DecayKind::None).then(|| B::read(&log_decay));
    let beta = (spec.write == WriteKind::Delta).then(|| B::read(&beta));
    let problem = StepProblem {
        batch: q_shape[0],
        heads: q_shape[1],
        key_dim: q_shape[2],
        value_dim: v_shape[2],
        scale: spec.scale as f32,
        q: &B::read(&q),
        k: &B::read(&k),
        v: &B::read(&v),
        decay: decay(spec.decay, log_decay.as_deref()),
        beta: beta.as_deref(),
    };
    let output = cpu::step(&problem, &mut state);
    (cast::<B>(B::write(output, v_shape), dtype), B::write(state, state_shape))
}

fn decay(kind: DecayKind, log_decay: Option<&[f32]>) -> Decay<'_> {
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

fn with_problem<B: HostBackend, R>(
    arguments: &ScanArguments<B>,
    spec: &ScanSpec,
    run: impl FnOnce(&Problem) -> R,
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
        scale: spec.scale as f32,
        q: &B::read(q),
        k: &B::read(k),
        v: &B::read(v),
        decay: decay(spec.decay, log_decay.as_deref()),
        beta: beta.as_deref(),
        initial_state: initial_state.as_deref(),
    })
}
