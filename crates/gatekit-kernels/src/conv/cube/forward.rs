//! The forward pass: the window moves along with the steps.

use burn::backend::{Backend, TensorMetadata};
use burn_cubecl::tensor::CubeTensor;
use cubecl::{ir::ElemType, prelude::*};

use super::{Plan, Problem, filters, input, preactivation};
use crate::{
    conv::{ConvolutionArguments, ConvolutionSpec, portable},
    cube::{Sequence, address, allocate, boundaries_of, element, grid},
    gate::{Activation, functions},
};

/// The forward pass.
pub(crate) fn forward<B: Backend<FloatTensorPrimitive = CubeTensor>>(
    arguments: ConvolutionArguments<B>,
    spec: &ConvolutionSpec,
) -> CubeTensor {
    let Some(problem) = Problem::new(&arguments, spec, 4) else {
        return portable::forward(arguments, spec);
    };
    let boundaries = boundaries_of(&problem.x, spec.boundaries.as_deref());
    let (count, cube) = grid(&problem.x, problem.walks() * problem.plan.lines);
    let Problem { x, weight, bias, state, batch, time, line, plan, .. } = problem;
    let y = allocate(&x, x.shape(), x.dtype);
    // SAFETY: a unit has a row of the batch, steps of it and a line of its channels; what lies
    // before a sequence it reads from that sequence's state alone.
    unsafe {
        forward_kernel::launch_unchecked(
            &y.client,
            count,
            cube,
            address(&[&x, &state]),
            line,
            x.clone().into_buffer_arg(),
            weight.clone().into_buffer_arg(),
            bias.clone().into_buffer_arg(),
            state.clone().into_buffer_arg(),
            boundaries,
            y.clone().into_buffer_arg(),
            batch,
            time,
            plan,
            [element(&x), element(&weight), element(&bias), element(&state)],
        );
    }
    y
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn forward_kernel<F: Float, W: Float, B: Float, H: Float, N: Size>(
    x: &[Vector<F, N>],
    weight: &[W],
    bias: &[Vector<B, N>],
    state: &[Vector<H, N>],
    boundaries: &[u32],
    y: &mut [Vector<F, N>],
    batch: usize,
    time: usize,
    #[comptime] plan: Plan,
    #[define(F, W, B, H)] _elements: [ElemType; 4],
) {
    let line = ABSOLUTE_POS % plan.lines;
    let walk = ABSOLUTE_POS / plan.lines;
    let walks = time.div_ceil(plan.steps);
    let row = walk / walks;
    if row < batch {
        let first = walk % walks * plan.steps;
        let filters = filters::<W, N>(weight, line, plan);
        let mut bias_line = Vector::<f32, N>::new(0.0);
        if plan.has_bias {
            bias_line = Vector::cast_from(bias[line]);
        }
        let mut sequence = Sequence::at(first, row, time, boundaries, plan.is_packed);
        let mut window = Array::<Vector<f32, N>>::new(plan.taps);
        for step in first..min(time, first + plan.steps) {
            sequence.follow(step, boundaries, plan.is_packed);
            // The window moves along, except to where it has not been.
            if step == first || step == sequence.start {
                #[unroll]
                for tap in 0..plan.taps {
                    window[tap] = input::<F, H, N>(x, state, row * time, step, line, &sequence, tap, plan);
                }
            } else {
                #[unroll]
                for tap in 0..comptime![plan.taps - 1] {
                    window[tap] = window[tap + 1];
                }
                window[comptime![plan.taps - 1]] =
                    Vector::cast_from(x[(row * time + step) * plan.lines + line]);
            }
            let mut sum = preactivation::<N>(&window, &filters, bias_line, plan);
            if plan.silu {
                sum = functions::value::<N>(sum, Activation::Swish);
            }
            y[(row * time + step) * plan.lines + line] = Vector::cast_from(sum);
        }
    }
}
