//! The short convolution as CubeCL kernels: a unit walks over some successive steps of one line of
//! channels, with what the filter sees in registers.

mod backward;
mod forward;

use burn::backend::{Backend, TensorMetadata};
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::{ConvolutionArguments, ConvolutionSpec};
use crate::cube::{Sequence, into_contiguous, is_fused, line};

pub(super) use backward::backward;
pub(super) use forward::forward;

/// Numbers of one filter line that a unit keeps in registers, at most.
const KEPT: usize = 32;
/// Steps of a unit, at most.
const STEPS: usize = 64;
/// Units that fill a large device.
const UNITS: usize = 1 << 16;

/// A convolution as the kernels are compiled for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Plan {
    taps: usize,
    /// Lines of all channels.
    lines: usize,
    /// Steps of a unit.
    steps: usize,
    has_bias: bool,
    has_state: bool,
    is_packed: bool,
    silu: bool,
}

/// The contiguous arguments, and how they are spread over units.
struct Problem {
    x: CubeTensor,
    weight: CubeTensor,
    /// The weight where there is no bias.
    bias: CubeTensor,
    /// The inputs where there is no state.
    state: CubeTensor,
    batch: usize,
    time: usize,
    channels: usize,
    line: usize,
    plan: Plan,
}

impl Problem {
    /// `None`: the kernels do not compute with these.
    fn new<B: Backend<FloatTensorPrimitive = CubeTensor>>(
        arguments: &ConvolutionArguments<B>,
        spec: &ConvolutionSpec,
        fewest_steps: usize,
    ) -> Option<Self> {
        let ConvolutionArguments { x, weight, bias, state } = arguments;
        if ![x, weight, bias, state].into_iter().all(is_fused) {
            return None;
        }
        let [x, weight, bias, state] = [x, weight, bias, state].map(|tensor| into_contiguous(tensor.clone()));
        let bias = if spec.has_bias { bias } else { weight.clone() };
        let state = if spec.has_state { state } else { x.clone() };
        let (shape, taps) = (x.shape(), weight.shape()[1]);
        let (batch, time, channels) = (shape[0], shape[1], shape[2]);
        let mut line = line(channels, &[&x, &weight, &bias, &state]);
        while line > 1 && line * taps > KEPT {
            line /= 2;
        }
        let lines = channels / line;
        let mut steps = fewest_steps;
        while steps < STEPS && batch * lines * time / (2 * steps) >= UNITS {
            steps *= 2;
        }
        let plan = Plan {
            taps,
            lines,
            steps,
            has_bias: spec.has_bias,
            has_state: spec.has_state,
            is_packed: spec.boundaries.is_some(),
            silu: spec.silu,
        };
        Some(Self { x, weight, bias, state, batch, time, channels, line, plan })
    }

    /// Units that walk over one line of channels.
    fn walks(&self) -> usize {
        self.batch * self.time.div_ceil(self.plan.steps)
    }
}

/// The filters of one line of channels, `[taps]`.
#[cube]
fn filters<W: Float, N: Size>(weight: &[W], line: usize, #[comptime] plan: Plan) -> Array<Vector<f32, N>> {
    let mut filters = Array::<Vector<f32, N>>::new(plan.taps);
    #[unroll]
    for tap in 0..plan.taps {
        let mut filter = Vector::<f32, N>::new(0.0);
        #[unroll]
        for lane in 0..N::value() {
            let channel = line * N::value() + lane;
            filter.insert(lane, f32::cast_from(weight[channel * plan.taps + tap]));
        }
        filters[tap] = filter;
    }
    filters
}

/// What tap `tap` meets at a step: an earlier step of the sequence, or one before it.
#[cube]
fn input<F: Float, H: Float, N: Size>(
    x: &[Vector<F, N>],
    state: &[Vector<H, N>],
    start_of_row: usize,
    step: usize,
    line: usize,
    sequence: &Sequence,
    #[comptime] tap: usize,
    #[comptime] plan: Plan,
) -> Vector<f32, N> {
    let before = comptime![plan.taps - 1];
    if step + tap >= sequence.start + before {
        Vector::cast_from(x[(start_of_row + step + tap - before) * plan.lines + line])
    } else if comptime![plan.has_state] {
        let place = sequence.index * before + step + tap - sequence.start;
        Vector::cast_from(state[place * plan.lines + line])
    } else {
        Vector::new(0.0)
    }
}

/// The result of a step before its activation.
#[cube]
fn preactivation<N: Size>(
    window: &Array<Vector<f32, N>>,
    filters: &Array<Vector<f32, N>>,
    bias: Vector<f32, N>,
    #[comptime] plan: Plan,
) -> Vector<f32, N> {
    let mut sum = bias;
    #[unroll]
    for tap in 0..plan.taps {
        sum += window[tap] * filters[tap];
    }
    sum
}
