//! Products between the steps of a chunk, weighted by the decay between them.
//!
//! The decay from step `j` to step `i` is a product of factors at most 1 over the steps between.
//! Blocks of 16 steps below the diagonal split it at block boundaries: the query's or key's decay
//! from the start of its block, the key's decay to the end of its block, and the blocks between.
//! Blocks on the diagonal walk from step to step.

use cubecl::{ir::ElemType, prelude::*};

use super::super::{
    blocks::{BLOCK, UNITS},
    decay::{CHUNK, SUB_CHUNKS as BLOCKS, bounded, factor},
};
use super::place::{Sizes, place_of_cube};
use super::tiles::{DEPTH, Operand, STEP_BLOCKS, View, fill};
use crate::scan::DecayKind;

/// Steps along each side of what a unit computes.
const SIDE: usize = 4;
/// Such squares along each side of a block, and in a block.
const SQUARES: usize = BLOCK / SIDE;
const BLOCK_SQUARES: usize = SQUARES * SQUARES;
/// Pairs of different blocks, and squares on or below a block's diagonal.
const PAIRS: usize = BLOCKS * (BLOCKS - 1) / 2;
const DIAGONAL_SQUARES: usize = SQUARES * (SQUARES + 1) / 2;
/// Units with squares below the diagonal blocks, for one of the two matrices.
const BELOW: usize = PAIRS * BLOCK_SQUARES;

/// Keys by steps.
const TILE: Operand = Operand::by_columns(STEP_BLOCKS);
const STRIDE: usize = TILE.stride();

/// Bytes of shared memory.
pub(super) const SHARED_BYTES: usize = (6 * TILE.len() + DEPTH * BLOCKS) * 4;

/// Writes `keys_on_keys`, strictly lower, and `attention`, lower; a cube a chunk and head.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn scores_kernel<F: Float, G: Float>(
    q: &[F],
    k: &[F],
    log_decay: &[G],
    chunks: &[u32],
    keys_on_keys: &mut [f32],
    attention: &mut [f32],
    count: usize,
    sizes: &Sizes,
    #[define(F)] _input: ElemType,
    #[define(G)] _decay: ElemType,
) {
    if CUBE_POS >= count {
        terminate!();
    }
    let decaying = comptime!(sizes.decay != DecayKind::None);
    let unit = UNIT_POS as usize;
    let place = place_of_cube(chunks, sizes, 1usize.runtime());
    let rows = place.keys(sizes).transpose();
    let decays = place.decays(sizes).transpose();

    let mut query = Shared::<[f32]>::new_slice(comptime!(TILE.len()));
    let mut key = Shared::<[f32]>::new_slice(comptime!(TILE.len()));
    let mut decay = Shared::<[f32]>::new_slice(comptime!(TILE.len()));
    // From the start of a step's block up to the step, and after it to the block's end.
    let mut query_up = Shared::<[f32]>::new_slice(comptime!(TILE.len()));
    let mut key_up = Shared::<[f32]>::new_slice(comptime!(TILE.len()));
    let mut key_down = Shared::<[f32]>::new_slice(comptime!(TILE.len()));
    let mut whole = Shared::<[f32]>::new_slice(comptime!(DEPTH * BLOCKS));

    let mut first = Array::<f32>::new(comptime!(SIDE * SIDE));
    let mut second = Array::<f32>::new(comptime!(SIDE * SIDE));
    let square = Square::of(unit);

    for slice in 0..sizes.key_dim.div_ceil(DEPTH) {
        let channel = slice * DEPTH;
        sync_cube();
        fill::<F, f32>(&mut query, q, &rows.from(channel, 0usize), TILE);
        fill::<F, f32>(&mut key, k, &rows.from(channel, 0usize), TILE);
        if decaying {
            fill_decay::<G>(&mut decay, log_decay, &decays.from(channel, 0usize));
        }
        sync_cube();
        // A unit a channel, block and direction.
        if unit < comptime!(2 * DEPTH * BLOCKS) {
            let channel = unit % DEPTH;
            let block = unit / DEPTH % BLOCKS;
            let start = channel * STRIDE + block * BLOCK;
            let mut product = 1.0f32.runtime();
            if unit < comptime!(DEPTH * BLOCKS) {
                for step in 0..BLOCK {
                    if decaying {
                        product *= decay[start + step];
                    }
                    query_up[start + step] = query[start + step] * product;
                    key_up[start + step] = key[start + step] * product;
                }
                whole[channel * BLOCKS + block] = product;
            } else {
                for back in 0..BLOCK {
                    let at = start + comptime!(BLOCK - 1) - back;
                    key_down[at] = key[at] * product;
                    if decaying {
                        product *= decay[at];
                    }
                }
            }
        }
        sync_cube();
        if unit < comptime!(2 * BELOW) {
            for channel in 0..DEPTH {
                let line = channel * STRIDE;
                let mut between = 1.0f32.runtime();
                for block in square.column_block + 1..square.row_block {
                    between *= whole[channel * BLOCKS + block];
                }
                let mut columns = Array::<f32>::new(SIDE);
                #[unroll]
                for y in 0..SIDE {
                    columns[y] = key_down[line + square.column + y] * between;
                }
                #[unroll]
                for x in 0..SIDE {
                    let mut row = key_up[line + square.row + x];
                    if unit >= BELOW {
                        row = query_up[line + square.row + x];
                    }
                    #[unroll]
                    for y in 0..SIDE {
                        first[comptime!(x * SIDE + y)] += row * columns[y];
                    }
                }
            }
        } else if unit < comptime!(2 * BELOW + BLOCKS * DIAGONAL_SQUARES) {
            for channel in 0..DEPTH {
                let line = channel * STRIDE;
                // The keys of the square's columns, decayed up to the step at hand.
                let mut columns = Array::<f32>::new(SIDE);
                for step in square.column..square.row {
                    advance(&mut columns, &key, &decay, line, step, square.column, decaying);
                }
                #[unroll]
                for x in 0..SIDE {
                    let step = square.row + x;
                    advance(&mut columns, &key, &decay, line, step, square.column, decaying);
                    let own_key = key[line + step];
                    let own_query = query[line + step];
                    #[unroll]
                    for y in 0..SIDE {
                        first[comptime!(x * SIDE + y)] += own_key * columns[y];
                        second[comptime!(x * SIDE + y)] += own_query * columns[y];
                    }
                }
            }
        }
    }

    let origin = place.pairs().origin;
    if unit < comptime!(2 * BELOW + BLOCKS * DIAGONAL_SQUARES) {
        #[unroll]
        for x in 0..SIDE {
            #[unroll]
            for y in 0..SIDE {
                let (row, column) = (square.row + x, square.column + y);
                let at = origin + row * CHUNK + column;
                let value = first[comptime!(x * SIDE + y)];
                if unit < BELOW {
                    keys_on_keys[at] = value;
                } else if unit < comptime!(2 * BELOW) {
                    attention[at] = value;
                } else {
                    keys_on_keys[at] = select(row > column, value, 0.0f32);
                    attention[at] = select(row >= column, second[comptime!(x * SIDE + y)], 0.0f32);
                }
            }
        }
    }
    // What no unit computes lies above the diagonal.
    for step in 0..comptime!(CHUNK * CHUNK / UNITS) {
        let at = step * UNITS + unit;
        if at / CHUNK / SIDE < at % CHUNK / SIDE {
            keys_on_keys[origin + at] = 0.0;
            attention[origin + at] = 0.0;
        }
    }
}

