//! Gradients of every chunk's queries, keys and log decays.
//!
//! ```text
//! dQ = scale (dO S^T from + P K)     P_ij = sum_v do_iv v_jv  for i >= j, each term times the decay from j to i
//! dK = V H^T to + scale P^T Q
//! dg_t = rowsum(H * S_after) + sum_{s >= t} (q_s * dq'_s - k_s * dk'_s)
//! ```
//!
//! with S and H: the state before the chunk and the gradient of the state after it, S_after: the state after it, and
//! dq', dk' without the products of steps with themselves, which would cancel in dg and cost it its precision under
//! strong decay. Sums of dg run over a chunk at most: each chunk starts anew from its states.
//!
//! A cube has one chunk of one head and 64 key channels. In one pass over the value channels, in slabs of 16, it makes
//! the three products over them, `P`, `dO S^T` and `V H^T`, and `rowsum(H * S_after)`, reading `2 CV` inputs and three
//! state blocks `64 V`. The rest has the unit's own 16 steps of a channel in registers (see [`columns`](super::columns)).

use cubecl::prelude::*;

use super::{
    blocks::{ALIGNMENT, BLOCK, Blocks, Grid, Layout, Planes, UNITS, operand_stride},
    columns::{
        CHANNEL_STRIDE, CHANNELS, Column, WholeDecays, factors, times_from_start, times_to_end, write_operand,
    },
    decay::{CHUNK, Decays, GRADIENT_FLOOR, SUB_CHUNKS, decay_stride},
    tiles::{Tile, TileShape, load},
};
use crate::scan::DecayKind;

/// Value channels of a slab.
const SLAB: usize = BLOCK;

/// Distance between the rows of the operands: 64 steps or 64 channels, and the pairs' 64 columns.
const STRIDE: usize = operand_stride(SUB_CHUNKS);

/// Distance between the rows of the float32 stage. Without padding, or it would not fit into 32 KiB: matrix units write
/// it with conflicts in the banks, but units read it along rows.
const FLOAT_STRIDE: usize = CHANNELS;

/// What is known when the kernel is compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct KeysPlan {
    pub decay: DecayKind,
    pub planes: Option<Planes>,
}

impl KeysPlan {
    const fn grid(self) -> Grid {
        Grid::new(SUB_CHUNKS, SUB_CHUNKS, self.planes)
    }

    /// Numbers of the float32 stage beside the operands.
    const fn stage_len(self) -> usize {
        if self.planes.is_none() { 1 } else { CHUNK * FLOAT_STRIDE }
    }

    /// The blocks that hold pairs.
    fn triangle(self) -> u32 {
        self.grid().active(|row, col| row >= col)
    }

    /// Bytes of shared memory, with operands of `operand_bytes` each.
    pub const fn shared_bytes(self, operand_bytes: usize) -> usize {
        let operands = (CHUNK + SLAB) * STRIDE;
        let decays = 3 * CHUNK * decay_stride(1) + SUB_CHUNKS;
        let floats = self.stage_len() + WholeDecays::LEN + 2 * UNITS + CHUNK + decays;
        operands * operand_bytes + floats * 4
    }
}

