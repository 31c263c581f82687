//! What chunks make of the states that they get, and of the gradients.

use burn_cubecl::tensor::CubeTensor;
use cubecl::{ir::ElemType, prelude::*};

use super::{KEPT, Plan, Problem, decay};
use crate::cube::{Chunks, Sequence, address, boundaries_of, element, grid};

/// The states that chunks get, and the gradients of their last states that they get from later ones.
pub(super) struct Carries {
    /// `[batch, chunks, size, channels]`, as all here.
    pub states: CubeTensor,
    pub gradients: Option<CubeTensor>,
}

impl Carries {
    /// With the gradients if one is given, that of the final state or of the output. Not written
    /// where there is but one chunk.
    pub fn new(
        problem: &Problem,
        plan: Plan,
        gradient: Option<(&CubeTensor, bool)>,
        boundaries: Option<&[usize]>,
    ) -> Self {
        let Problem { x, delta, a, b, c, initial_state, batch, time, .. } = problem;
        let count = time.div_ceil(plan.steps);
        let shape = [*batch, count, plan.size * plan.channels];
        let chunks = Chunks::new(x, shape);
        // Any other memory where there are no gradients.
        let handed = match gradient {
            Some(_) => Chunks::new(x, shape).ends,
            None => chunks.ends.clone(),
        };
        if plan.has_carries {
            let (given, of_state) = gradient.unwrap_or((x, false));
            let blocks = plan.size.div_ceil(KEPT);
            let (cubes, cube) = grid(x, batch * count * blocks * plan.channels);
            // SAFETY: a unit has steps of a row of the batch, a channel and some of its states.
            unsafe {
                chunks_kernel::launch_unchecked(
                    &x.client,
                    cubes,
                    cube,
                    address(&[x, delta, b, &chunks.ends]),
                    x.clone().into_buffer_arg(),
                    delta.clone().into_buffer_arg(),
                    a.clone().into_buffer_arg(),
                    b.clone().into_buffer_arg(),
                    c.clone().into_buffer_arg(),
                    initial_state.clone().into_buffer_arg(),
                    given.clone().into_buffer_arg(),
                    boundaries_of(x, boundaries),
                    chunks.decays.clone().into_buffer_arg(),
                    chunks.ends.clone().into_buffer_arg(),
                    handed.clone().into_buffer_arg(),
                    *batch,
                    *time,
                    gradient.is_some(),
                    of_state,
                    plan,
                    [element(x), element(delta), element(b), element(c), element(given)],
                );
            }
            let backward = Chunks { decays: chunks.decays.clone(), ends: handed };
            let gradients = gradient.is_some().then(|| backward.into_carries(true));
            return Self { states: chunks.into_carries(false), gradients };
        }
        Self { states: chunks.ends, gradients: gradient.is_some().then_some(handed) }
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn chunks_kernel<X: Float, D: Float, B: Float, C: Float, G: Float>(
    x: &[X],
    delta: &[D],
    a: &[f32],
    b: &[B],
    c: &[C],
    initial_state: &[f32],
    gradient: &[G],
    boundaries: &[u32],
    decays: &mut [f32],
    ends: &mut [f32],
    handed: &mut [f32],
    batch: usize,
    time: usize,
    #[comptime] has_gradient: bool,
    #[comptime] of_state: bool,
    #[comptime] plan: Plan,
    #[define(X, D, B, C, G)] _elements: [ElemType; 5],
) {
    let own = comptime![plan.size.min(KEPT)];
    let blocks = comptime![plan.size.div_ceil(own)];
    let chunks = time.div_ceil(plan.steps);
    let channel = ABSOLUTE_POS % plan.channels;
    let start = ABSOLUTE_POS / plan.channels % blocks * own;
    let chunk = ABSOLUTE_POS / comptime![plan.channels * blocks] % chunks;
    let row = ABSOLUTE_POS / comptime![plan.channels * blocks] / chunks;
    if row < batch {
        let mut rates = Array::<f32>::new(own);
        let mut states = Array::<f32>::new(own);
        let mut products = Array::<f32>::new(own);
        let mut gradients = Array::<f32>::new(own);
        #[unroll]
        for index in 0..own {
            rates[index] = 0.0;
            if start + index < plan.size {
                rates[index] = a[channel * plan.size + start + index];
            }
            states[index] = 0.0;
            products[index] = 1.0;
            gradients[index] = 0.0;
        }

        let first = chunk * plan.steps;
        let mut sequence = Sequence::at(first, row, time, boundaries, plan.is_packed);
        for step in first..min(time, first + plan.steps) {
            sequence.follow(step, boundaries, plan.is_packed);
            let place = row * time + step;
            let x_step = f32::cast_from(x[place * plan.channels + channel]);
            let delta_step = f32::cast_from(delta[place * plan.channels + channel]);
            let mut dy = 0.0f32;
            if has_gradient && !of_state {
                dy = f32::cast_from(gradient[place * plan.channels + channel]);
            }
            let own_state = (sequence.index * plan.channels + channel) * plan.size + start;
            #[unroll]
            for index in 0..own {
                if start + index < plan.size {
                    let mut kept = decay(delta_step * rates[index]);
                    let mut added = x_step * f32::cast_from(b[place * plan.size + start + index]);
                    if step == sequence.start {
                        // The initial state enters here, and nothing else passes.
                        if plan.has_initial_state {
                            added += kept * initial_state[own_state + index];
                        }
                        kept = 0.0;
                    }
                    states[index] = kept * states[index] + added;
                    products[index] *= kept;
                    if has_gradient {
                        if of_state {
                            if step + 1 == sequence.end {
                                let of_last = f32::cast_from(gradient[own_state + index]);
                                gradients[index] += products[index] * of_last;
                            }
                        } else {
                            let c_step = f32::cast_from(c[place * plan.size + start + index]);
                            gradients[index] += products[index] * c_step * dy;
                        }
                    }
                }
            }
        }

        #[unroll]
        for index in 0..own {
            if start + index < plan.size {
                let place = ((row * chunks + chunk) * plan.size + start + index) * plan.channels + channel;
                decays[place] = products[index];
                ends[place] = states[index];
                if has_gradient {
                    handed[place] = gradients[index];
                }
            }
        }
    }
}
