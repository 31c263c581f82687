//! The backward pass.

use burn::{
    backend::{Backend, TensorMetadata},
    tensor::DType,
};
use burn_cubecl::{kernel::cast, tensor::CubeTensor};
use cubecl::{calculate_cube_count_elemwise, prelude::*};

use super::{
    KEPT, Problem,
    chunks::Carries,
    gradients::{Spread, TILE, gradients_kernel},
};
use crate::{
    cube::{Boundaries, absent, address, allocate, element, into_contiguous, is_fused, line, sum_rows},
    scan::GradientOf,
    selective::{SelectiveArguments, SelectiveSpec, portable},
};

/// Tiles of a chunk.
const TILES: usize = 8;
/// Channels of a cube on a device with memory for them.
const CHANNELS: usize = 32;
/// States of a unit, at most.
const WIDTH: usize = 4;

impl Spread {
    /// `width` states for a unit.
    fn new(x: &CubeTensor, size: usize, width: usize, of: GradientOf) -> Self {
        let groups = (size.min(KEPT) / width).max(1);
        let of_state = of == GradientOf::FinalState;
        let mut spread = Self { channels: CHANNELS, size: groups * width, groups, tiles: TILES, of_state };
        let hardware = &x.client.properties().hardware;
        let fits = |spread: &Self| {
            spread.shared_numbers() * size_of::<f32>() <= hardware.max_shared_memory_size
                && spread.channels * spread.groups <= hardware.max_units_per_cube as usize
        };
        while spread.channels > 1 && !fits(&spread) {
            spread.channels /= 2;
        }
        spread
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
    let boundaries = Boundaries::new(&problem.x, spec.boundaries.as_deref());
    let plan = problem.plan(spec, TILE * TILES);
    let mut width = line(plan.size, &[&problem.a, &problem.b, &problem.c]);
    while width > WIDTH {
        width /= 2;
    }
    let spread = Spread::new(&problem.x, plan.size, width, of);
    let carries = Carries::new(&problem, plan, Some((&gradient, spread.of_state)), &boundaries);

    let Problem { x, delta, a, b, c, initial_state, batch, time, .. } = problem;
    let chunks = time.div_ceil(plan.steps);
    let channel_blocks = plan.channels.div_ceil(spread.channels);
    let state_blocks = plan.size.div_ceil(spread.size);
    // Where a cube has all states, its sums over them are all there is to sum.
    let [dx, ddelta] = [&x, &delta].map(|tensor| match state_blocks {
        1 => allocate(tensor, tensor.shape(), tensor.dtype),
        _ => allocate(tensor, [state_blocks, tensor.shape().num_elements()], DType::F32),
    });
    let [db, dc] =
        [&b, &c].map(|tensor| allocate(tensor, [channel_blocks, tensor.shape().num_elements()], DType::F32));
    let da = allocate(&x, [batch * chunks, plan.channels * plan.size], DType::F32);
    let dinitial = match plan.has_initial_state {
        true => allocate(&x, initial_state.shape(), DType::F32),
        false => allocate(&x, [width], DType::F32),
    };

    let cubes = batch * chunks * channel_blocks * state_blocks;
    let cube = CubeDim::new_2d(spread.channels as u32, spread.groups as u32);
    let count = calculate_cube_count_elemwise(&x.client, cubes * spread.channels * spread.groups, cube);
    let gradients = carries.gradients.expect("carries of a gradient");
    // SAFETY: a cube has a chunk of a row of the batch, some channels and some states; a unit of a
    // channel or a state that is not there reads none and writes nothing but shared memory.
    unsafe {
        gradients_kernel::launch_unchecked(
            &x.client,
            count,
            cube,
            address(&[&x, &delta, &b, &carries.states, &dx, &ddelta, &db, &da]),
            width,
            x.clone().into_buffer_arg(),
            delta.clone().into_buffer_arg(),
            a.clone().into_buffer_arg(),
            b.clone().into_buffer_arg(),
            c.clone().into_buffer_arg(),
            initial_state.clone().into_buffer_arg(),
            gradient.clone().into_buffer_arg(),
            boundaries.argument(),
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
