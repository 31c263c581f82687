//! The output of every step: what it reads from the state before its chunk, and from its chunk.

use cubecl::{ir::ElemType, prelude::*};

use super::super::{
    blocks::{ALIGNMENT, Blocks},
    decay::CHUNK,
};
use super::place::{Sizes, place_of_cube, state_view};
use super::tiles::{
    DEPTH, Operand, STEP_BLOCKS, add_product, chunk_grid, fill, fill_times, stage_len, write_out,
};
use crate::scan::DecayKind;

const LEFT: Operand = Operand::by_columns(STEP_BLOCKS);
const RIGHT: Operand = Operand::by_rows(STEP_BLOCKS);

/// `scale ((q * from_start) S + attention writes)`, a cube a chunk, head and 64 columns.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn output_kernel<F: Float, E: Float>(
    q: &[F],
    from_start: &[f32],
    states: &[f32],
    attention: &[f32],
    writes: &[f32],
    chunks: &[u32],
    output: &mut [F],
    count: usize,
    scale: f32,
    sizes: &Sizes,
    #[define(F)] _input: ElemType,
    #[define(E)] _operand: ElemType,
) {
    if CUBE_POS >= count {
        terminate!();
    }
    let blocks = sizes.value_dim.div_ceil(CHUNK);
    let place = place_of_cube(chunks, sizes, blocks);
    let column = CUBE_POS % blocks * CHUNK;
    let queries = place.keys(sizes).transpose();
    let decays = place.decays(sizes).transpose();
    let state = state_view(sizes, place.state).from(0usize, column);
    let rows = place.values(sizes).from(0usize, column);

    let grid = comptime!(chunk_grid(STEP_BLOCKS, sizes.planes));
    let decayed = comptime!(sizes.decay != DecayKind::None);
    let mut left = Shared::<[E]>::new_aligned_slice(comptime!(LEFT.len()), ALIGNMENT);
    let mut right = Shared::<[E]>::new_aligned_slice(comptime!(RIGHT.len()), ALIGNMENT);
    let mut stage = Shared::<[f32]>::new_aligned_slice(comptime!(stage_len(sizes.planes)), ALIGNMENT);
    let mut sum = Blocks::zeros(grid);
    for slice in 0..sizes.key_dim.div_ceil(DEPTH) {
        let key = slice * DEPTH;
        sync_cube();
        let decays = decays.from(key, 0usize);
        fill_times::<F, f32, E>(&mut left, q, &queries.from(key, 0usize), from_start, &decays, decayed, LEFT);
        fill::<f32, E>(&mut right, states, &state.from(key, 0usize), RIGHT);
        sync_cube();
        add_product::<E>(&mut sum, &left, LEFT, &right, RIGHT, grid);
    }
    for slice in 0..comptime!(CHUNK / DEPTH) {
        let step = slice * DEPTH;
        sync_cube();
        fill::<f32, E>(&mut left, attention, &place.pairs().transpose().from(step, 0usize), LEFT);
        fill::<f32, E>(&mut right, writes, &rows.from(step, 0usize), RIGHT);
        sync_cube();
        add_product::<E>(&mut sum, &left, LEFT, &right, RIGHT, grid);
    }
    write_out::<F>(&sum, &mut stage, output, scale, &rows, grid);
}
