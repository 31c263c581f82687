//! The passes over the chunks of a sequence, which hold the state, or its gradient, in shared memory.
//!
//! ```text
//! forward:    x = u - w S                     S' = diag(whole) S + k_end^T x
//! in reverse: x = scale A^T do + k_end D      D' = diag(whole) D + scale q_start^T do - w^T x
//! ```
//!
//! `x` is what the steps write, and in reverse its gradient; `D` is the gradient of the state. A cube holds some
//! columns of the state of a sequence and head: columns do not meet.

use cubecl::{ir::ElemType, prelude::*};

use super::super::{
    blocks::{ALIGNMENT, BLOCK, Blocks, Grid, Planes, UNITS},
    decay::{CHUNK, SUB_CHUNKS},
};
use super::place::{Place, Sizes, place, state_view};
use super::tiles::{
    DEPTH, Operand, STEP_BLOCKS, View, add_product, chunk_grid, fill, fill_times, own_elements, stage_len,
};
use crate::scan::DecayKind;

/// How a pass is tiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Pass {
    /// Whether it starts from a given state, not from zero.
    pub initial: bool,
    /// Blocks of 64 keys.
    pub key_blocks: usize,
    /// Blocks of 16 values of a cube.
    pub value_blocks: usize,
    pub planes: Option<Planes>,
}

/// `[DEPTH, CHUNK]`: keys by steps, and steps by keys.
const KEYS: Operand = Operand::by_columns(STEP_BLOCKS);
const STEPS: Operand = Operand::by_rows(STEP_BLOCKS);

impl Pass {
    /// Bytes of shared memory, with operands of `operand_bytes` each.
    pub const fn shared_bytes(self, operand_bytes: usize) -> usize {
        let rows = (self.key_blocks + 1) * CHUNK * self.columns();
        (rows + stage_len(self.planes)) * 4 + (KEYS.len() + self.right().len()) * operand_bytes
    }

    /// Columns of the state that a cube holds.
    pub const fn columns(self) -> usize {
        self.value_blocks * BLOCK
    }

    const fn grid(self) -> Grid {
        chunk_grid(self.value_blocks, self.planes)
    }

    const fn right(self) -> Operand {
        Operand::by_rows(self.value_blocks)
    }
}

/// The part of a sequence's states that a cube works on.
#[derive(CubeType, Clone, Copy)]
struct Part {
    first_chunk: usize,
    chunks: usize,
    /// The first of the sequence's states between its chunks.
    first_state: usize,
    /// The sequence's state among those given and returned.
    outer_state: usize,
    head: usize,
    /// First column.
    column: usize,
}

/// `segments`: three numbers each: first token, one past the last, slot of the state before its first chunk.
#[cube]
fn part_of_cube(segments: &[u32], sizes: &Sizes, #[comptime] pass: Pass) -> Part {
    let blocks = sizes.value_dim.div_ceil(pass.columns());
    let segment = CUBE_POS / (blocks * sizes.heads);
    let head = CUBE_POS / blocks % sizes.heads;
    let slot = segments[segment * 3 + 2] as usize;
    Part {
        // Every sequence before this one has one state more than chunks.
        first_chunk: slot - segment,
        chunks: (segments[segment * 3 + 1] as usize - segments[segment * 3] as usize).div_ceil(CHUNK),
        first_state: slot * sizes.heads + head,
        outer_state: segment * sizes.heads + head,
        head,
        column: CUBE_POS % blocks * comptime!(pass.columns()),
    }
}

/// The state that a pass starts from.
#[cube]
fn load(state: &mut Shared<[f32]>, initial: &[f32], view: &View, #[comptime] pass: Pass) {
    for round in 0..comptime!(pass.key_blocks * CHUNK * pass.columns() / UNITS) {
        let index = round * UNITS + UNIT_POS as usize;
        let (row, column) = (index / comptime!(pass.columns()), index % comptime!(pass.columns()));
        let mut value = 0.0f32.runtime();
        if comptime!(pass.initial) {
            value = view.read(initial, row, column);
        }
        state[index] = value;
    }
}

