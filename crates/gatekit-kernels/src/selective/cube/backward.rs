//! The backward pass.
//!
//! A cube has some steps of some channels: along x a channel, along y some of its states. A unit
//! walks over the chunk once for the state before every tile of steps, and back over the tiles: it
//! makes the states of a tile again, then the gradients of its steps from last to first. What is to be
//! summed over channels or states lies in shared memory, one tile at a time.

use burn::{
    backend::{Backend, TensorMetadata},
    tensor::DType,
};
use burn_cubecl::{kernel::cast, tensor::CubeTensor};
use cubecl::{calculate_cube_count_elemwise, ir::ElemType, prelude::*};

use super::{KEPT, Plan, Problem, chunks::Carries, decay};
use crate::{
    cube::{
        Sequence, absent, address, allocate, boundaries_of, element, into_contiguous, is_fused, sum_rows,
    },
    scan::GradientOf,
    selective::{SelectiveArguments, SelectiveSpec, portable},
};

/// Steps of a tile.
const TILE: usize = 4;
/// Tiles of a chunk.
const TILES: usize = 8;
/// Channels of a cube on a device with memory for them.
const CHANNELS: usize = 32;
/// States of a unit.
const OWN: usize = 2;

/// How a chunk is spread over the units of cubes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Spread {
    /// Channels of a cube.
    channels: usize,
    /// States of a cube, at most `KEPT`.
    size: usize,
    /// Units of a channel.
    groups: usize,
    /// Whether the gradient is that of the final state.
    of_state: bool,
}

impl Spread {
    fn new(x: &CubeTensor, size: usize, of: GradientOf) -> Self {
        let groups = size.min(KEPT).div_ceil(OWN);
        let size = groups * OWN;
        let hardware = &x.client.properties().hardware;
        let mut spread = Self { channels: CHANNELS, size, groups, of_state: of == GradientOf::FinalState };
        let fits = |spread: &Self| {
            let floats = 2 * TILE * (spread.size * spread.row() + spread.groups * spread.channels);
            floats * size_of::<f32>() <= hardware.max_shared_memory_size
                && spread.channels * spread.groups <= hardware.max_units_per_cube as usize
        };
        while spread.channels > 1 && !fits(&spread) {
            spread.channels /= 2;
        }
        spread
    }

    /// A row of products to be summed over channels: no two rows begin in the same bank.
    fn row(&self) -> usize {
        self.channels + 1
    }
}