/// `states`, `gradients`: of states by slot, see [`state`](super::state); the gradients hold those after the chunks.
/// The gradient of the log decay is written per key channel, or per head as a sum over the cube's 64 key channels,
/// `[blocks of key channels, tokens, heads]`.
///
/// Cubes: chunks, heads, blocks of key channels.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn keys_kernel<F: Float, G: Float, D: Float, S: Float, E: Float, NV: Size, NS: Size>(
    q: &[F],
    k: &[F],
    v: &[Vector<F, NV>],
    output_gradient: &[Vector<F, NV>],
    log_decay: &[G],
    states: &[Vector<S, NS>],
    gradients: &[Vector<S, NS>],
    chunks: &[u32],
    dq: &mut [F],
    dk: &mut [F],
    dg: &mut [D],
    scale: f32,
    tokens: usize,
    heads: usize,
    key_dim: usize,
    value_dim: usize,
    #[comptime] plan: KeysPlan,
    #[define(F)] _input: ElemType,
    #[define(G)] _decay: ElemType,
    #[define(D)] _decay_gradient: ElemType,
    #[define(S)] _state: ElemType,
    #[define(E)] _operand: ElemType,
) {
    let grid = comptime!(plan.grid());
    let chunk = CUBE_POS_X as usize;
    let head = CUBE_POS_Y as usize;
    let first_key = CUBE_POS_Z as usize * CHANNELS;
    let token = chunks[chunk * 3] as usize;
    let length = chunks[chunk * 3 + 1] as usize;
    let slot = chunks[chunk * 3 + 2] as usize;
    let first_row = token * heads + head;

    // Four slabs of operands, then the pairs `[row, col]`.
    let mut slabs = Shared::<[E]>::new_aligned_slice(comptime!(CHUNK * STRIDE), ALIGNMENT);
    let mut operand = Shared::<[E]>::new_aligned_slice(comptime!(SLAB * STRIDE), ALIGNMENT);
    let mut stage = Stage::<E> {
        operands: slabs.clone(),
        floats: Shared::<[f32]>::new_aligned_slice(comptime!(plan.stage_len()), ALIGNMENT),
        grid,
    };
    let mut wholes = WholeDecays::new();
    let mut sums = Shared::<[f32]>::new_slice(UNITS);
    let mut later_sums = Shared::<[f32]>::new_slice(UNITS);
    let mut own_pairs = Shared::<[f32]>::new_slice(CHUNK);

    let column = Column::of_unit(token, length, head, heads, first_key, key_dim, plan.decay);
    let log_decays = column.load_log_decay::<G>(log_decay, plan.decay);
    let own_factors = factors(&log_decays);
    wholes.share(&log_decays);

    // --- Products over the value channels ---
    let mut pairs = Blocks::zeros(grid);
    let mut from_state = Blocks::zeros(grid);
    let mut to_state = Blocks::zeros(grid);
    let mut total = 0.0f32;
    let steps = comptime!(TileShape::transposed(CHUNK, SLAB, STRIDE));
    let slab_layout = comptime!(Layout::DepthMajor(STRIDE));
    for slab in 0..value_dim.div_ceil(SLAB) {
        let first_value = slab * SLAB;
        let values = Tile {
            start: first_row * value_dim + first_value,
            row_stride: heads * value_dim,
            rows: length,
            cols: value_dim - first_value,
        };
        let state = Tile {
            start: ((slot * heads + head) * key_dim + first_key) * value_dim + first_value,
            row_stride: value_dim,
            rows: key_dim - first_key,
            cols: value_dim - first_value,
        };
        let after = Tile {
            start: state.start + heads * key_dim * value_dim,
            row_stride: value_dim,
            rows: key_dim - first_key,
            cols: value_dim - first_value,
        };
        sync_cube();
        load::<F, NV, E>(output_gradient, &values, &mut slabs, 0usize, steps);
        load::<F, NV, E>(v, &values, &mut slabs, comptime!(SLAB * STRIDE), steps);
        load::<S, NS, E>(states, &state, &mut slabs, comptime!(2 * SLAB * STRIDE), steps);
        load::<S, NS, E>(gradients, &after, &mut slabs, comptime!(3 * SLAB * STRIDE), steps);
        if comptime!(plan.decay != DecayKind::None) {
            total += dot::<S, NS>(states, gradients, &after);
        }
        sync_cube();
        pairs.product::<E>(
            &slabs,
            0usize,
            slab_layout,
            &slabs,
            comptime!(SLAB * STRIDE),
            slab_layout,
            SLAB,
            comptime!(plan.triangle()),
        );
        from_state.product::<E>(
            &slabs,
            0usize,
            slab_layout,
            &slabs,
            comptime!(2 * SLAB * STRIDE),
            slab_layout,
            SLAB,
            comptime!(grid.all()),
        );
        to_state.product::<E>(
            &slabs,
            comptime!(SLAB * STRIDE),
            slab_layout,
            &slabs,
            comptime!(3 * SLAB * STRIDE),
            slab_layout,
            SLAB,
            comptime!(grid.all()),
        );
    }

    let mut gradient_q = stage.gather(&from_state, &column);
    let mut gradient_k = stage.gather(&to_state, &column);
    if comptime!(plan.decay != DecayKind::None) {
        gradient_q = times_from_start(&gradient_q, &own_factors);
        gradient_k = times_to_end(&gradient_k, &own_factors);
        let before = wholes.over(column.channel, 0usize, column.sub_chunk);
        let after = wholes.over(column.channel, column.sub_chunk + 1, SUB_CHUNKS);
        #[unroll]
        for row in 0..BLOCK {
            gradient_q[row] *= before;
            gradient_k[row] *= after;
        }
    }

    // --- Pairs of steps ---
    write_pairs::<G, E>(
        &pairs,
        log_decay,
        &mut stage,
        &mut slabs,
        &mut own_pairs,
        first_row,
        heads,
        length,
        plan,
    );
    let mut q_steps = column.load::<F>(q);
    let k_steps = column.load::<F>(k);
    #[unroll]
    for row in 0..BLOCK {
        q_steps[row] *= scale;
    }
    let mut sum_q = Blocks::zeros(grid);
    let mut sum_k = Blocks::zeros(grid);
    let by_col = comptime!(Layout::AxisMajor(STRIDE));
    let channels = comptime!(Layout::DepthMajor(CHANNEL_STRIDE));
    if comptime!(plan.decay == DecayKind::PerKey) {
        // Between sub-chunks: to the end of the earlier one, over those between, from the start of the later one.
        let keys = times_to_end(&k_steps, &own_factors);
        let queries = times_from_start(&q_steps, &own_factors);
        #[unroll]
        for row in 1..SUB_CHUNKS {
            for col in 0..row {
                if column.sub_chunk == col {
                    let between = wholes.over(column.channel, col + 1, row);
                    write_operand::<E>(&keys, between, column.channel, &mut operand, 0usize);
                }
                sync_cube();
                let active = comptime!(grid.active(|r, _| r == row));
                sum_q.product::<E>(&slabs, col * BLOCK, by_col, &operand, 0usize, channels, BLOCK, active);
                sync_cube();
            }
        }
        #[unroll]
        for col in 0..comptime!(SUB_CHUNKS - 1) {
            for row in comptime!(col + 1)..SUB_CHUNKS {
                if column.sub_chunk == row {
                    let between = wholes.over(column.channel, comptime!(col + 1), row);
                    write_operand::<E>(&queries, between, column.channel, &mut operand, 0usize);
                }
                sync_cube();
                let active = comptime!(grid.active(|r, _| r == col));
                sum_k.product::<E>(
                    &slabs,
                    row * comptime!(BLOCK * STRIDE),
                    slab_layout,
                    &operand,
                    0usize,
                    channels,
                    BLOCK,
                    active,
                );
                sync_cube();
            }
        }
        add_sub_chunk::<E>(
            &mut gradient_q,
            &mut gradient_k,
            &q_steps,
            &k_steps,
            &own_factors,
            &slabs,
            &column,
        );
    } else {
        // Decays are in the pairs already, and zeros where there are none: one loop over all blocks.
        for part in 0..SUB_CHUNKS {
            if column.sub_chunk == part {
                write_operand::<E>(&k_steps, 1.0f32, column.channel, &mut operand, 0usize);
            }
            sync_cube();
            let all = comptime!(grid.all());
            sum_q.product::<E>(&slabs, part * BLOCK, by_col, &operand, 0usize, channels, BLOCK, all);
            sync_cube();
            if column.sub_chunk == part {
                write_operand::<E>(&q_steps, 1.0f32, column.channel, &mut operand, 0usize);
            }
            sync_cube();
            sum_k.product::<E>(
                &slabs,
                part * comptime!(BLOCK * STRIDE),
                slab_layout,
                &operand,
                0usize,
                channels,
                BLOCK,
                all,
            );
            sync_cube();
        }
    }
    let mut part_q = stage.gather(&sum_q, &column);
    let mut part_k = stage.gather(&sum_k, &column);
    if comptime!(plan.decay == DecayKind::PerKey) {
        part_q = times_from_start(&part_q, &own_factors);
        part_k = times_to_end(&part_k, &own_factors);
    }
    #[unroll]
    for row in 0..BLOCK {
        gradient_q[row] += part_q[row];
        gradient_k[row] += part_k[row];
    }

    // --- The log decay's gradient, then a step's product with itself ---
    if comptime!(plan.decay != DecayKind::None) {
        sums[UNIT_POS as usize] = total;
        let mut terms = Array::<f32>::new(BLOCK);
        #[unroll]
        for row in 0..BLOCK {
            terms[row] = q_steps[row] * gradient_q[row] - k_steps[row] * gradient_k[row];
        }
        reverse_sums(&mut terms);
        later_sums[UNIT_POS as usize] = terms[0];
        sync_cube();
        let mut after = 0.0f32;
        #[unroll]
        for part in 0..comptime!(UNITS / CHANNELS) {
            after += sums[column.channel * comptime!(UNITS / CHANNELS) + part];
        }
        for sub_chunk in column.sub_chunk + 1..SUB_CHUNKS {
            after += later_sums[sub_chunk * CHANNELS + column.channel];
        }
        #[unroll]
        for row in 0..BLOCK {
            terms[row] = select(log_decays[row] < GRADIENT_FLOOR, 0.0f32, terms[row] + after);
        }
        if comptime!(plan.decay == DecayKind::PerKey) {
            column.store::<D>(&terms, dg);
        } else {
            let block = CUBE_POS_Z as usize;
            sync_cube();
            let start = (block * tokens + token) * heads + head;
            store_head_sums::<D, E>(&terms, &mut stage, dg, start, heads, length, &column);
        }
    }
    #[unroll]
    for row in 0..BLOCK {
        let own = own_pairs[column.sub_chunk * BLOCK + row];
        gradient_q[row] = scale * (gradient_q[row] + own * k_steps[row]);
        gradient_k[row] += own * q_steps[row];
    }
    column.store::<F>(&gradient_q, dq);
    column.store::<F>(&gradient_k, dk);
}

