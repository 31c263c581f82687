//! Products of the matrices over a chunk's pairs of steps with its rows.

use cubecl::{ir::ElemType, prelude::*};

use super::super::{
    blocks::{ALIGNMENT, Blocks},
    decay::CHUNK,
};
use super::place::{Sizes, place_of_cube};
use super::tiles::{
    DEPTH, Operand, STEP_BLOCKS, add_product, chunk_grid, fill, fill_times, stage_len, write_out,
};
use crate::scan::DecayKind;

/// What is multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Apply {
    /// Whether the matrix is transposed.
    pub transposed: bool,
    /// Whether the rows are scaled by `beta`; not with a transposed matrix.
    pub beta: bool,
    /// Whether the rows are keys, scaled by the decay from the chunk's start; else they are as wide as values.
    pub keys: bool,
}

const MATRIX: Operand = Operand::by_columns(STEP_BLOCKS);
const ROWS: Operand = Operand::by_rows(STEP_BLOCKS);

/// Writes `scale` times `matrix x` or `matrix^T x`, a cube a chunk, head and 64 columns.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn apply_kernel<X: Float, B: Float, E: Float>(
    matrix: &[f32],
    x: &[X],
    beta: &[B],
    from_start: &[f32],
    chunks: &[u32],
    output: &mut [f32],
    count: usize,
    scale: f32,
    sizes: &Sizes,
    #[comptime] apply: Apply,
    #[define(X)] _rows: ElemType,
    #[define(B)] _strength: ElemType,
    #[define(E)] _operand: ElemType,
) {
    if CUBE_POS >= count {
        terminate!();
    }
    let mut width = sizes.value_dim;
    if comptime!(apply.keys) {
        width = sizes.key_dim;
    }
    let blocks = width.div_ceil(CHUNK);
    let place = place_of_cube(chunks, sizes, blocks);
    let rows = place.rows(sizes, width).from(0usize, CUBE_POS % blocks * CHUNK);
    let decays = place.decays(sizes).from(0usize, CUBE_POS % blocks * CHUNK);
    // Over the summed steps and the steps of the result.
    let strengths = place.numbers(sizes, CHUNK.runtime());

    let grid = comptime!(chunk_grid(STEP_BLOCKS, sizes.planes));
    let mut left = Shared::<[E]>::new_aligned_slice(comptime!(MATRIX.len()), ALIGNMENT);
    let mut right = Shared::<[E]>::new_aligned_slice(comptime!(ROWS.len()), ALIGNMENT);
    let mut stage = Shared::<[f32]>::new_aligned_slice(comptime!(stage_len(sizes.planes)), ALIGNMENT);
    let mut sum = Blocks::zeros(grid);
    let decayed = comptime!(apply.keys && sizes.decay != DecayKind::None);
    for slice in 0..comptime!(CHUNK / DEPTH) {
        let step = slice * DEPTH;
        sync_cube();
        if comptime!(apply.transposed) {
            let matrix_view = place.pairs().from(step, 0usize);
            fill::<f32, E>(&mut left, matrix, &matrix_view, ROWS);
        } else {
            // No step beyond the last has a `beta`, nor a part in the sum.
            let matrix_view =
                place.pairs().transpose().from(step, 0usize).above(strengths.from(step, 0usize).rows);
            let strengths = strengths.from(step, 0usize);
            fill_times::<f32, B, E>(&mut left, matrix, &matrix_view, beta, &strengths, apply.beta, MATRIX);
        }
        fill_times::<X, f32, E>(
            &mut right,
            x,
            &rows.from(step, 0usize),
            from_start,
            &decays.from(step, 0usize),
            decayed,
            ROWS,
        );
        sync_cube();
        add_product::<E>(&mut sum, &left, MATRIX, &right, ROWS, grid);
    }
    write_out::<f32>(&sum, &mut stage, output, scale, &rows, grid);
}
