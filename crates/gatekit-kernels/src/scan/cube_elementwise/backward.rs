//! The backward pass: a step hands `a_t dh_t` to the step before it.

use burn::backend::TensorMetadata;
use burn_cubecl::tensor::CubeTensor;
use cubecl::{ir::ElemType, prelude::*};

use super::{Plan, Problem};
use crate::{
    cube::{Chunks, Sequence, absent, address, allocate, boundaries_of, decay, element, grid},
    scan::GradientOf,
};

/// Contiguous tensors; without an initial state any stands for it.
pub(super) struct Arguments {
    pub output: CubeTensor,
    pub log_decay: CubeTensor,
    pub initial_state: CubeTensor,
    pub gradient: CubeTensor,
    pub of: GradientOf,
}

/// Gradients of `x`, the log decay and the initial state.
pub(super) fn run(
    problem: &Problem,
    arguments: Arguments,
    boundaries: Option<&[usize]>,
) -> (CubeTensor, CubeTensor, CubeTensor) {
    let Arguments { output, log_decay, initial_state, gradient, of } = arguments;
    let of_state = of == GradientOf::FinalState;
    let dx = allocate(&output, output.shape(), output.dtype);
    let dlog_decay = allocate(&output, output.shape(), log_decay.dtype);
    let dinitial = match problem.plan.has_initial_state {
        true => allocate(&output, initial_state.shape(), initial_state.dtype),
        false => allocate(&output, [problem.line], initial_state.dtype),
    };
    let chunks = Chunks::new(&output, problem.chunks_shape());
    let (count, cube) = grid(&output, problem.units());
    let carries = if problem.plan.has_carries {
        // SAFETY: a unit has steps of a row of the batch and a line of its channels.
        unsafe {
            chunks_kernel::launch_unchecked(
                &output.client,
                count.clone(),
                cube,
                address(&[&output, &log_decay, &gradient]),
                problem.line,
                log_decay.clone().into_buffer_arg(),
                gradient.clone().into_buffer_arg(),
                boundaries_of(&output, boundaries),
                chunks.decays.clone().into_buffer_arg(),
                chunks.ends.clone().into_buffer_arg(),
                problem.time,
                problem.steps,
                problem.lines(),
                of_state,
                problem.plan,
                [element(&log_decay), element(&gradient)],
            );
        }
        chunks.into_carries(true)
    } else {
        chunks.ends
    };
    // SAFETY: a unit has steps of a row of the batch and a line of its channels.
    unsafe {
        gradients_kernel::launch_unchecked(
            &output.client,
            count,
            cube,
            address(&[&output, &log_decay, &gradient]),
            problem.line,
            output.clone().into_buffer_arg(),
            log_decay.clone().into_buffer_arg(),
            initial_state.clone().into_buffer_arg(),
            gradient.clone().into_buffer_arg(),
            boundaries_of(&output, boundaries),
            carries.into_buffer_arg(),
            dx.clone().into_buffer_arg(),
            dlog_decay.clone().into_buffer_arg(),
            dinitial.clone().into_buffer_arg(),
            problem.time,
            problem.steps,
            problem.lines(),
            of_state,
            problem.plan,
            [element(&output), element(&log_decay), element(&initial_state), element(&gradient)],
        );
    }
    let dinitial = if problem.plan.has_initial_state { dinitial } else { absent(&output) };
    (dx, dlog_decay, dinitial)
}

