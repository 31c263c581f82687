//! The forward pass.

use burn::{backend::TensorMetadata, tensor::DType};
use burn_cubecl::tensor::CubeTensor;
use cubecl::{ir::ElemType, prelude::*};

use super::{Plan, Problem};
use crate::cube::{Chunks, Sequence, address, allocate, boundaries_of, decay, element, grid};

/// States of every step, and the final states.
pub(super) fn run(
    problem: &Problem,
    x: &CubeTensor,
    log_decay: &CubeTensor,
    initial_state: &CubeTensor,
    boundaries: Option<&[usize]>,
) -> (CubeTensor, CubeTensor) {
    let sequences = boundaries.map_or(problem.batch, |boundaries| boundaries.len() - 1);
    let output = allocate(x, x.shape(), x.dtype);
    let state = allocate(x, [sequences, problem.dim], DType::F32);
    let elements = [element(x), element(log_decay), element(initial_state)];
    let chunks = Chunks::new(x, problem.chunks_shape());
    let (count, cube) = grid(x, problem.units());
    let carries = if problem.plan.has_carries {
        // SAFETY: a unit has steps of a row of the batch and a line of its channels.
        unsafe {
            chunks_kernel::launch_unchecked(
                &x.client,
                count.clone(),
                cube,
                address(&[x, log_decay]),
                problem.line,
                x.clone().into_buffer_arg(),
                log_decay.clone().into_buffer_arg(),
                initial_state.clone().into_buffer_arg(),
                boundaries_of(x, boundaries),
                chunks.decays.clone().into_buffer_arg(),
                chunks.ends.clone().into_buffer_arg(),
                problem.time,
                problem.steps,
                problem.lines(),
                problem.plan,
                elements,
            );
        }
        chunks.into_carries(false)
    } else {
        chunks.ends
    };
    // SAFETY: a unit has steps of a row of the batch and a line of its channels.
    unsafe {
        states_kernel::launch_unchecked(
            &x.client,
            count,
            cube,
            address(&[x, log_decay]),
            problem.line,
            x.clone().into_buffer_arg(),
            log_decay.clone().into_buffer_arg(),
            initial_state.clone().into_buffer_arg(),
            boundaries_of(x, boundaries),
            carries.into_buffer_arg(),
            output.clone().into_buffer_arg(),
            state.clone().into_buffer_arg(),
            problem.time,
            problem.steps,
            problem.lines(),
            problem.plan,
            elements,
        );
    }
    (output, state)
}

/// The decay of a step, 0 for the first of a sequence, and what is added to the decayed state: there
/// the initial state enters.
#[cube]
fn step_of<F: Float, G: Float, S: Float, N: Size>(
    x: &[Vector<F, N>],
    log_decay: &[Vector<G, N>],
    initial_state: &[Vector<S, N>],
    place: usize,
    step: usize,
    sequence: &mut Sequence,
    boundaries: &[u32],
    lines: usize,
    #[comptime] plan: Plan,
) -> (Vector<f32, N>, Vector<f32, N>) {
    sequence.follow(step, boundaries, plan.is_packed);
    let mut a = decay::<N>(Vector::cast_from(log_decay[place]));
    let mut added = Vector::<f32, N>::cast_from(x[place]);
    if step == sequence.start {
        if plan.has_initial_state {
            let initial = initial_state[sequence.index * lines + place % lines];
            added += a * Vector::cast_from(initial);
        }
        a = Vector::new(0.0);
    }
    (a, added)
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn chunks_kernel<F: Float, G: Float, S: Float, N: Size>(
    x: &[Vector<F, N>],
    log_decay: &[Vector<G, N>],
    initial_state: &[Vector<S, N>],
    boundaries: &[u32],
    decays: &mut [Vector<f32, N>],
    ends: &mut [Vector<f32, N>],
    time: usize,
    steps: usize,
    lines: usize,
    #[comptime] plan: Plan,
    #[define(F, G, S)] _elements: [ElemType; 3],
) {
    if ABSOLUTE_POS < ends.len() {
        let line = ABSOLUTE_POS % lines;
        let chunks = time.div_ceil(steps);
        let chunk = ABSOLUTE_POS / lines % chunks;
        let row = ABSOLUTE_POS / lines / chunks;
        let first = chunk * steps;
        let mut sequence = Sequence::at(first, row, time, boundaries, plan.is_packed);
        let mut product = Vector::<f32, N>::new(1.0);
        let mut state = Vector::<f32, N>::new(0.0);
        for step in first..min(time, first + steps) {
            let place = (row * time + step) * lines + line;
            let (a, added) = step_of::<F, G, S, N>(
                x,
                log_decay,
                initial_state,
                place,
                step,
                &mut sequence,
                boundaries,
                lines,
                plan,
            );
            state = a * state + added;
            product *= a;
        }
        decays[ABSOLUTE_POS] = product;
        ends[ABSOLUTE_POS] = state;
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn states_kernel<F: Float, G: Float, S: Float, N: Size>(
    x: &[Vector<F, N>],
    log_decay: &[Vector<G, N>],
    initial_state: &[Vector<S, N>],
    boundaries: &[u32],
    carries: &[Vector<f32, N>],
    output: &mut [Vector<F, N>],
    final_state: &mut [Vector<f32, N>],
    time: usize,
    steps: usize,
    lines: usize,
    #[comptime] plan: Plan,
    #[define(F, G, S)] _elements: [ElemType; 3],
) {
    if ABSOLUTE_POS < carries.len() {
        let line = ABSOLUTE_POS % lines;
        let chunks = time.div_ceil(steps);
        let chunk = ABSOLUTE_POS / lines % chunks;
        let row = ABSOLUTE_POS / lines / chunks;
        let first = chunk * steps;
        let mut sequence = Sequence::at(first, row, time, boundaries, plan.is_packed);
        let mut state = Vector::<f32, N>::new(0.0);
        if plan.has_carries {
            state = carries[ABSOLUTE_POS];
        }
        for step in first..min(time, first + steps) {
            let place = (row * time + step) * lines + line;
            let (a, added) = step_of::<F, G, S, N>(
                x,
                log_decay,
                initial_state,
                place,
                step,
                &mut sequence,
                boundaries,
                lines,
                plan,
            );
            state = a * state + added;
            output[place] = Vector::cast_from(state);
            if step + 1 == sequence.end {
                final_state[sequence.index * lines + line] = state;
            }
        }
    }
}
