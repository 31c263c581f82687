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
use super::place::{Place, Sizes, state_view};
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
    segment: usize,
    /// First token, and one past the last.
    token: usize,
    end: usize,
    chunks: usize,
    /// Of the state before the first chunk.
    slot: usize,
    head: usize,
    /// First column.
    column: usize,
}

/// `segments`: three numbers each: first token, one past the last, slot of the state before its first chunk.
#[cube]
fn part_of_cube(segments: &[u32], sizes: &Sizes, #[comptime] pass: Pass) -> Part {
    let blocks = sizes.value_dim.div_ceil(pass.columns());
    let segment = CUBE_POS / (blocks * sizes.heads);
    let (token, end) = (segments[segment * 3] as usize, segments[segment * 3 + 1] as usize);
    Part {
        segment,
        token,
        end,
        chunks: (end - token).div_ceil(CHUNK),
        slot: segments[segment * 3 + 2] as usize,
        head: CUBE_POS / blocks % sizes.heads,
        column: CUBE_POS % blocks * comptime!(pass.columns()),
    }
}

#[cube]
impl Part {
    /// The sequence's state among those given and returned.
    fn outer(&self, sizes: &Sizes) -> View {
        state_view(sizes, self.segment * sizes.heads + self.head).from(0usize, self.column)
    }

    /// The state before the sequence's chunk `index`, or after the last.
    fn state(&self, sizes: &Sizes, index: usize) -> View {
        state_view(sizes, (self.slot + index) * sizes.heads + self.head).from(0usize, self.column)
    }

    /// The sequence's chunk `index`. Computed, not looked up: software Vulkan goes once more through the body of a
    /// loop that has ended, with all units switched off, and does not spare what they would read together.
    fn place(&self, sizes: &Sizes, index: usize) -> Place {
        let token = self.token + index * CHUNK;
        Place {
            token,
            steps: (self.end - token).min(CHUNK),
            state: (self.slot + index) * sizes.heads + self.head,
            // Every sequence before this one has one state more than chunks.
            chunk: (self.slot - self.segment + index) * sizes.heads + self.head,
            head: self.head,
        }
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
    let outer = part.outer(sizes);
    load(&mut state, initial, &outer, pass);

    for index in 0..part.chunks {
        let place = part.place(sizes, index);
        let keys = place.keys(sizes);
        let decays = place.decays(sizes);
        let values = place.values(sizes).from(0usize, part.column);
        sync_cube();
        save(&state, states, &part.state(sizes, index), pass);

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
    save(&state, states, &part.state(sizes, part.chunks), pass);
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
    let outer = part.outer(sizes);
    load(&mut state, last_gradient, &outer, pass);

    for index in 0..part.chunks {
        let chunk = part.chunks - 1 - index;
        let place = part.place(sizes, chunk);
        let keys = place.keys(sizes);
        let decays = place.decays(sizes);
        let values = place.values(sizes).from(0usize, part.column);
        sync_cube();
        save(&state, state_gradients, &part.state(sizes, chunk + 1), pass);

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
    save(&state, state_gradients, &part.state(sizes, 0usize), pass);
    save(&state, initial_gradient, &outer, pass);
}
