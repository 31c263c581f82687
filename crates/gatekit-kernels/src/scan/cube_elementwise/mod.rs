//! The elementwise recurrence as CubeCL kernels, parallel over channels and over time.
//!
//! A unit walks over the steps of one chunk for one line of channels. Where there are several
//! chunks this takes three passes: what a chunk makes of the state it gets, as the product of its
//! decays and the state that it ends with from zero; the state that each chunk gets, one chunk after
//! another; the chunks again, now from these states. The backward pass is the same in reverse.

mod backward;
mod forward;

use burn::backend::{Backend, TensorMetadata, tensor::FloatTensor};
use burn_cubecl::tensor::CubeTensor;

use super::{ElementwiseSpec, GradientOf, portable};
use crate::cube::{into_contiguous, is_fused, line};

/// Units that fill a large device.
const UNITS: usize = 1 << 15;
/// Steps of a chunk, at least.
const STEPS: usize = 16;

/// What the kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Plan {
    has_initial_state: bool,
    is_packed: bool,
    /// Whether there is more than one chunk.
    has_carries: bool,
}

/// A scan's sizes, and how it is spread over units.
struct Problem {
    batch: usize,
    time: usize,
    dim: usize,
    line: usize,
    /// Steps of a chunk.
    steps: usize,
    plan: Plan,
}

impl Problem {
    fn new(x: &CubeTensor, spec: &ElementwiseSpec, tensors: &[&CubeTensor]) -> Self {
        let shape = x.shape();
        let (batch, time, dim) = (shape[0], shape[1], shape[2]);
        let line = line(dim, tensors);
        // As many chunks as there are units to fill; but a chunk's steps, and then the chunks, are
        // walked over one after another.
        let chunks = (UNITS / (batch * dim / line)).max(1);
        let shortest = STEPS.max((time as f64 / 2.0).sqrt() as usize);
        let steps = time.div_ceil(chunks).max(shortest).min(time);
        let plan = Plan {
            has_initial_state: spec.has_initial_state,
            is_packed: spec.boundaries.is_some(),
            has_carries: steps < time,
        };
        Self { batch, time, dim, line, steps, plan }
    }

    fn lines(&self) -> usize {
        self.dim / self.line
    }

    fn chunks(&self) -> usize {
        self.time.div_ceil(self.steps)
    }

    fn chunks_shape(&self) -> [usize; 3] {
        [self.batch, self.chunks(), self.dim]
    }

    /// Units that walk over a chunk each.
    fn units(&self) -> usize {
        self.batch * self.chunks() * self.lines()
    }
}

/// States of every step, and the final states in float32.
pub(super) fn elementwise_forward<B: Backend<FloatTensorPrimitive = CubeTensor>>(
    x: FloatTensor<B>,
    log_decay: FloatTensor<B>,
    initial_state: FloatTensor<B>,
    spec: &ElementwiseSpec,
) -> (CubeTensor, CubeTensor) {
    if !spec.fused || ![&x, &log_decay, &initial_state].into_iter().all(is_fused) {
        return portable::elementwise_forward::<B>(x, log_decay, initial_state, spec);
    }
    let [x, log_decay, initial_state] = [x, log_decay, initial_state].map(into_contiguous);
    let initial_state = if spec.has_initial_state { initial_state } else { x.clone() };
    let problem = Problem::new(&x, spec, &[&x, &log_decay, &initial_state]);
    forward::run(&problem, &x, &log_decay, &initial_state, spec.boundaries.as_deref())
}

/// Gradients of `x`, the log decay and the initial state: the equations of the portable form.
pub(super) fn elementwise_backward<B: Backend<FloatTensorPrimitive = CubeTensor>>(
    output: FloatTensor<B>,
    log_decay: FloatTensor<B>,
    initial_state: FloatTensor<B>,
    gradient: FloatTensor<B>,
    of: GradientOf,
    spec: &ElementwiseSpec,
) -> (CubeTensor, CubeTensor, CubeTensor) {
    if !spec.fused || ![&output, &log_decay, &initial_state, &gradient].into_iter().all(is_fused) {
        let (of_output, of_state) = of.sort(gradient);
        return portable::elementwise_backward::<B>(
            output,
            log_decay,
            initial_state,
            of_output,
            of_state,
            spec,
        );
    }
    let [output, log_decay, gradient] = [output, log_decay, gradient].map(into_contiguous);
    let initial_state = if spec.has_initial_state { into_contiguous(initial_state) } else { output.clone() };
    let problem = Problem::new(&output, spec, &[&output, &log_decay, &initial_state, &gradient]);
    let arguments = backward::Arguments { output, log_decay, initial_state, gradient, of };
    backward::run(&problem, arguments, spec.boundaries.as_deref())
}
