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

use cubecl::{ir::ElemType, prelude::*};

use super::super::{
    blocks::{ALIGNMENT, BLOCK, Blocks, Planes, UNITS},
    decay::{CHUNK, GRADIENT_FLOOR, SUB_CHUNKS, bounded, factor},
};
use super::place::{Sizes, place_of_cube, state_view};
use super::tiles::{DEPTH, Operand, STEP_BLOCKS, add_product, chunk_grid, fill, own_elements, stage_len};
use crate::scan::DecayKind;

/// Blocks of keys of a cube, and keys.
const KEY_BLOCKS: usize = 2;
pub(super) const KEYS: usize = KEY_BLOCKS * BLOCK;

/// Values by steps, and by keys.
const ROWS: Operand = Operand::by_columns(STEP_BLOCKS);
const STATE: Operand = Operand::by_columns(KEY_BLOCKS);
/// Elements of a matrix over steps and keys that a unit holds: rows `unit / 16 + 16 m`, columns `unit % 16 + 16 n`.
const OWN: usize = SUB_CHUNKS * KEY_BLOCKS;
/// Distance between the steps of such a matrix in shared memory: odd, for its banks.
const STRIDE: usize = KEYS + 1;
/// Units that add up each key's sum over values.
const PARTS: usize = UNITS / KEYS;

/// Bytes of shared memory, with operands of `operand_bytes` each.
pub(super) const fn shared_bytes(planes: Option<Planes>, operand_bytes: usize) -> usize {
    (3 * ROWS.len() + 2 * STATE.len()) * operand_bytes + (stage_len(planes) + CHUNK * STRIDE + UNITS) * 4
}