#[cube]
fn save(state: &Shared<[f32]>, to: &mut [f32], view: &View, #[comptime] pass: Pass) {
    for round in 0..comptime!(pass.key_blocks * CHUNK * pass.columns() / UNITS) {
        let index = round * UNITS + UNIT_POS as usize;
        let (row, column) = (index / comptime!(pass.columns()), index % comptime!(pass.columns()));
        if view.has(row, column) {
            to[view.at(row, column)] = state[index];
        }
    }
}

/// Rows `first..` of a matrix in shared memory as an operand.
#[cube]
fn copy<E: Float>(to: &mut Shared<[E]>, from: &Shared<[f32]>, first: usize, #[comptime] pass: Pass) {
    for round in 0..comptime!(DEPTH * pass.columns() / UNITS) {
        let index = round * UNITS + UNIT_POS as usize;
        let (row, column) = (index / comptime!(pass.columns()), index % comptime!(pass.columns()));
        to[row * comptime!(pass.right().stride()) + column] =
            E::cast_from(from[first * comptime!(pass.columns()) + index]);
    }
}

/// Adds `left state`, `left` a matrix over steps and keys, times `factors` where `scaled`.
#[cube]
fn add_read<F: Float, E: Float>(
    sum: &mut Blocks,
    left: &mut Shared<[E]>,
    right: &mut Shared<[E]>,
    matrix: &[F],
    view: &View,
    factors: &[f32],
    factors_view: &View,
    state: &Shared<[f32]>,
    #[comptime] scaled: bool,
    #[comptime] pass: Pass,
) {
    for slice in 0..view.columns.div_ceil(DEPTH) {
        let key = slice * DEPTH;
        sync_cube();
        let view = view.from(0usize, key).transpose();
        let factors_view = factors_view.from(0usize, key).transpose();
        fill_times::<F, f32, E>(left, matrix, &view, factors, &factors_view, scaled, KEYS);
        copy::<E>(right, state, key, pass);
        sync_cube();
        add_product::<E>(sum, &*left, KEYS, &*right, comptime!(pass.right()), comptime!(pass.grid()));
    }
}

/// Adds `left^T x` over the steps of a chunk, for a block of keys: `left` are the steps' keys, times `factors` where
/// `scaled`, `x` their rows in shared memory.
#[cube]
fn add_outer<F: Float, E: Float>(
    sum: &mut Blocks,
    left: &mut Shared<[E]>,
    right: &mut Shared<[E]>,
    matrix: &[F],
    view: &View,
    factors: &[f32],
    factors_view: &View,
    x: &Shared<[f32]>,
    #[comptime] scaled: bool,
    #[comptime] pass: Pass,
) {
    for slice in 0..comptime!(CHUNK / DEPTH) {
        let step = slice * DEPTH;
        sync_cube();
        let view = view.from(step, 0usize);
        let factors_view = factors_view.from(step, 0usize);
        fill_times::<F, f32, E>(left, matrix, &view, factors, &factors_view, scaled, STEPS);
        copy::<E>(right, x, step, pass);
        sync_cube();
        add_product::<E>(sum, &*left, STEPS, &*right, comptime!(pass.right()), comptime!(pass.grid()));
    }
}

/// `x = x + sign * sum`, in memory and in shared memory.
#[cube]
fn complete_rows(
    rows: &mut Shared<[f32]>,
    sum: &Blocks,
    stage: &mut Shared<[f32]>,
    x: &mut [f32],
    view: &View,
    sign: f32,
    #[comptime] pass: Pass,
) {
    #[unroll]
    for block in 0..comptime!(pass.value_blocks) {
        let own = own_elements(sum, stage, block, comptime!(pass.grid()));
        #[unroll]
        for m in 0..SUB_CHUNKS {
            let row = UNIT_POS as usize / BLOCK + comptime!(m * BLOCK);
            let column = UNIT_POS as usize % BLOCK + comptime!(block * BLOCK);
            let mut value = 0.0f32.runtime();
            if view.has(row, column) {
                value = x[view.at(row, column)] + sign * own[m];
                x[view.at(row, column)] = value;
            }
            rows[row * comptime!(pass.columns()) + column] = value;
        }
    }
}