/// Shared memory for 64 rows of 64 accumulators: where units make the products, that of the operands, float32 too.
#[derive(CubeType)]
struct Stage<E: Float> {
    operands: Shared<[E]>,
    floats: Shared<[f32]>,
    #[cube(comptime)]
    grid: Grid,
}

#[cube]
impl<E: Float> Stage<E> {
    /// Writes accumulators. The caller synchronises the cube before and after.
    fn spill(&mut self, blocks: &Blocks) {
        if comptime!(self.grid.planes.is_none()) {
            blocks.spill_to::<E>(&mut self.operands, STRIDE, 0usize, SUB_CHUNKS);
        } else {
            blocks.spill_to::<f32>(&mut self.floats, FLOAT_STRIDE, 0usize, SUB_CHUNKS);
        }
    }

    fn get(&self, row: usize, col: usize) -> f32 {
        if comptime!(self.grid.planes.is_none()) {
            f32::cast_from(self.operands[row * STRIDE + col])
        } else {
            self.floats[row * FLOAT_STRIDE + col]
        }
    }

    fn set(&mut self, row: usize, col: usize, value: f32) {
        if comptime!(self.grid.planes.is_none()) {
            self.operands[row * STRIDE + col] = E::cast_from(value);
        } else {
            self.floats[row * FLOAT_STRIDE + col] = value;
        }
    }