/// A cube a chunk, head and block of keys. The gradients of `beta` and of decays per head are
/// written in `parts` to be added up.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn keys_kernel<F: Float, G: Float, B: Float, E: Float>(
    q: &[F],
    k: &[F],
    log_decay: &[G],
    beta: &[B],
    from_start: &[f32],
    to_end: &[f32],
    output_gradient: &[F],
    writes: &[f32],
    errors: &[f32],
    states: &[f32],
    state_gradients: &[f32],
    attention_gradient: &[f32],
    keys_gradient: &[f32],
    chunks: &[u32],
    q_gradient: &mut [F],
    k_gradient: &mut [F],
    decay_gradient: &mut [f32],
    beta_gradient: &mut [f32],
    count: usize,
    scale: f32,
    parts: usize,
    sizes: &Sizes,
    #[define(F)] _input: ElemType,
    #[define(G)] _decay: ElemType,
    #[define(B)] _strength: ElemType,
    #[define(E)] _operand: ElemType,
) {
    if CUBE_POS >= count {
        terminate!();
    }
    let decaying = comptime!(sizes.decay != DecayKind::None);
    let grid = comptime!(chunk_grid(KEY_BLOCKS, sizes.planes));
    let blocks = sizes.key_dim.div_ceil(KEYS);
    let block = CUBE_POS % blocks;
    let place = place_of_cube(chunks, sizes, blocks);
    let first = block * KEYS;
    let values = place.values(sizes).transpose();
    let keys = place.keys(sizes).from(0usize, first);
    let decays = place.decays(sizes).from(0usize, first);
    let strengths = place.numbers(sizes, 1usize.runtime());
    let pairs = place.pairs();
    let state = state_view(sizes, place.state).from(first, 0usize);
    let after = state_view(sizes, place.state + sizes.heads).from(first, 0usize);
    let unit = UNIT_POS as usize;
    let (a, b) = (unit / BLOCK, unit % BLOCK);

    let mut rows = Shared::<[E]>::new_aligned_slice(comptime!(ROWS.len()), ALIGNMENT);
    let mut error_rows = Shared::<[E]>::new_aligned_slice(comptime!(ROWS.len()), ALIGNMENT);
    let mut write_rows = Shared::<[E]>::new_aligned_slice(comptime!(ROWS.len()), ALIGNMENT);
    let mut state_rows = Shared::<[E]>::new_aligned_slice(comptime!(STATE.len()), ALIGNMENT);
    let mut after_rows = Shared::<[E]>::new_aligned_slice(comptime!(STATE.len()), ALIGNMENT);
    let mut stage = Shared::<[f32]>::new_aligned_slice(comptime!(stage_len(sizes.planes)), ALIGNMENT);
    let mut board = Shared::<[f32]>::new_slice(comptime!(CHUNK * STRIDE));
    let mut totals = Shared::<[f32]>::new_slice(UNITS);

    // What the states contribute.
    let mut query_sum = Blocks::zeros(grid);
    let mut held_sum = Blocks::zeros(grid);
    let mut column_sum = Blocks::zeros(grid);
    for slice in 0..sizes.value_dim.div_ceil(DEPTH) {
        let channel = slice * DEPTH;
        sync_cube();
        let view = values.from(channel, 0usize);
        fill::<F, E>(&mut rows, output_gradient, &view, ROWS);
        fill::<f32, E>(&mut error_rows, errors, &view, ROWS);
        fill::<f32, E>(&mut write_rows, writes, &view, ROWS);
        fill::<f32, E>(&mut state_rows, states, &state.transpose().from(channel, 0usize), STATE);
        fill::<f32, E>(&mut after_rows, state_gradients, &after.transpose().from(channel, 0usize), STATE);
        sync_cube();
        add_product::<E>(&mut query_sum, &rows, ROWS, &state_rows, STATE, grid);
        add_product::<E>(&mut held_sum, &error_rows, ROWS, &state_rows, STATE, grid);
        add_product::<E>(&mut column_sum, &write_rows, ROWS, &after_rows, STATE, grid);
    }
    let mut query = own_matrix(&query_sum, &mut stage, sizes.planes);
    let mut held = own_matrix(&held_sum, &mut stage, sizes.planes);
    let column = own_matrix(&column_sum, &mut stage, sizes.planes);
    if decaying {
        let (key, part) = (unit / PARTS, unit % PARTS);
        let mut sum = 0.0f32.runtime();
        for step in 0..sizes.value_dim.div_ceil(PARTS) {
            let value = step * PARTS + part;
            sum += after.read(states, key, value) * after.read(state_gradients, key, value);
        }
        totals[unit] = sum;
        // The decays of all steps.
        for round in 0..comptime!(CHUNK * KEYS / UNITS) {
            let index = round * UNITS + unit;
            let (row, key) = (index / KEYS, index % KEYS);
            // Where there is no step, nothing decays.
            board[row * STRIDE + key] = factor(bounded(decays.read(log_decay, row, key)));
        }
        sync_cube();
    }

    // Within the chunk, without the products of steps with themselves, which would cancel in what the log decays sum
    // up and cost it its precision under strong decay. Rows: from the first step to each.
    let mut near_query = Array::<f32>::new(OWN);
    let mut near_row = Array::<f32>::new(OWN);
    #[unroll]
    for band in 0..SUB_CHUNKS {
        for within in 0..BLOCK {
            let step = within + comptime!(band * BLOCK);
            #[unroll]
            for y in 0..KEY_BLOCKS {
                let key = b + y * BLOCK;
                let own = keys.read(k, step, key);
                let mut decay = 1.0f32.runtime();
                if decaying {
                    decay = board[step * STRIDE + key];
                }
                #[unroll]
                for x in band..SUB_CHUNKS {
                    let row = a + comptime!(x * BLOCK);
                    let at = comptime!(x * KEY_BLOCKS + y);
                    let weight = pairs.at(row, step);
                    if decaying {
                        // Nothing decays after the row's own step.
                        let passed = select(step <= row, decay, 1.0f32);
                        near_query[at] *= passed;
                        near_row[at] *= passed;
                    }
                    let mut attention = attention_gradient[weight];
                    if comptime!(x == band) {
                        attention = select(step == row, 0.0f32, attention);
                    }
                    near_query[at] += attention * own;
                    near_row[at] += keys_gradient[weight] * own;
                }
            }
        }
    }
    // Columns: from the last step back to each.
    let mut near_column = Array::<f32>::new(OWN);
    #[unroll]
    for band in 0..SUB_CHUNKS {
        for within in 0..BLOCK {
            let step = comptime!((SUB_CHUNKS - band) * BLOCK - 1) - within;
            #[unroll]
            for y in 0..KEY_BLOCKS {
                let key = b + y * BLOCK;
                let own_key = keys.read(k, step, key);
                let own_query = scale * keys.read(q, step, key);
                let mut decay = 1.0f32.runtime();
                if decaying {
                    decay = board[step * STRIDE + key];
                }
                #[unroll]
                for x in 0..comptime!(SUB_CHUNKS - band) {
                    let row = a + comptime!(x * BLOCK);
                    let at = comptime!(x * KEY_BLOCKS + y);
                    let weight = pairs.at(step, row);
                    let mut attention = attention_gradient[weight];
                    if comptime!(x + band + 1 == SUB_CHUNKS) {
                        attention = select(step == row, 0.0f32, attention);
                    }
                    near_column[at] += attention * own_query + keys_gradient[weight] * own_key;
                    if decaying {
                        near_column[at] *= select(step > row, decay, 1.0f32);
                    }
                }
            }
        }
    }

    // Together; `held` becomes k z, `query` what the log decays sum up.
    #[unroll]
    for x in 0..SUB_CHUNKS {
        let row = a + comptime!(x * BLOCK);
        let strength = strengths.read(beta, row, 0usize);
        let itself = attention_gradient[pairs.at(row, row)];
        #[unroll]
        for y in 0..KEY_BLOCKS {
            let key = b + comptime!(y * BLOCK);
            let at = comptime!(x * KEY_BLOCKS + y);
            let mut change = 0.0f32.runtime();
            let mut kz = 0.0f32.runtime();
            if keys.has(row, key) {
                let mut start = 1.0f32.runtime();
                let mut end = 1.0f32.runtime();
                if decaying {
                    start = from_start[decays.at(row, key)];
                    end = to_end[decays.at(row, key)];
                }
                let element = keys.at(row, key);
                let own_key = f32::cast_from(k[element]);
                let own_query = scale * f32::cast_from(q[element]);
                let dq = query[at] * start + near_query[at];
                let z = held[at] * start;
                let r = near_row[at] - strength * z;
                let c = column[at] * end + near_column[at];
                q_gradient[element] = F::cast_from(scale * (dq + itself * own_key));
                k_gradient[element] = F::cast_from(r + c + itself * own_query);
                change = own_query * dq + own_key * (r - c);
                kz = own_key * z;
            }
            query[at] = change;
            held[at] = kz;
        }
    }
    sync_cube();
    show(&mut board, &held);
    sync_cube();
    if unit < place.steps {
        let sum = row_sum(&board, unit);
        beta_gradient[strengths.at(unit, 0usize) * parts + block] = -sum;
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
                let at = strengths.at(unit, 0usize);
                decay_gradient[at * blocks + block] = masked::<G>(sum, log_decay[at]);
            }
        } else {
            for step in 0..comptime!(CHUNK * KEYS / UNITS) {
                let index = step * UNITS + unit;
                let (row, key) = (index / KEYS, index % KEYS);
                if keys.has(row, key) {
                    let at = keys.at(row, key);
                    decay_gradient[at] = masked::<G>(board[row * STRIDE + key], log_decay[at]);
                }
            }
        }
    }
}