/// Gradients of all arguments, a single zero for an absent initial state.
pub(crate) fn backward<B: Backend<FloatTensorPrimitive = CubeTensor>>(
    arguments: SelectiveArguments<B>,
    gradient: CubeTensor,
    of: GradientOf,
    spec: &SelectiveSpec,
) -> SelectiveArguments<B> {
    let problem = is_fused(&gradient).then(|| Problem::new(&arguments, spec)).flatten();
    let Some(problem) = problem else {
        return portable::backward(arguments, gradient, of, spec);
    };
    let gradient = into_contiguous(gradient);
    let boundaries = spec.boundaries.as_deref();
    let plan = problem.plan(spec, TILE * TILES);
    let spread = Spread::new(&problem.x, plan.size, of);
    let carries = Carries::new(&problem, plan, Some((&gradient, spread.of_state)), boundaries);

    let Problem { x, delta, a, b, c, initial_state, batch, time, .. } = problem;
    let chunks = time.div_ceil(plan.steps);
    let channel_blocks = plan.channels.div_ceil(spread.channels);
    let state_blocks = plan.size.div_ceil(spread.size);
    let elements = batch * time * plan.channels;
    // Sums over the states of a cube are all there is to sum where a cube has all of them.
    let [dx, ddelta] = [&x, &delta].map(|tensor| match state_blocks {
        1 => allocate(tensor, tensor.shape(), tensor.dtype),
        _ => allocate(tensor, [state_blocks, elements], DType::F32),
    });
    let [db, dc] = [(); 2].map(|()| allocate(&x, [channel_blocks, batch * time * plan.size], DType::F32));
    let da = allocate(&x, [batch * chunks, plan.channels * plan.size], DType::F32);
    let dinitial = match plan.has_initial_state {
        true => allocate(&x, initial_state.shape(), DType::F32),
        false => allocate(&x, [1], DType::F32),
    };

    let cubes = batch * chunks * channel_blocks * state_blocks;
    let cube = CubeDim::new_2d(spread.channels as u32, spread.groups as u32);
    let count = calculate_cube_count_elemwise(&x.client, cubes * spread.channels * spread.groups, cube);
    let gradients = carries.gradients.expect("carries with gradients");
    // SAFETY: a cube has a chunk of a row of the batch, some channels and some states; a unit of a
    // channel or a state that is not there reads zeros and writes nothing but shared memory.
    unsafe {
        backward_kernel::launch_unchecked(
            &x.client,
            count,
            cube,
            address(&[&x, &delta, &b, &carries.states, &dx, &ddelta, &db, &da]),
            x.clone().into_buffer_arg(),
            delta.clone().into_buffer_arg(),
            a.clone().into_buffer_arg(),
            b.clone().into_buffer_arg(),
            c.clone().into_buffer_arg(),
            initial_state.clone().into_buffer_arg(),
            gradient.clone().into_buffer_arg(),
            boundaries_of(&x, boundaries),
            carries.states.into_buffer_arg(),
            gradients.into_buffer_arg(),
            dx.clone().into_buffer_arg(),
            ddelta.clone().into_buffer_arg(),
            da.clone().into_buffer_arg(),
            db.clone().into_buffer_arg(),
            dc.clone().into_buffer_arg(),
            dinitial.clone().into_buffer_arg(),
            batch,
            time,
            spread,
            plan,
            [
                element(&x),
                element(&delta),
                element(&b),
                element(&c),
                element(&gradient),
                element(&dx),
                element(&ddelta),
            ],
        );
    }
    let summed = |parts: CubeTensor, tensor: &CubeTensor| match state_blocks {
        1 => parts,
        _ => sum_rows(parts, tensor.shape(), tensor.dtype),
    };
    SelectiveArguments {
        x: summed(dx, &x),
        delta: summed(ddelta, &delta),
        a: sum_rows(da, a.shape(), arguments.a.dtype),
        b: sum_rows(db, b.shape(), b.dtype),
        c: sum_rows(dc, c.shape(), c.dtype),
        initial_state: match plan.has_initial_state {
            true => cast(dinitial, arguments.initial_state.dtype),
            false => absent(&arguments.initial_state),
        },
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn backward_kernel<X: Float, D: Float, B: Float, C: Float, G: Float, P: Float, Q: Float>(
    x: &[X],
    delta: &[D],
    a: &[f32],
    b: &[B],
    c: &[C],
    initial_state: &[f32],
    gradient: &[G],
    boundaries: &[u32],
    states_before: &[f32],
    gradients_after: &[f32],
    dx: &mut [P],
    ddelta: &mut [Q],
    da: &mut [f32],
    db: &mut [f32],
    dc: &mut [f32],
    dinitial: &mut [f32],
    batch: usize,
    time: usize,
    #[comptime] spread: Spread,
    #[comptime] plan: Plan,
    #[define(X, D, B, C, G, P, Q)] _elements: [ElemType; 7],
) {
    let channel_blocks = comptime![plan.channels.div_ceil(spread.channels)];
    let state_blocks = comptime![plan.size.div_ceil(spread.size)];
    let chunks = time.div_ceil(plan.steps);
    let channel_block = CUBE_POS % channel_blocks;
    let state_block = CUBE_POS / channel_blocks % state_blocks;
    let chunk = CUBE_POS / comptime![channel_blocks * state_blocks] % chunks;
    let row = CUBE_POS / comptime![channel_blocks * state_blocks] / chunks;

    let lane = UNIT_POS_X as usize;
    let group = UNIT_POS_Y as usize;
    let unit = UNIT_POS as usize;
    let channel = channel_block * spread.channels + lane;
    // Of the unit's first state: in the cube, and in all.
    let in_cube = group * OWN;
    let start = state_block * spread.size + in_cube;

    // A number a step and state for each channel, and a number a step and group for each channel.
    let rows = comptime![TILE * spread.size];
    let mut of_b = Shared::<[f32]>::new_slice(comptime![TILE * spread.size * spread.row()]);
    let mut of_c = Shared::<[f32]>::new_slice(comptime![TILE * spread.size * spread.row()]);
    let mut of_x = Shared::<[f32]>::new_slice(comptime![TILE * spread.groups * spread.channels]);
    let mut of_delta = Shared::<[f32]>::new_slice(comptime![TILE * spread.groups * spread.channels]);

    let mut rates = Array::<f32>::new(OWN);
    let mut states = Array::<f32>::new(OWN);
    let mut handed = Array::<f32>::new(OWN);
    let mut of_rates = Array::<f32>::new(OWN);
    // Before each tile; before each step of a tile, and what is kept of it.
    let mut tile_states = Array::<f32>::new(comptime![TILES * OWN]);
    let mut earlier = Array::<f32>::new(comptime![TILE * OWN]);
    let mut kept = Array::<f32>::new(comptime![TILE * OWN]);

    let in_batch = row < batch;
    let first = chunk * plan.steps;
    // A cube without a row has no steps.
    let last = if in_batch { min(time, first + plan.steps) } else { first };
    let tiles = (last - first).div_ceil(TILE);
    #[unroll]
    for index in 0..OWN {
        rates[index] = 0.0;
        states[index] = 0.0;
        handed[index] = 0.0;
        of_rates[index] = 0.0;
        if in_batch && channel < plan.channels && start + index < plan.size {
            rates[index] = a[channel * plan.size + start + index];
            if plan.has_carries {
                let place = ((row * chunks + chunk) * plan.size + start + index) * plan.channels + channel;
                states[index] = states_before[place];
                handed[index] = gradients_after[place];
            }
        }
    }

    let mut sequence = Sequence::at(first, row, time, boundaries, plan.is_packed);
    for tile in 0..tiles {
        #[unroll]
        for index in 0..OWN {
            tile_states[tile * OWN + index] = states[index];
        }
        #[unroll]
        for offset in 0..TILE {
            let step = first + tile * TILE + offset;
            if step < last {
                sequence.follow(step, boundaries, plan.is_packed);
                let place = row * time + step;
                let x_step = number::<X>(x, place, channel, plan.channels);
                let delta_step = number::<D>(delta, place, channel, plan.channels);
                #[unroll]
                for index in 0..OWN {
                    let before = state_before(
                        states[index],
                        initial_state,
                        step,
                        channel,
                        start + index,
                        &sequence,
                        plan,
                    );
                    let b_step = number::<B>(b, place, start + index, plan.size);
                    states[index] = decay(delta_step * rates[index]) * before + x_step * b_step;
                }
            }
        }
    }

    for back in 0..tiles {
        let begin = first + (tiles - 1 - back) * TILE;
        let mut sequence = Sequence::at(begin, row, time, boundaries, plan.is_packed);
        #[unroll]
        for index in 0..OWN {
            states[index] = tile_states[(tiles - 1 - back) * OWN + index];
        }
        #[unroll]
        for offset in 0..TILE {
            let step = begin + offset;
            if step < last {
                sequence.follow(step, boundaries, plan.is_packed);
                let place = row * time + step;
                let x_step = number::<X>(x, place, channel, plan.channels);
                let delta_step = number::<D>(delta, place, channel, plan.channels);
                #[unroll]
                for index in 0..OWN {
                    let before = state_before(
                        states[index],
                        initial_state,
                        step,
                        channel,
                        start + index,
                        &sequence,
                        plan,
                    );
                    let b_step = number::<B>(b, place, start + index, plan.size);
                    let own = comptime![offset * OWN + index];
                    kept[own] = decay(delta_step * rates[index]);
                    earlier[own] = before;
                    states[index] = kept[own] * before + x_step * b_step;
                }
            }
        }

        #[unroll]
        for from_last in 0..TILE {
            let offset = comptime![TILE - 1 - from_last];
            let step = begin + offset;
            if step < last {
                sequence.follow_back(step, boundaries, plan.is_packed);
                let place = row * time + step;
                let x_step = number::<X>(x, place, channel, plan.channels);
                let delta_step = number::<D>(delta, place, channel, plan.channels);
                let mut dy = 0.0f32;
                if !spread.of_state {
                    dy = number::<G>(gradient, place, channel, plan.channels);
                }
                let mut x_sum = 0.0f32;
                let mut delta_sum = 0.0f32;
                #[unroll]
                for index in 0..OWN {
                    let own = comptime![offset * OWN + index];
                    let is_there = channel < plan.channels && start + index < plan.size;
                    let own_state = (sequence.index * plan.channels + channel) * plan.size + start + index;
                    let b_step = number::<B>(b, place, start + index, plan.size);
                    let mut ds = handed[index];
                    if spread.of_state {
                        if is_there && step + 1 == sequence.end {
                            ds += f32::cast_from(gradient[own_state]);
                        }
                    } else {
                        ds += number::<C>(c, place, start + index, plan.size) * dy;
                    }
                    let through = ds * kept[own];
                    let exponent = through * earlier[own];
                    x_sum += ds * b_step;
                    delta_sum += exponent * rates[index];
                    of_rates[index] += exponent * delta_step;
                    let shared = comptime![offset * spread.size * spread.row()]
                        + (in_cube + index) * comptime![spread.row()]
                        + lane;
                    of_b[shared] = x_step * ds;
                    of_c[shared] = (kept[own] * earlier[own] + x_step * b_step) * dy;
                    handed[index] = through;
                    if step == sequence.start {
                        handed[index] = 0.0;
                        if plan.has_initial_state && is_there {
                            dinitial[own_state] = through;
                        }
                    }
                }
                let shared = (comptime![offset * spread.groups] + group) * spread.channels + lane;
                of_x[shared] = x_sum;
                of_delta[shared] = delta_sum;
            }
        }

        sync_cube();
        let units = comptime![spread.channels * spread.groups];
        let mut sum = unit;
        while sum < rows {
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
        let mut sum = unit;
        while sum < comptime![TILE * spread.channels] {
            let offset = sum / spread.channels;
            let own_channel = channel_block * spread.channels + sum % spread.channels;
            if begin + offset < last && own_channel < plan.channels {
                let mut x_sum = 0.0f32;
                let mut delta_sum = 0.0f32;
                for group in 0..spread.groups {
                    let shared = (offset * spread.groups + group) * spread.channels + sum % spread.channels;
                    x_sum += of_x[shared];
                    delta_sum += of_delta[shared];
                }
                let step = (state_block * batch + row) * time + begin + offset;
                dx[step * plan.channels + own_channel] = P::cast_from(x_sum);
                ddelta[step * plan.channels + own_channel] = Q::cast_from(delta_sum);
            }
            sum += units;
        }
        // The next tile writes over these.
        sync_cube();
    }

    #[unroll]
    for index in 0..OWN {
        if in_batch && channel < plan.channels && start + index < plan.size {
            let place = ((row * chunks + chunk) * plan.channels + channel) * plan.size + start + index;
            da[place] = of_rates[index];
        }
    }
}

/// Element `column` of row `row`, or zero where the row has none.
#[cube]
fn number<E: Float>(tensor: &[E], row: usize, column: usize, #[comptime] columns: usize) -> f32 {
    let mut number = 0.0f32;
    if column < columns {
        number = f32::cast_from(tensor[row * columns + column]);
    }
    number
}

/// The state that a step begins with: that of the step before it, or the sequence's initial one.
#[cube]
fn state_before(
    state: f32,
    initial_state: &[f32],
    step: usize,
    channel: usize,
    index: usize,
    sequence: &Sequence,
    #[comptime] plan: Plan,
) -> f32 {
    let mut before = state;
    if step == sequence.start {
        before = 0.0;
        if plan.has_initial_state && channel < plan.channels && index < plan.size {
            before = initial_state[(sequence.index * plan.channels + channel) * plan.size + index];
        }
    }
    before
}