    /// The unit's steps of its channel of accumulators `[steps, channels]`. Synchronises the cube before it writes; the
    /// caller does before the next writing.
    fn gather(&mut self, blocks: &Blocks, column: &Column) -> Array<f32> {
        let mut result = Array::<f32>::new(BLOCK);
        sync_cube();
        self.spill(blocks);
        sync_cube();
        #[unroll]
        for row in 0..BLOCK {
            result[row] = self.get(column.sub_chunk * BLOCK + row, column.channel);
        }
        result
    }
}

/// The unit's part of the sums over value channels of states times gradients: four of a slab's, for channel `unit / 4`.
#[cube]
fn dot<S: Float, N: Size>(states: &[Vector<S, N>], gradients: &[Vector<S, N>], tile: &Tile) -> f32 {
    let width = N::value();
    let row = UNIT_POS as usize / comptime!(UNITS / CHANNELS);
    let first = UNIT_POS as usize % comptime!(UNITS / CHANNELS) * comptime!(SLAB * CHANNELS / UNITS);
    let mut sum = 0.0f32;
    #[unroll]
    for index in 0..comptime!((SLAB * CHANNELS / UNITS) / width) {
        let col = first + comptime!(index * width);
        let inside = row < tile.rows && col < tile.cols;
        let place = select(inside, (tile.start + row * tile.row_stride + col) / width, 0usize);
        let state = states[place];
        let gradient = gradients[place];
        #[unroll]
        for lane in 0..width {
            let product = f32::cast_from(state.extract(lane)) * f32::cast_from(gradient.extract(lane));
            sum += select(inside, product, 0.0f32);
        }
    }
    sum
}

