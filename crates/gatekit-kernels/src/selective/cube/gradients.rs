//! The kernel of the backward pass.
//!
//! A cube has a chunk of steps of some channels: along x a channel, along y a line of its states. A
//! unit walks over the chunk once for the state before every tile of steps, and back over the tiles:
//! it makes the states of a tile again, then the gradients of its steps from last to first. What is to
//! be summed over channels or states lies in shared memory, one tile at a time.

use cubecl::{ir::ElemType, prelude::*};

use super::Plan;
use crate::cube::{Sequence, decay};

/// Steps of a tile.
pub(super) const TILE: usize = 4;

/// How a chunk is spread over the units of cubes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Spread {
    /// Channels of a cube.
    pub channels: usize,
    /// States of a cube.
    pub size: usize,
    /// Units of a channel, with a line of states each.
    pub groups: usize,
    /// Tiles of a chunk.
    pub tiles: usize,
    /// Whether the gradient is that of the final state.
    pub of_state: bool,
}

impl Spread {
    /// A row of numbers to be summed over channels: no two rows begin in the same bank.
    fn row(&self) -> usize {
        self.channels + 1
    }

    /// To be summed over channels: for each step of a tile and each state.
    fn of_states(&self) -> usize {
        TILE * self.size * self.row()
    }

    /// To be summed over states: for each step of a tile and each group.
    fn of_groups(&self) -> usize {
        TILE * self.groups * self.channels
    }

