//! The output of every step: what it reads from the state before its chunk, and from its chunk.

use burn_cubecl::cubecl::{self, ir::ElemType, prelude::*};

use super::layout::{CHUNK, Sizes, locate, state_view};
use super::tiles::{DEPTH, Product, SIDE, Tile, fill, multiply, scale};
use crate::scan::DecayKind;

const LEFT: Tile = Tile::by_columns(DEPTH, CHUNK);
const RIGHT: Tile = Tile::by_rows(DEPTH, CHUNK);
const PRODUCT: Product = Product::of(LEFT, RIGHT);

/// `factor (q * from_start) S + attention writes`, a cube a chunk, head and 64 columns.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn output_kernel<E: Float>(
    chunks: &[u32],
    q: &[E],
    from_start: &[f32],
    states: &[f32],
    attention: &[f32],
    writes: &[f32],
    output: &mut [E],
    count: usize,
    factor: f32,
    #[comptime] sizes: Sizes,
    #[define(E)] _type: ElemType,
) {
    if CUBE_POS >= count {
        terminate!();
    }
    let blocks = comptime!(sizes.value_dim.div_ceil(CHUNK));
    let head = CUBE_POS / blocks % sizes.heads;
    let place = locate(chunks, CUBE_POS / comptime!(blocks * sizes.heads), head, sizes);
    let column = CUBE_POS % blocks * CHUNK;
    let queries = place.rows(sizes.key_dim, sizes).transpose();
    let decays = place.decays(sizes).transpose();
    let state = state_view(place.state, sizes);
    let rows = place.rows(sizes.value_dim, sizes);

    let mut left = Shared::<[f32]>::new_slice(comptime!(LEFT.len()));
    let mut right = Shared::<[f32]>::new_slice(comptime!(RIGHT.len()));
    let mut sum = Array::<f32>::new(comptime!(PRODUCT.rows * PRODUCT.columns));
    for slice in 0..comptime!(sizes.key_dim.div_ceil(DEPTH)) {
        let key = slice * DEPTH;
        sync_cube();
        fill(&mut left, q, &queries.from(key, 0usize), LEFT);
        if comptime!(sizes.decay != DecayKind::None) {
            scale(&mut left, from_start, &decays.from(key, 0usize), LEFT);
        }
        fill(&mut right, states, &state.from(key, column), RIGHT);
        sync_cube();
        multiply(&mut sum, &left, &right, 0usize, PRODUCT);
    }
    #[unroll]
    for at in 0..comptime!(PRODUCT.rows * PRODUCT.columns) {
        sum[at] *= factor;
    }
    for slice in 0..comptime!(CHUNK / DEPTH) {
        let step = slice * DEPTH;
        sync_cube();
        fill(&mut left, attention, &place.pairs().transpose().from(step, 0usize), LEFT);
        fill(&mut right, writes, &rows.from(step, column), RIGHT);
        sync_cube();
        multiply(&mut sum, &left, &right, 0usize, PRODUCT);
    }

    let (a, b) = (UNIT_POS as usize / SIDE, UNIT_POS as usize % SIDE);
    #[unroll]
    for x in 0..comptime!(PRODUCT.rows) {
        #[unroll]
        for y in 0..comptime!(PRODUCT.columns) {
            let row = a + x * SIDE;
            let column = column + b + y * SIDE;
            if row < place.steps && column < sizes.value_dim {
                output[rows.origin + row * rows.row + column] =
                    E::cast_from(sum[comptime!(x * PRODUCT.columns + y)]);
            }
        }
    }
}