/// Writes the pairs of different steps to `target` `[row, col]` and those of a step with itself to `own`. Decays per
/// head are multiplied in.
#[cube]
fn write_pairs<G: Float, E: Float>(
    pairs: &Blocks,
    log_decay: &[G],
    stage: &mut Stage<E>,
    target: &mut Shared<[E]>,
    own: &mut Shared<[f32]>,
    first_row: usize,
    heads: usize,
    length: usize,
    #[comptime] plan: KeysPlan,
) {
    let mut decays = Decays::new(1usize, 0usize);
    if comptime!(plan.decay == DecayKind::PerHead) {
        let step = UNIT_POS as usize;
        if step < CHUNK {
            let place = select(step < length, first_row + step * heads, 0usize);
            decays.step[step] = select(step < length, f32::cast_from(log_decay[place]), 0.0f32);
        }
        sync_cube();
        decays.compute();
    }
    sync_cube();
    stage.spill(pairs);
    sync_cube();
    for round in 0..comptime!(CHUNK * CHUNK / UNITS) {
        let place = UNIT_POS as usize + round * UNITS;
        let row = place / CHUNK;
        let col = place % CHUNK;
        let mut pair = stage.get(row, col);
        if row == col {
            own[row] = pair;
        }
        if comptime!(plan.decay == DecayKind::PerHead) {
            pair *= decays.between(row, col, 0usize);
        }
        // Where units make the products, this is the place it was read from.
        target[row * STRIDE + col] = E::cast_from(select(row > col, pair, 0.0f32));
    }
    sync_cube();
}

/// The pairs within the unit's sub-chunk: both gradients of its channel, walking down from each step.
#[cube]
fn add_sub_chunk<E: Float>(
    gradient_q: &mut Array<f32>,
    gradient_k: &mut Array<f32>,
    q: &Array<f32>,
    k: &Array<f32>,
    factors: &Array<f32>,
    pairs: &Shared<[E]>,
    column: &Column,
) {
    let at = column.sub_chunk * comptime!(BLOCK * STRIDE + BLOCK);
    #[unroll]
    for col in 0..comptime!(BLOCK - 1) {
        let mut weight = 1.0f32;
        let mut sum = 0.0f32;
        #[unroll]
        for row in comptime!(col + 1)..BLOCK {
            weight *= factors[row];
            let pair = weight * f32::cast_from(pairs[at + comptime!(row * STRIDE + col)]);
            gradient_q[row] += pair * k[col];
            sum += pair * q[row];
        }
        gradient_k[col] += sum;
    }
}

/// Each step's sum over itself and the later ones.
#[cube]
fn reverse_sums(values: &mut Array<f32>) {
    let mut sum = 0.0f32;
    #[unroll]
    for back in 0..BLOCK {
        let row = comptime!(BLOCK - 1 - back);
        sum += values[row];
        values[row] = sum;
    }
}

/// Writes the sums over the cube's channels.
#[cube]
fn store_head_sums<D: Float, E: Float>(
    terms: &Array<f32>,
    stage: &mut Stage<E>,
    target: &mut [D],
    start: usize,
    heads: usize,
    length: usize,
    column: &Column,
) {
    #[unroll]
    for row in 0..BLOCK {
        stage.set(column.sub_chunk * BLOCK + row, column.channel, terms[row]);
    }
    sync_cube();
    let step = UNIT_POS as usize;
    if step < length {
        let mut sum = 0.0f32;
        for channel in 0..CHANNELS {
            sum += stage.get(step, channel);
        }
        target[start + step * heads] = D::cast_from(sum);
    }
}
