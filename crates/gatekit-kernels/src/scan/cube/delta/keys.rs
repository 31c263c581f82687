//! Gradients over keys: of queries, keys and log decays, and the keys' part in that of `beta`.
//!
//! ```text
//! dq = scale ((do S^T) from_start + rows(dA, k))                z = (e S^T) from_start
//! dk = r + c,  r = rows(dE, k) - beta z,  c = (x D^T) to_end + columns(dA, scale q) + columns(dE, k)
//! d log decay_t = sum_{i >= t} (q dq + k (r - c))_i + rows of (D S_after)      beta, a part: -(k z)
//! ```
//!
//! with `S` the state before the chunk, `S_after` that after it and `D` its gradient, `x` what the
//! steps write, `e` the errors' gradients, `dA` and `dE` those of the matrices over pairs of steps,
//! and
//!
//! ```text
//! rows(W, k)_i = sum_{j <= i} W_ij k_j decay_ij       columns(W, a)_j = sum_{i >= j} W_ij a_i decay_ij
//! ```
//!
//! The weighted sums walk from step to step as Horner's rule does, so that every decay between two
//! steps is a product of the decays between them.

use burn_cubecl::cubecl::{self, ir::ElemType, prelude::*};

use super::decays::bounded;
use super::layout::{CHUNK, Sizes, locate, state_view};
use super::tiles::{DEPTH, Product, SIDE, Tile, UNITS, fill, multiply};
use crate::scan::DecayKind;

/// Keys of a cube.
pub(super) const KEYS: usize = 32;
/// Log decays below this get no gradient: what they let through is invisible in float32, the
/// rounding of the closed form is not.
const LOG_DECAY_GRADIENT_FLOOR: f32 = -30.0;

const ROWS: Tile = Tile::by_columns(DEPTH, CHUNK);
const STATE: Tile = Tile::by_columns(DEPTH, KEYS);
const PRODUCT: Product = Product::of(ROWS, STATE);
/// Elements of the result that a unit holds.
const OWN: usize = PRODUCT.rows * PRODUCT.columns;
/// Steps by keys.
const BOARD: Tile = Tile::by_rows(CHUNK, KEYS);
const STRIDE: usize = BOARD.stride();
/// Units that add up each key's sum over values.
const PARTS: usize = UNITS / KEYS;

