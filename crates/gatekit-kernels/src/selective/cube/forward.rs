//! The forward pass.

use burn::{
    backend::{Backend, TensorMetadata},
    tensor::DType,
};
use burn_cubecl::tensor::CubeTensor;
use cubecl::{ir::ElemType, prelude::*};

use super::{KEPT, Plan, Problem, chunks::Carries, decay};
use crate::{
    cube::{Sequence, address, allocate, boundaries_of, element, grid},
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
    let boundaries = spec.boundaries.as_deref();
    let channels = problem.a.shape()[0];
    let chunks = (UNITS / (problem.batch * channels)).max(1);
    // Steps and then chunks are walked over one after another.
    let shortest = STEPS.max((problem.time as f64 / 2.0).sqrt() as usize);
    let steps = problem.time.div_ceil(chunks).max(shortest).min(problem.time);
    let plan = problem.plan(spec, steps);
    let carries = Carries::new(&problem, plan, None, boundaries);

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
            x.clone().into_buffer_arg(),
            delta.clone().into_buffer_arg(),
            a.clone().into_buffer_arg(),
            b.clone().into_buffer_arg(),
            c.clone().into_buffer_arg(),
            initial_state.clone().into_buffer_arg(),
            boundaries_of(&x, boundaries),
            carries.states.clone().into_buffer_arg(),
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
fn states_kernel<X: Float, D: Float, B: Float, C: Float>(
    x: &[X],
    delta: &[D],
    a: &[f32],
    b: &[B],
    c: &[C],
    initial_state: &[f32],
    boundaries: &[u32],
    carries: &[f32],
    y: &mut [X],
    final_state: &mut [f32],
    batch: usize,
    time: usize,
    #[comptime] plan: Plan,
    #[define(X, D, B, C)] _elements: [ElemType; 4],
) {
    let in_registers = comptime![plan.size <= 2 * KEPT];
    let chunks = time.div_ceil(plan.steps);
    let channel = ABSOLUTE_POS % plan.channels;
    let chunk = ABSOLUTE_POS / plan.channels % chunks;
    let row = ABSOLUTE_POS / plan.channels / chunks;
    if row < batch {
        let mut rates = Array::<f32>::new(plan.size);
        let mut states = Array::<f32>::new(plan.size);
        #[unroll(in_registers)]
        for index in 0..plan.size {
            rates[index] = a[channel * plan.size + index];
            states[index] = 0.0;
            if plan.has_carries {
                let place = ((row * chunks + chunk) * plan.size + index) * plan.channels + channel;
                states[index] = carries[place];
            }
        }

        let first = chunk * plan.steps;
        let mut sequence = Sequence::at(first, row, time, boundaries, plan.is_packed);
        for step in first..min(time, first + plan.steps) {
            sequence.follow(step, boundaries, plan.is_packed);
            let place = row * time + step;
            let own_state = (sequence.index * plan.channels + channel) * plan.size;
            if step == sequence.start {
                #[unroll(in_registers)]
                for index in 0..plan.size {
                    states[index] = 0.0;
                    if plan.has_initial_state {
                        states[index] = initial_state[own_state + index];
                    }
                }
            }
            let x_step = f32::cast_from(x[place * plan.channels + channel]);
            let delta_step = f32::cast_from(delta[place * plan.channels + channel]);
            let mut sum = 0.0f32;
            #[unroll(in_registers)]
            for index in 0..plan.size {
                let b_step = f32::cast_from(b[place * plan.size + index]);
                let state = decay(delta_step * rates[index]) * states[index] + x_step * b_step;
                sum += state * f32::cast_from(c[place * plan.size + index]);
                states[index] = state;
            }
            y[place * plan.channels + channel] = X::cast_from(sum);
            if step + 1 == sequence.end {
                #[unroll(in_registers)]
                for index in 0..plan.size {
                    final_state[own_state + index] = states[index];
                }
            }
        }
    }
}