/// The gradient of the state of a step, given what the step after it hands on.
#[cube]
fn state_gradient<D: Float, N: Size>(
    gradient: &[Vector<D, N>],
    handed: Vector<f32, N>,
    place: usize,
    step: usize,
    sequence: &mut Sequence,
    boundaries: &[u32],
    lines: usize,
    #[comptime] of_state: bool,
    #[comptime] plan: Plan,
) -> Vector<f32, N> {
    sequence.follow_back(step, boundaries, plan.is_packed);
    let mut sum = handed;
    if step + 1 == sequence.end {
        sum = Vector::new(0.0);
        if of_state {
            sum = Vector::cast_from(gradient[sequence.index * lines + place % lines]);
        }
    }
    if !of_state {
        sum += Vector::cast_from(gradient[place]);
    }
    sum
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn chunks_kernel<G: Float, D: Float, N: Size>(
    log_decay: &[Vector<G, N>],
    gradient: &[Vector<D, N>],
    boundaries: &[u32],
    decays: &mut [Vector<f32, N>],
    ends: &mut [Vector<f32, N>],
    time: usize,
    steps: usize,
    lines: usize,
    #[comptime] of_state: bool,
    #[comptime] plan: Plan,
    #[define(G, D)] _elements: [ElemType; 2],
) {
    if ABSOLUTE_POS < ends.len() {
        let line = ABSOLUTE_POS % lines;
        let chunks = time.div_ceil(steps);
        let chunk = ABSOLUTE_POS / lines % chunks;
        let row = ABSOLUTE_POS / lines / chunks;
        let first = chunk * steps;
        let last = min(time, first + steps);
        let mut sequence = Sequence::at(last - 1, row, time, boundaries, plan.is_packed);
        let mut product = Vector::<f32, N>::new(1.0);
        let mut handed = Vector::<f32, N>::new(0.0);
        for back in 0..last - first {
            let step = last - 1 - back;
            let place = (row * time + step) * lines + line;
            let dh = state_gradient::<D, N>(
                gradient,
                handed,
                place,
                step,
                &mut sequence,
                boundaries,
                lines,
                of_state,
                plan,
            );
            let a = decay::<N>(Vector::cast_from(log_decay[place]));
            handed = a * dh;
            // Nothing passes from one sequence to another.
            if step + 1 == sequence.end {
                product = Vector::new(0.0);
            }
            product *= a;
        }
        decays[ABSOLUTE_POS] = product;
        ends[ABSOLUTE_POS] = handed;
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn gradients_kernel<F: Float, G: Float, S: Float, D: Float, N: Size>(
    output: &[Vector<F, N>],
    log_decay: &[Vector<G, N>],
    initial_state: &[Vector<S, N>],
    gradient: &[Vector<D, N>],
    boundaries: &[u32],
    carries: &[Vector<f32, N>],
    dx: &mut [Vector<F, N>],
    dlog_decay: &mut [Vector<G, N>],
    dinitial: &mut [Vector<S, N>],
    time: usize,
    steps: usize,
    lines: usize,
    #[comptime] of_state: bool,
    #[comptime] plan: Plan,
    #[define(F, G, S, D)] _elements: [ElemType; 4],
) {
    if ABSOLUTE_POS < carries.len() {
        let line = ABSOLUTE_POS % lines;
        let chunks = time.div_ceil(steps);
        let chunk = ABSOLUTE_POS / lines % chunks;
        let row = ABSOLUTE_POS / lines / chunks;
        let first = chunk * steps;
        let last = min(time, first + steps);
        let mut sequence = Sequence::at(last - 1, row, time, boundaries, plan.is_packed);
        let mut handed = Vector::<f32, N>::new(0.0);
        if plan.has_carries {
            handed = carries[ABSOLUTE_POS];
        }
        for back in 0..last - first {
            let step = last - 1 - back;
            let place = (row * time + step) * lines + line;
            let dh = state_gradient::<D, N>(
                gradient,
                handed,
                place,
                step,
                &mut sequence,
                boundaries,
                lines,
                of_state,
                plan,
            );
            dx[place] = Vector::cast_from(dh);
            handed = decay::<N>(Vector::cast_from(log_decay[place])) * dh;
            let mut previous = Vector::<f32, N>::new(0.0);
            if step > sequence.start {
                previous = Vector::cast_from(output[place - lines]);
            } else if plan.has_initial_state {
                let own = sequence.index * lines + line;
                previous = Vector::cast_from(initial_state[own]);
                dinitial[own] = Vector::cast_from(handed);
            }
            dlog_decay[place] = Vector::cast_from(handed * previous);
        }
    }
}