/// Log decays read as decays; 1 beyond the sequence.
#[cube]
fn fill_decay<G: Float>(to: &mut Shared<[f32]>, log_decay: &[G], view: &View) {
    for step in 0..comptime!((DEPTH * CHUNK).div_ceil(UNITS)) {
        let index = step * UNITS + UNIT_POS as usize;
        let (channel, step) = (index % DEPTH, index / DEPTH);
        to[channel * STRIDE + step] = factor(bounded(view.read(log_decay, channel, step)));
    }
}

/// Decays the keys of a square's columns by a step, whose own key joins them if it is one of theirs.
#[cube]
fn advance(
    columns: &mut Array<f32>,
    key: &Shared<[f32]>,
    decay: &Shared<[f32]>,
    line: usize,
    step: usize,
    column: usize,
    #[comptime] decaying: bool,
) {
    let own = key[line + step];
    #[unroll]
    for y in 0..SIDE {
        if decaying {
            columns[y] *= decay[line + step];
        }
        columns[y] = select(column + y == step, own, columns[y]);
    }
}

/// The square of pairs that a unit computes.
#[derive(CubeType, Clone, Copy)]
struct Square {
    row_block: usize,
    column_block: usize,
    /// First step of its rows and columns.
    row: usize,
    column: usize,
}

#[cube]
impl Square {
    /// First the squares of the blocks below the diagonal, for both matrices, then the others.
    fn of(unit: usize) -> Square {
        let below = unit < comptime!(2 * BELOW);
        let within = select(below, unit % BELOW, unit - select(below, unit, comptime!(2 * BELOW).runtime()));
        let blocks = lower(select(below, within / BLOCK_SQUARES, 0usize));
        let squares = lower(within % DIAGONAL_SQUARES);
        let own_block = within / DIAGONAL_SQUARES % BLOCKS;
        let row_block = select(below, blocks.0 + 1, own_block);
        let column_block = select(below, blocks.1, own_block);
        let row = select(below, within % BLOCK_SQUARES / SQUARES, squares.0);
        let column = select(below, within % SQUARES, squares.1);
        Square {
            row_block,
            column_block,
            row: row_block * BLOCK + row * SIDE,
            column: column_block * BLOCK + column * SIDE,
        }
    }
}

/// Row and column of an index that counts a lower triangle row by row.
#[cube]
fn lower(index: usize) -> (usize, usize) {
    let mut left = index;
    let mut length = 1usize.runtime();
    while left >= length {
        left -= length;
        length += 1;
    }
    (length - 1, left)
}