/// `state = diag(whole) state + factor * sum` for the keys from `key` on.
#[cube]
fn update(
    state: &mut Shared<[f32]>,
    sum: &Blocks,
    stage: &mut Shared<[f32]>,
    from_start: &[f32],
    place: &Place,
    key: usize,
    factor: f32,
    sizes: &Sizes,
    #[comptime] decayed: bool,
    #[comptime] pass: Pass,
) {
    let decays = place.decays(sizes);
    #[unroll]
    for block in 0..comptime!(pass.value_blocks) {
        let own = own_elements(sum, stage, block, comptime!(pass.grid()));
        #[unroll]
        for m in 0..SUB_CHUNKS {
            let row = key + UNIT_POS as usize / BLOCK + comptime!(m * BLOCK);
            let column = UNIT_POS as usize % BLOCK + comptime!(block * BLOCK);
            let at = row * comptime!(pass.columns()) + column;
            let mut value = state[at];
            if comptime!(decayed && sizes.decay != DecayKind::None) {
                value *= decays.read(from_start, place.steps - 1, row);
            }
            state[at] = value + factor * own[m];
        }
    }
}

/// Replaces `u` in `writes` by what the steps write; writes the states before every chunk and after the last.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn forward_kernel<F: Float, E: Float>(
    k: &[F],
    w: &[f32],
    from_start: &[f32],
    to_end: &[f32],
    initial: &[f32],
    chunks: &[u32],
    segments: &[u32],
    writes: &mut [f32],
    states: &mut [f32],
    last: &mut [f32],
    count: usize,
    sizes: &Sizes,
    #[comptime] pass: Pass,
    #[define(F)] _input: ElemType,
    #[define(E)] _operand: ElemType,
) {
    if CUBE_POS >= count {
        terminate!();
    }
    let grid = comptime!(pass.grid());
    let decayed = comptime!(sizes.decay != DecayKind::None);
    let part = part_of_cube(segments, sizes, pass);
    let mut state = Shared::<[f32]>::new_slice(comptime!(pass.key_blocks * CHUNK * pass.columns()));
    let mut rows = Shared::<[f32]>::new_slice(comptime!(CHUNK * pass.columns()));
    let mut left = Shared::<[E]>::new_aligned_slice(comptime!(KEYS.len()), ALIGNMENT);
    let mut right = Shared::<[E]>::new_aligned_slice(comptime!(pass.right().len()), ALIGNMENT);
    let mut stage = Shared::<[f32]>::new_aligned_slice(comptime!(stage_len(pass.planes)), ALIGNMENT);
    let outer = state_view(sizes, part.outer_state).from(0usize, part.column);
    load(&mut state, initial, &outer, pass);

    for index in 0..part.chunks {
        let place = place(chunks, sizes, part.first_chunk + index, part.head);
        let keys = place.keys(sizes);
        let decays = place.decays(sizes);
        let values = place.values(sizes).from(0usize, part.column);
        sync_cube();
        save(&state, states, &state_view(sizes, place.state).from(0usize, part.column), pass);

        let mut read = Blocks::zeros(grid);
        add_read::<f32, E>(&mut read, &mut left, &mut right, w, &keys, to_end, &decays, &state, false, pass);
        complete_rows(&mut rows, &read, &mut stage, writes, &values, -1.0f32, pass);

        for block in 0..comptime!(pass.key_blocks) {
            let key = block * CHUNK;
            let (keys, decays) = (keys.from(0usize, key), decays.from(0usize, key));
            let mut written = Blocks::zeros(grid);
            add_outer::<F, E>(
                &mut written,
                &mut left,
                &mut right,
                k,
                &keys,
                to_end,
                &decays,
                &rows,
                decayed,
                pass,
            );
            update(&mut state, &written, &mut stage, from_start, &place, key, 1.0f32, sizes, true, pass);
        }
    }
    sync_cube();
    let end = state_view(sizes, part.first_state + part.chunks * sizes.heads);
    save(&state, states, &end.from(0usize, part.column), pass);
    save(&state, last, &outer, pass);
}

