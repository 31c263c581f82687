//! The forward pass.

use burn::{
    backend::{Backend, TensorMetadata},
    tensor::DType,
};
use burn_cubecl::tensor::CubeTensor;
use cubecl::{ir::ElemType, prelude::*};

use super::{KEPT, Plan, Problem, chunks::Carries};
use crate::{
    cube::{Boundaries, Sequence, address, allocate, decay, element, grid, line},
    selective::{SelectiveArguments, SelectiveSpec, portable},
};

/// Units that fill a large device.
const UNITS: usize = 1 << 15;
/// Steps of a chunk, at least.
const STEPS: usize = 16;

/// Output and final state.
pub(crate) fn forward<B: Backend<FloatTensorPrimitive = CubeTensor>>(
    arguments: SelectiveArguments<B>,
    spec: &SelectiveSpec,
) -> (CubeTensor, CubeTensor) {
    let Some(problem) = Problem::new(&arguments, spec) else {
        return portable::forward(arguments, spec);
    };
    let boundaries = Boundaries::new(&problem.x, spec.boundaries.as_deref());
    let channels = problem.a.shape()[0];
    let chunks = (UNITS / (problem.batch * channels)).max(1);
    // Steps and then chunks are walked over one after another.
    let shortest = STEPS.max((problem.time as f64 / 2.0).sqrt() as usize);
    let steps = problem.time.div_ceil(chunks).max(shortest).min(problem.time);
    let plan = problem.plan(spec, steps);
    let carries = Carries::new(&problem, plan, None, &boundaries);

    let Problem { x, delta, a, b, c, initial_state, batch, time, sequences } = problem;
    let y = allocate(&x, x.shape(), x.dtype);
    let state = allocate(&x, [sequences, channels, plan.size], DType::F32);
    let (count, cube) = grid(&x, batch * time.div_ceil(steps) * channels);
    // SAFETY: a unit has steps of a row of the batch and a channel, with all of its states.
    unsafe {
        states_kernel::launch_unchecked(
            &x.client,
            count,
            cube,
            address(&[&x, &delta, &b, &carries.states]),
            line(plan.size, &[&a, &b, &c]),
            x.clone().into_buffer_arg(),
            delta.clone().into_buffer_arg(),
            a.clone().into_buffer_arg(),
            b.clone().into_buffer_arg(),
            c.clone().into_buffer_arg(),
            initial_state.clone().into_buffer_arg(),
            boundaries.argument(),
            carries.states.into_buffer_arg(),
            y.clone().into_buffer_arg(),
            state.clone().into_buffer_arg(),
            batch,
            time,
            plan,
            [element(&x), element(&delta), element(&b), element(&c)],
        );
    }
    (y, state)
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn states_kernel<X: Float, D: Float, B: Float, C: Float, N: Size>(
    x: &[X],
    delta: &[D],
    a: &[Vector<f32, N>],
    b: &[Vector<B, N>],
    c: &[Vector<C, N>],
    initial_state: &[Vector<f32, N>],
    boundaries: &[u32],
    carries: &[Vector<f32, N>],
    y: &mut [X],
    final_state: &mut [Vector<f32, N>],
    batch: usize,
    time: usize,
    #[comptime] plan: Plan,
    #[define(X, D, B, C)] _elements: [ElemType; 4],
) {
    let width = N::value();
    let lines = comptime![plan.size / width];
    // Two lines of numbers a state; more of them would not stay there.
    let in_registers = comptime![plan.size <= 2 * KEPT];
    let chunks = time.div_ceil(plan.steps);
    let channel = ABSOLUTE_POS % plan.channels;
    let chunk = ABSOLUTE_POS / plan.channels % chunks;
    let row = ABSOLUTE_POS / plan.channels / chunks;
    if row < batch {
        let mut rates = Array::<Vector<f32, N>>::new(lines);
        let mut states = Array::<Vector<f32, N>>::new(lines);
        #[unroll(in_registers)]
        for index in 0..lines {
            rates[index] = a[channel * lines + index];
            states[index] = Vector::new(0.0);
            if plan.has_carries {
                states[index] = carries[((row * chunks + chunk) * plan.channels + channel) * lines + index];
            }
        }

        let first = chunk * plan.steps;
        let mut sequence = Sequence::at(first, row, time, boundaries, plan.is_packed);
        for step in first..min(time, first + plan.steps) {
            sequence.follow(step, boundaries, plan.is_packed);
            let place = row * time + step;
            let own_state = (sequence.index * plan.channels + channel) * lines;
            if step == sequence.start {
                #[unroll(in_registers)]
                for index in 0..lines {
                    states[index] = Vector::new(0.0);
                    if plan.has_initial_state {
                        states[index] = initial_state[own_state + index];
                    }
                }
            }
            let x_step = Vector::<f32, N>::new(f32::cast_from(x[place * plan.channels + channel]));
            let delta_step = Vector::<f32, N>::new(f32::cast_from(delta[place * plan.channels + channel]));
            let mut sum = Vector::<f32, N>::new(0.0);
            #[unroll(in_registers)]
            for index in 0..lines {
                let added = x_step * Vector::cast_from(b[place * lines + index]);
                let state = decay::<N>(delta_step * rates[index]) * states[index] + added;
                sum += state * Vector::cast_from(c[place * lines + index]);
                states[index] = state;
            }
            y[place * plan.channels + channel] = X::cast_from(sum.vector_sum());
            if step + 1 == sequence.end {
                #[unroll(in_registers)]
                for index in 0..lines {
                    final_state[own_state + index] = states[index];
                }
            }
        }
    }
}
