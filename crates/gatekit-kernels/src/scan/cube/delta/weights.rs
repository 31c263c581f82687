//! Gradients of the matrices over a chunk's pairs of steps, of the values, and the values' part in
//! the gradient of `beta`.
//!
//! ```text
//! attention:      do x^T                              lower
//! keys on keys:   de = beta dl,  dl = -e x^T          strictly lower
//! values:         beta e
//! beta, a part:   rows of (e v) + rows of (dl E)
//! ```
//!
//! with `x` what the steps write and `e` the gradient of `v` minus what the state holds for the key.

use burn_cubecl::cubecl::{self, ir::ElemType, prelude::*};

use super::layout::{CHUNK, Sizes, locate};
use super::tiles::{DEPTH, Product, SIDE, Tile, UNITS, fill, multiply};

const TILE: Tile = Tile::by_columns(DEPTH, CHUNK);
const PRODUCT: Product = Product::of(TILE, TILE);
/// Units that add up each step's sums.
const PARTS: usize = UNITS / CHUNK;

/// A cube a chunk and head.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn weights_kernel<E: Float, B: Float>(
    chunks: &[u32],
    v: &[E],
    beta: &[B],
    output_gradient: &[E],
    writes: &[f32],
    errors: &[f32],
    keys_on_keys: &[f32],
    attention_gradient: &mut [f32],
    keys_gradient: &mut [f32],
    values_gradient: &mut [E],
    beta_gradient: &mut [f32],
    count: usize,
    #[comptime] parts: usize,
    #[comptime] sizes: Sizes,
    #[define(E, B)] _types: [ElemType; 2],
) {
    if CUBE_POS >= count {
        terminate!();
    }
    let unit = UNIT_POS as usize;
    let place = locate(chunks, CUBE_POS / sizes.heads, CUBE_POS % sizes.heads, sizes);
    let values = place.rows(sizes.value_dim, sizes);
    let columns = values.transpose();
    let strengths = place.values(1usize, sizes);

    let mut gradient = Shared::<[f32]>::new_slice(comptime!(TILE.len()));
    let mut write = Shared::<[f32]>::new_slice(comptime!(TILE.len()));
    let mut error = Shared::<[f32]>::new_slice(comptime!(TILE.len()));
    let mut value = Shared::<[f32]>::new_slice(comptime!(TILE.len()));
    let mut sums = Shared::<[f32]>::new_slice(comptime!(CHUNK * (SIDE + PARTS)));
    let mut scores = Array::<f32>::new(comptime!(PRODUCT.rows * PRODUCT.columns));
    let mut held = Array::<f32>::new(comptime!(PRODUCT.rows * PRODUCT.columns));
    let (own_step, own_part) = (unit % CHUNK, unit / CHUNK);
    let mut own_sum = 0.0f32.runtime();

    for slice in 0..comptime!(sizes.value_dim.div_ceil(DEPTH)) {
        let channel = slice * DEPTH;
        sync_cube();
        let view = columns.from(channel, 0usize);
        fill(&mut gradient, output_gradient, &view, TILE);
        fill(&mut write, writes, &view, TILE);
        fill(&mut error, errors, &view, TILE);
        fill(&mut value, v, &view, TILE);
        sync_cube();
        multiply(&mut scores, &gradient, &write, 0usize, PRODUCT);
        multiply(&mut held, &error, &write, 0usize, PRODUCT);
        for index in 0..comptime!(DEPTH / PARTS) {
            let at = (own_part + index * PARTS) * comptime!(TILE.stride()) + own_step;
            own_sum += error[at] * value[at];
        }
        for index in 0..comptime!(DEPTH * CHUNK / UNITS) {
            let at = index * UNITS + unit;
            let (channel, step) = (at % DEPTH, at / DEPTH);
            if channel < view.rows && step < view.columns {
                let strength = f32::cast_from(beta[strengths.origin + step * strengths.row]);
                let gradient = strength * error[channel * comptime!(TILE.stride()) + step];
                values_gradient[view.origin + channel + step * view.column] = E::cast_from(gradient);
            }
        }
    }

    let (a, b) = (unit / SIDE, unit % SIDE);
    let origin = place.pairs().origin;
    #[unroll]
    for x in 0..comptime!(PRODUCT.rows) {
        let row = a + x * SIDE;
        let mut strength = 0.0f32.runtime();
        if row < place.steps {
            strength = f32::cast_from(beta[strengths.origin + row * strengths.row]);
        }
        let mut sum = 0.0f32.runtime();
        #[unroll]
        for y in 0..comptime!(PRODUCT.columns) {
            let column = b + y * SIDE;
            let at = origin + row * CHUNK + column;
            let index = comptime!(x * PRODUCT.columns + y);
            attention_gradient[at] = select(row >= column, scores[index], 0.0f32);
            let lower = select(row > column, -held[index], 0.0f32);
            keys_gradient[at] = strength * lower;
            sum += lower * keys_on_keys[at];
        }
        sums[row * comptime!(SIDE + PARTS) + b] = sum;
    }
    sums[own_step * comptime!(SIDE + PARTS) + SIDE + own_part] = own_sum;
    sync_cube();
    if unit < place.steps {
        let mut sum = 0.0f32.runtime();
        for index in 0..comptime!(SIDE + PARTS) {
            sum += sums[unit * comptime!(SIDE + PARTS) + index];
        }
        beta_gradient[(strengths.origin + unit * strengths.row) * parts + comptime!(parts - 1)] = sum;
    }
}