/// Replaces `scale A^T do` in `write_gradients` by the gradient of what the steps write; writes the gradients of the
/// states after every chunk and before the first.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn reverse_kernel<F: Float, E: Float>(
    q: &[F],
    k: &[F],
    w: &[f32],
    from_start: &[f32],
    to_end: &[f32],
    output_gradient: &[F],
    last_gradient: &[f32],
    chunks: &[u32],
    segments: &[u32],
    write_gradients: &mut [f32],
    state_gradients: &mut [f32],
    initial_gradient: &mut [f32],
    count: usize,
    scale: f32,
    sizes: &Sizes,
    #[comptime] pass: Pass,
    #[define(F)] _input: ElemType,
    #[define(E)] _operand: ElemType,
) {
    if CUBE_POS >= count {
        terminate!();
    }
    let grid = comptime!(pass.grid());
    let decayed = comptime!(sizes.decay != DecayKind::None);
    let part = part_of_cube(segments, sizes, pass);
    let mut state = Shared::<[f32]>::new_slice(comptime!(pass.key_blocks * CHUNK * pass.columns()));
    let mut rows = Shared::<[f32]>::new_slice(comptime!(CHUNK * pass.columns()));
    let mut left = Shared::<[E]>::new_aligned_slice(comptime!(KEYS.len()), ALIGNMENT);
    let mut right = Shared::<[E]>::new_aligned_slice(comptime!(pass.right().len()), ALIGNMENT);
    let mut stage = Shared::<[f32]>::new_aligned_slice(comptime!(stage_len(pass.planes)), ALIGNMENT);
    let outer = state_view(sizes, part.outer_state).from(0usize, part.column);
    load(&mut state, last_gradient, &outer, pass);

    for index in 0..part.chunks {
        let place = place(chunks, sizes, part.first_chunk + part.chunks - 1 - index, part.head);
        let keys = place.keys(sizes);
        let decays = place.decays(sizes);
        let values = place.values(sizes).from(0usize, part.column);
        sync_cube();
        let after = state_view(sizes, place.state + sizes.heads);
        save(&state, state_gradients, &after.from(0usize, part.column), pass);

        let mut read = Blocks::zeros(grid);
        add_read::<F, E>(&mut read, &mut left, &mut right, k, &keys, to_end, &decays, &state, decayed, pass);
        complete_rows(&mut rows, &read, &mut stage, write_gradients, &values, 1.0f32, pass);

        for block in 0..comptime!(pass.key_blocks) {
            let key = block * CHUNK;
            let (keys, decays) = (keys.from(0usize, key), decays.from(0usize, key));
            let mut erased = Blocks::zeros(grid);
            add_outer::<f32, E>(
                &mut erased,
                &mut left,
                &mut right,
                w,
                &keys,
                to_end,
                &decays,
                &rows,
                false,
                pass,
            );
            update(&mut state, &erased, &mut stage, from_start, &place, key, -1.0f32, sizes, true, pass);
            let mut asked = Blocks::zeros(grid);
            for slice in 0..comptime!(CHUNK / DEPTH) {
                let step = slice * DEPTH;
                sync_cube();
                let (queries, decays) = (keys.from(step, 0usize), decays.from(step, 0usize));
                fill_times::<F, f32, E>(&mut left, q, &queries, from_start, &decays, decayed, STEPS);
                let values = values.from(step, 0usize);
                fill::<F, E>(&mut right, output_gradient, &values, comptime!(pass.right()));
                sync_cube();
                add_product::<E>(&mut asked, &left, STEPS, &right, comptime!(pass.right()), grid);
            }
            update(&mut state, &asked, &mut stage, from_start, &place, key, scale, sizes, false, pass);
        }
    }
    sync_cube();
    let before = state_view(sizes, part.first_state);
    save(&state, state_gradients, &before.from(0usize, part.column), pass);
    save(&state, initial_gradient, &outer, pass);
}