/// A cube a chunk, head and block of keys. The gradients of `beta` and of decays per head are
/// written in `parts` to be added up.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn keys_kernel<E: Float, G: Float, B: Float>(
    chunks: &[u32],
    q: &[E],
    k: &[E],
    log_decay: &[G],
    beta: &[B],
    from_start: &[f32],
    to_end: &[f32],
    output_gradient: &[E],
    writes: &[f32],
    errors: &[f32],
    states: &[f32],
    state_gradients: &[f32],
    attention_gradient: &[f32],
    keys_gradient: &[f32],
    q_gradient: &mut [E],
    k_gradient: &mut [E],
    decay_gradient: &mut [f32],
    beta_gradient: &mut [f32],
    count: usize,
    factor: f32,
    #[comptime] parts: usize,
    #[comptime] sizes: Sizes,
    #[define(E, G, B)] _types: [ElemType; 3],
) {
    if CUBE_POS >= count {
        terminate!();
    }
    let decaying = comptime!(sizes.decay != DecayKind::None);
    let blocks = comptime!(sizes.key_dim.div_ceil(KEYS));
    let block = CUBE_POS % blocks;
    let head = CUBE_POS / blocks % sizes.heads;
    let place = locate(chunks, CUBE_POS / comptime!(blocks * sizes.heads), head, sizes);
    let first = block * KEYS;
    let values = place.rows(sizes.value_dim, sizes).transpose();
    let keys = place.rows(sizes.key_dim, sizes).from(0usize, first);
    let decays = place.decays(sizes).from(0usize, first);
    let strengths = place.values(1usize, sizes);
    let state = state_view(place.state, sizes).from(first, 0usize);
    let after = state_view(place.state + sizes.heads, sizes).from(first, 0usize);
    let unit = UNIT_POS as usize;
    let (a, b) = (unit / SIDE, unit % SIDE);

    let mut rows = Shared::<[f32]>::new_slice(comptime!(ROWS.len()));
    let mut errors_rows = Shared::<[f32]>::new_slice(comptime!(ROWS.len()));
    let mut state_rows = Shared::<[f32]>::new_slice(comptime!(STATE.len()));
    let mut after_rows = Shared::<[f32]>::new_slice(comptime!(STATE.len()));
    let mut board = Shared::<[f32]>::new_slice(comptime!(BOARD.len()));
    let mut totals = Shared::<[f32]>::new_slice(comptime!(KEYS * PARTS));

    // What the states contribute.
    let mut query = Array::<f32>::new(OWN);
    let mut held = Array::<f32>::new(OWN);
    let mut column = Array::<f32>::new(OWN);
    for slice in 0..comptime!(sizes.value_dim.div_ceil(DEPTH)) {
        let channel = slice * DEPTH;
        sync_cube();
        fill(&mut rows, output_gradient, &values.from(channel, 0usize), ROWS);
        fill(&mut errors_rows, errors, &values.from(channel, 0usize), ROWS);
        fill(&mut state_rows, states, &state.transpose().from(channel, 0usize), STATE);
        fill(&mut after_rows, state_gradients, &after.transpose().from(channel, 0usize), STATE);
        sync_cube();
        multiply(&mut query, &rows, &state_rows, 0usize, PRODUCT);
        multiply(&mut held, &errors_rows, &state_rows, 0usize, PRODUCT);
        sync_cube();
        fill(&mut rows, writes, &values.from(channel, 0usize), ROWS);
        sync_cube();
        multiply(&mut column, &rows, &after_rows, 0usize, PRODUCT);
    }
    if decaying {
        let (key, part) = (unit / PARTS, unit % PARTS);
        let mut sum = 0.0f32.runtime();
        if key < after.rows {
            for step in 0..comptime!(sizes.value_dim.div_ceil(PARTS)) {
                let value = step * PARTS + part;
                if value < sizes.value_dim {
                    let at = after.origin + key * after.row + value;
                    sum += states[at] * state_gradients[at];
                }
            }
        }
        totals[unit] = sum;
        // The decays of all steps.
        for step in 0..comptime!(CHUNK * KEYS / UNITS) {
            let index = step * UNITS + unit;
            let (row, key) = (index / KEYS, index % KEYS);
            let mut value = 1.0f32.runtime();
            if row < decays.rows && key < decays.columns {
                value = bounded::<G>(log_decay[decays.origin + row * decays.row + key * decays.column]).exp();
            }
            board[row * STRIDE + key] = value;
        }
        sync_cube();
    }

    // Within the chunk, rows: from the first step to each.
    let mut near_query = Array::<f32>::new(OWN);
    let mut near_row = Array::<f32>::new(OWN);
    let pairs = place.pairs().origin;
    #[unroll]
    for band in 0..comptime!(PRODUCT.rows) {
        for within in 0..SIDE {
            let step = within + comptime!(band * SIDE);
            #[unroll]
            for y in 0..comptime!(PRODUCT.columns) {
                let key = b + y * SIDE;
                let mut own = 0.0f32.runtime();
                if step < keys.rows && key < keys.columns {
                    own = f32::cast_from(k[keys.origin + step * keys.row + key]);
                }
                let mut decay = 1.0f32.runtime();
                if decaying {
                    decay = board[step * STRIDE + key];
                }
                #[unroll]
                for x in band..comptime!(PRODUCT.rows) {
                    let row = a + comptime!(x * SIDE);
                    let at = comptime!(x * PRODUCT.columns + y);
                    let weight = pairs + row * CHUNK + step;
                    if decaying {
                        // Nothing decays after the row's own step.
                        let passed = select(step <= row, decay, 1.0f32);
                        near_query[at] *= passed;
                        near_row[at] *= passed;
                    }
                    near_query[at] += attention_gradient[weight] * own;
                    near_row[at] += keys_gradient[weight] * own;
                }
            }
        }
    }
    // Columns: from the last step back to each.
    let mut near_column = Array::<f32>::new(OWN);
    #[unroll]
    for band in 0..comptime!(PRODUCT.rows) {
        for within in 0..SIDE {
            let step = comptime!((PRODUCT.rows - band) * SIDE - 1) - within;
            #[unroll]
            for y in 0..comptime!(PRODUCT.columns) {
                let key = b + y * SIDE;
                let mut own_key = 0.0f32.runtime();
                let mut own_query = 0.0f32.runtime();
                if step < keys.rows && key < keys.columns {
                    own_key = f32::cast_from(k[keys.origin + step * keys.row + key]);
                    own_query = factor * f32::cast_from(q[keys.origin + step * keys.row + key]);
                }
                let mut decay = 1.0f32.runtime();
                if decaying {
                    decay = board[step * STRIDE + key];
                }
                #[unroll]
                for x in 0..comptime!(PRODUCT.rows - band) {
                    let row = a + comptime!(x * SIDE);
                    let at = comptime!(x * PRODUCT.columns + y);
                    let weight = pairs + step * CHUNK + row;
                    near_column[at] += attention_gradient[weight] * own_query + keys_gradient[weight] * own_key;
                    if decaying {
                        near_column[at] *= select(step > row, decay, 1.0f32);
                    }
                }
            }
        }
    }

    // Together; `held` becomes k z, `query` what the log decays sum up.
    #[unroll]
    for x in 0..comptime!(PRODUCT.rows) {
        let row = a + comptime!(x * SIDE);
        let mut strength = 0.0f32.runtime();
        if row < place.steps {
            strength = f32::cast_from(beta[strengths.origin + row * strengths.row]);
        }
        #[unroll]
        for y in 0..comptime!(PRODUCT.columns) {
            let key = b + y * SIDE;
            let at = comptime!(x * PRODUCT.columns + y);
            if row < keys.rows && key < keys.columns {
                let mut start = 1.0f32.runtime();
                let mut end = 1.0f32.runtime();
                if decaying {
                    let decay = decays.origin + row * decays.row + key * decays.column;
                    start = from_start[decay];
                    end = to_end[decay];
                }
                let element = keys.origin + row * keys.row + key;
                let own_key = f32::cast_from(k[element]);
                let own_query = factor * f32::cast_from(q[element]);
                let dq = query[at] * start + near_query[at];
                let z = held[at] * start;
                let r = near_row[at] - strength * z;
                let c = column[at] * end + near_column[at];
                q_gradient[element] = E::cast_from(factor * dq);
                k_gradient[element] = E::cast_from(r + c);
                query[at] = own_query * dq + own_key * (r - c);
                held[at] = own_key * z;
            } else {
                query[at] = 0.0f32.runtime();
                held[at] = 0.0f32.runtime();
            }
        }
    }
    sync_cube();
    show(&mut board, &held);
    sync_cube();
    if unit < place.steps {
        let sum = row_sum(&board, unit);
        beta_gradient[(strengths.origin + unit * strengths.row) * parts + block] = -sum;
    }

    if decaying {
        sync_cube();
        show(&mut board, &query);
        sync_cube();
        if unit < KEYS {
            let mut sum = 0.0f32.runtime();
            for part in 0..PARTS {
                sum += totals[unit * PARTS + part];
            }
            for back in 0..place.steps {
                let row = place.steps - 1 - back;
                sum += board[row * STRIDE + unit];
                board[row * STRIDE + unit] = sum;
            }
        }
        sync_cube();
        if comptime!(sizes.decay == DecayKind::PerHead) {
            if unit < place.steps {
                let sum = row_sum(&board, unit);
                let at = strengths.origin + unit * strengths.row;
                decay_gradient[at * blocks + block] = masked::<G>(sum, log_decay[at]);
            }
        } else {
            for step in 0..comptime!(CHUNK * KEYS / UNITS) {
                let index = step * UNITS + unit;
                let (row, key) = (index / KEYS, index % KEYS);
                if row < keys.rows && key < keys.columns {
                    let at = keys.origin + row * keys.row + key;
                    decay_gradient[at] = masked::<G>(board[row * STRIDE + key], log_decay[at]);
                }
            }
        }
    }
}

/// A gradient of a log decay.
#[cube]
fn masked<G: Float>(gradient: f32, log_decay: G) -> f32 {
    select(bounded::<G>(log_decay) >= LOG_DECAY_GRADIENT_FLOOR, gradient, 0.0f32)
}

/// Puts what every unit holds where all can read it.
#[cube]
fn show(board: &mut Shared<[f32]>, own: &Array<f32>) {
    let (a, b) = (UNIT_POS as usize / SIDE, UNIT_POS as usize % SIDE);
    #[unroll]
    for x in 0..comptime!(PRODUCT.rows) {
        #[unroll]
        for y in 0..comptime!(PRODUCT.columns) {
            let at = (a + comptime!(x * SIDE)) * STRIDE + b + comptime!(y * SIDE);
            board[at] = own[comptime!(x * PRODUCT.columns + y)];
        }
    }
}

#[cube]
fn row_sum(board: &Shared<[f32]>, row: usize) -> f32 {
    let mut sum = 0.0f32.runtime();
    for key in 0..KEYS {
        sum += board[row * STRIDE + key];
    }
    sum
}
