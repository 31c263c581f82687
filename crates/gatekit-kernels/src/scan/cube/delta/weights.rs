//! Gradients of the matrices over a chunk's pairs of steps, of the values, and the values' part in the gradient of
//! `beta`.
//!
//! ```text
//! attention:      do x^T                              lower
//! keys on keys:   de = beta dl,  dl = -e x^T          strictly lower
//! values:         beta e
//! beta, a part:   rows of (e v) + rows of (dl E)
//! ```
//!
//! with `x` what the steps write and `e` the gradient of `v` minus what the state holds for the key.

use cubecl::{ir::ElemType, prelude::*};

use super::super::{
    blocks::{ALIGNMENT, BLOCK, Blocks},
    decay::{CHUNK, SUB_CHUNKS},
};
use super::place::{Sizes, place_of_cube};
use super::tiles::{DEPTH, Operand, STEP_BLOCKS, add_product, chunk_grid, fill, own_elements, stage_len};

/// Values by steps.
const SLAB: Operand = Operand::by_columns(STEP_BLOCKS);

/// A cube a chunk and head. The gradient of `beta` is written as the last of `parts` to be added up.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn weights_kernel<F: Float, B: Float, E: Float>(
    v: &[F],
    beta: &[B],
    output_gradient: &[F],
    writes: &[f32],
    errors: &[f32],
    keys_on_keys: &[f32],
    chunks: &[u32],
    attention_gradient: &mut [f32],
    keys_gradient: &mut [f32],
    values_gradient: &mut [F],
    beta_gradient: &mut [f32],
    count: usize,
    parts: usize,
    sizes: &Sizes,
    #[define(F)] _input: ElemType,
    #[define(B)] _strength: ElemType,
    #[define(E)] _operand: ElemType,
) {
    if CUBE_POS >= count {
        terminate!();
    }
    let grid = comptime!(chunk_grid(STEP_BLOCKS, sizes.planes));
    let unit = UNIT_POS as usize;
    let (a, b) = (unit / BLOCK, unit % BLOCK);
    let place = place_of_cube(chunks, sizes, 1usize.runtime());
    let values = place.values(sizes);
    let pairs = place.pairs();
    let strengths = place.numbers(sizes, 1usize.runtime());

    let mut gradient = Shared::<[E]>::new_aligned_slice(comptime!(SLAB.len()), ALIGNMENT);
    let mut write = Shared::<[E]>::new_aligned_slice(comptime!(SLAB.len()), ALIGNMENT);
    let mut error = Shared::<[E]>::new_aligned_slice(comptime!(SLAB.len()), ALIGNMENT);
    let mut stage = Shared::<[f32]>::new_aligned_slice(comptime!(stage_len(sizes.planes)), ALIGNMENT);
    let mut sums = Shared::<[f32]>::new_slice(comptime!(CHUNK * BLOCK));
    let mut scores = Blocks::zeros(grid);
    let mut held = Blocks::zeros(grid);
    // Of the unit's steps: rows `unit / 16 + 16 m`.
    let mut strength = Array::<f32>::new(SUB_CHUNKS);
    let mut sum = Array::<f32>::new(SUB_CHUNKS);
    #[unroll]
    for m in 0..SUB_CHUNKS {
        let row = a + comptime!(m * BLOCK);
        strength[m] = strengths.read(beta, row, 0usize);
        sum[m] = 0.0;
    }

    for slice in 0..sizes.value_dim.div_ceil(DEPTH) {
        let channel = slice * DEPTH;
        sync_cube();
        let view = values.from(0usize, channel).transpose();
        fill::<F, E>(&mut gradient, output_gradient, &view, SLAB);
        fill::<f32, E>(&mut write, writes, &view, SLAB);
        fill::<f32, E>(&mut error, errors, &view, SLAB);
        #[unroll]
        for m in 0..SUB_CHUNKS {
            let (row, value) = (a + comptime!(m * BLOCK), channel + b);
            if values.has(row, value) {
                let at = values.at(row, value);
                sum[m] += errors[at] * f32::cast_from(v[at]);
                values_gradient[at] = F::cast_from(strength[m] * errors[at]);
            }
        }
        sync_cube();
        add_product::<E>(&mut scores, &gradient, SLAB, &write, SLAB, grid);
        add_product::<E>(&mut held, &error, SLAB, &write, SLAB, grid);
    }

    #[unroll]
    for block in 0..STEP_BLOCKS {
        let column = b + comptime!(block * BLOCK);
        let own_scores = own_elements(&scores, &mut stage, block, grid);
        let own_held = own_elements(&held, &mut stage, block, grid);
        #[unroll]
        for m in 0..SUB_CHUNKS {
            let row = a + comptime!(m * BLOCK);
            let at = pairs.at(row, column);
            let lower = select(row > column, -own_held[m], 0.0f32);
            attention_gradient[at] = select(row >= column, own_scores[m], 0.0f32);
            keys_gradient[at] = strength[m] * lower;
            sum[m] += lower * keys_on_keys[at];
        }
    }
    #[unroll]
    for m in 0..SUB_CHUNKS {
        sums[unit + comptime!(m * BLOCK * BLOCK)] = sum[m];
    }
    sync_cube();
    if unit < place.steps {
        let mut sum = 0.0f32.runtime();
        for index in 0..BLOCK {
            sum += sums[unit * BLOCK + index];
        }
        beta_gradient[strengths.at(unit, 0usize) * parts + parts - 1] = sum;
    }
}