/// A gradient of a log decay.
#[cube]
fn masked<G: Float>(gradient: f32, log_decay: G) -> f32 {
    select(f32::cast_from(log_decay) >= GRADIENT_FLOOR, gradient, 0.0f32)
}

/// All elements that a unit holds.
#[cube]
fn own_matrix(blocks: &Blocks, stage: &mut Shared<[f32]>, #[comptime] planes: Option<Planes>) -> Array<f32> {
    let mut all = Array::<f32>::new(OWN);
    #[unroll]
    for y in 0..KEY_BLOCKS {
        let own = own_elements(blocks, stage, y, comptime!(chunk_grid(KEY_BLOCKS, planes)));
        #[unroll]
        for x in 0..SUB_CHUNKS {
            all[comptime!(x * KEY_BLOCKS + y)] = own[x];
        }
    }
    all
}

/// Puts what every unit holds where all can read it.
#[cube]
fn show(board: &mut Shared<[f32]>, own: &Array<f32>) {
    let (a, b) = (UNIT_POS as usize / BLOCK, UNIT_POS as usize % BLOCK);
    #[unroll]
    for x in 0..SUB_CHUNKS {
        #[unroll]
        for y in 0..KEY_BLOCKS {
            let at = (a + comptime!(x * BLOCK)) * STRIDE + b + comptime!(y * BLOCK);
            board[at] = own[comptime!(x * KEY_BLOCKS + y)];
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