    /// Numbers in shared memory.
    pub fn shared_numbers(&self) -> usize {
        2 * (self.of_states() + self.of_groups())
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn gradients_kernel<
    X: Float,
    D: Float,
    B: Float,
    C: Float,
    G: Float,
    P: Float,
    Q: Float,
    N: Size,
>(
    x: &[X],
    delta: &[D],
    a: &[Vector<f32, N>],
    b: &[Vector<B, N>],
    c: &[Vector<C, N>],
    initial_state: &[Vector<f32, N>],
    gradient: &[G],
    boundaries: &[u32],
    states_before: &[Vector<f32, N>],
    gradients_after: &[Vector<f32, N>],
    dx: &mut [P],
    ddelta: &mut [Q],
    da: &mut [Vector<f32, N>],
    db: &mut [f32],
    dc: &mut [f32],
    dinitial: &mut [Vector<f32, N>],
    batch: usize,
    time: usize,
    #[comptime] spread: Spread,
    #[comptime] plan: Plan,
    #[define(X, D, B, C, G, P, Q)] _elements: [ElemType; 7],
) {
    let width = N::value();
    let lines = comptime![plan.size / width];
    let channel_blocks = comptime![plan.channels.div_ceil(spread.channels)];
    let state_blocks = comptime![plan.size.div_ceil(spread.size)];
    let chunks = time.div_ceil(plan.steps);
    let channel_block = CUBE_POS % channel_blocks;
    let state_block = CUBE_POS / channel_blocks % state_blocks;
    let chunk = CUBE_POS / comptime![channel_blocks * state_blocks] % chunks;
    let row = CUBE_POS / comptime![channel_blocks * state_blocks] / chunks;

    let lane = UNIT_POS_X as usize;
    let group = UNIT_POS_Y as usize;
    let channel = channel_block * spread.channels + lane;
    let line = state_block * spread.groups + group;
    let is_there = row < batch && channel < plan.channels && line < lines;

    let mut of_b = Shared::<[f32]>::new_slice(comptime![spread.of_states()]);
    let mut of_c = Shared::<[f32]>::new_slice(comptime![spread.of_states()]);
    let mut of_x = Shared::<[f32]>::new_slice(comptime![spread.of_groups()]);
    let mut of_delta = Shared::<[f32]>::new_slice(comptime![spread.of_groups()]);

    let first = chunk * plan.steps;
    // A cube without a row has no steps.
    let last = if row < batch { min(time, first + plan.steps) } else { first };
    let tiles = (last - first).div_ceil(TILE);
    let zero = Vector::<f32, N>::new(0.0);
    let mut rates = zero;
    let mut state = zero;
    let mut handed = zero;
    let mut of_rates = zero;
    if is_there {
        rates = a[channel * lines + line];
        if plan.has_carries {
            let place = ((row * chunks + chunk) * plan.channels + channel) * lines + line;
            state = states_before[place];
            handed = gradients_after[place];
        }
    }

    // The states before each tile.
    let mut tile_states = Array::<Vector<f32, N>>::new(spread.tiles);
    let mut sequence = Sequence::at(first, row, time, boundaries, plan.is_packed);
    for tile in 0..tiles {
        tile_states[tile] = state;
        #[unroll]
        for offset in 0..TILE {
            let step = first + tile * TILE + offset;
            if step < last {
                sequence.follow(step, boundaries, plan.is_packed);
                let place = row * time + step;
                let before =
                    state_before::<N>(state, initial_state, step, channel, line, is_there, &sequence, plan);
                let kept = decay::<N>(number::<D, N>(delta, place, channel, plan) * rates);
                let b_step = line_of::<B, N>(b, place, line, is_there, plan);
                state = kept * before + number::<X, N>(x, place, channel, plan) * b_step;
            }
        }
    }

    // Before each step of a tile, and what is kept of it.
    let mut earlier = Array::<Vector<f32, N>>::new(TILE);
    let mut kept = Array::<Vector<f32, N>>::new(TILE);
    for back in 0..tiles {
        let begin = first + (tiles - 1 - back) * TILE;
        let mut sequence = Sequence::at(begin, row, time, boundaries, plan.is_packed);
        state = tile_states[tiles - 1 - back];
        #[unroll]
        for offset in 0..TILE {
            let step = begin + offset;
            if step < last {
                sequence.follow(step, boundaries, plan.is_packed);
                let place = row * time + step;
                earlier[offset] =
                    state_before::<N>(state, initial_state, step, channel, line, is_there, &sequence, plan);
                kept[offset] = decay::<N>(number::<D, N>(delta, place, channel, plan) * rates);
                let b_step = line_of::<B, N>(b, place, line, is_there, plan);
                state = kept[offset] * earlier[offset] + number::<X, N>(x, place, channel, plan) * b_step;
            }
        }

        #[unroll]
        for from_last in 0..TILE {
            let offset = comptime![TILE - 1 - from_last];
            let step = begin + offset;
            if step < last {
                sequence.follow_back(step, boundaries, plan.is_packed);
                let place = row * time + step;
                let own_state = (sequence.index * plan.channels + channel) * lines + line;
                let x_step = number::<X, N>(x, place, channel, plan);
                let b_step = line_of::<B, N>(b, place, line, is_there, plan);
                let mut ds = handed;
                let mut of_c_step = zero;
                if spread.of_state {
                    if is_there && step + 1 == sequence.end {
                        let mut of_last = zero;
                        #[unroll]
                        for state in 0..width {
                            of_last.insert(state, f32::cast_from(gradient[own_state * width + state]));
                        }
                        ds += of_last;
                    }
                } else {
                    let dy = number::<G, N>(gradient, place, channel, plan);
                    ds += line_of::<C, N>(c, place, line, is_there, plan) * dy;
                    of_c_step = (kept[offset] * earlier[offset] + x_step * b_step) * dy;
                }
                let through = ds * kept[offset];
                let exponent = through * earlier[offset];
                of_rates += exponent * number::<D, N>(delta, place, channel, plan);
                handed = through;
                if step == sequence.start {
                    // Nothing passes from one sequence to another.
                    handed = zero;
                    if plan.has_initial_state && is_there {
                        dinitial[own_state] = through;
                    }
                }

                let of_b_step = x_step * ds;
                #[unroll]
                for state in 0..width {
                    let sum = comptime![offset * spread.size] + group * width + state;
                    of_b[sum * comptime![spread.row()] + lane] = of_b_step.extract(state);
                    of_c[sum * comptime![spread.row()] + lane] = of_c_step.extract(state);
                }
                let shared = (comptime![offset * spread.groups] + group) * spread.channels + lane;
                of_x[shared] = (ds * b_step).vector_sum();
                of_delta[shared] = (exponent * rates).vector_sum();
            }
        }

        sync_cube();
        let units = comptime![spread.channels * spread.groups];
        let mut sum = UNIT_POS as usize;
        while sum < comptime![TILE * spread.size] {
            let step = begin + sum / spread.size;
            let state = state_block * spread.size + sum % spread.size;
            if step < last && state < plan.size {
                let mut b_sum = 0.0f32;
                let mut c_sum = 0.0f32;
                for lane in 0..spread.channels {
                    b_sum += of_b[sum * comptime![spread.row()] + lane];
                    c_sum += of_c[sum * comptime![spread.row()] + lane];
                }
                let place = ((channel_block * batch + row) * time + step) * plan.size + state;
                db[place] = b_sum;
                dc[place] = c_sum;
            }
            sum += units;
        }
        let mut sum = UNIT_POS as usize;
        while sum < comptime![TILE * spread.channels] {
            let offset = sum / spread.channels;
            let channel = channel_block * spread.channels + sum % spread.channels;
            if begin + offset < last && channel < plan.channels {
                let mut x_sum = 0.0f32;
                let mut delta_sum = 0.0f32;
                for group in 0..spread.groups {
                    let shared = (offset * spread.groups + group) * spread.channels + sum % spread.channels;
                    x_sum += of_x[shared];
                    delta_sum += of_delta[shared];
                }
                let place = (state_block * batch + row) * time + begin + offset;
                dx[place * plan.channels + channel] = P::cast_from(x_sum);
                ddelta[place * plan.channels + channel] = Q::cast_from(delta_sum);
            }
            sum += units;
        }
        // The next tile writes over these.
        sync_cube();
    }

    if is_there {
        da[((row * chunks + chunk) * plan.channels + channel) * lines + line] = of_rates;
    }
}

/// A channel's number at a step, for all its states; zero for a channel that is not there.
#[cube]
fn number<E: Float, N: Size>(
    tensor: &[E],
    place: usize,
    channel: usize,
    #[comptime] plan: Plan,
) -> Vector<f32, N> {
    let mut number = 0.0f32;
    if channel < plan.channels {
        number = f32::cast_from(tensor[place * plan.channels + channel]);
    }
    Vector::new(number)
}

/// A line of states at a step; zero where it is not there.
#[cube]
fn line_of<E: Float, N: Size>(
    tensor: &[Vector<E, N>],
    place: usize,
    line: usize,
    is_there: bool,
    #[comptime] plan: Plan,
) -> Vector<f32, N> {
    let width = N::value();
    let mut states = Vector::<f32, N>::new(0.0);
    if is_there {
        states = Vector::cast_from(tensor[place * comptime![plan.size / width] + line]);
    }
    states
}

/// The state that a step begins with: that of the step before it, or the sequence's initial one.
#[cube]
fn state_before<N: Size>(
    state: Vector<f32, N>,
    initial_state: &[Vector<f32, N>],
    step: usize,
    channel: usize,
    line: usize,
    is_there: bool,
    sequence: &Sequence,
    #[comptime] plan: Plan,
) -> Vector<f32, N> {
    let width = N::value();
    let mut before = state;
    if step == sequence.start {
        before = Vector::new(0.0);
        if plan.has_initial_state && is_there {
            let own_state = sequence.index * plan.channels + channel;
            before = initial_state[own_state * comptime![plan.size / width] + line];
        }
    }
    before
}
