//! The states before every chunk, or in reverse the gradients of the states after every chunk.
//!
//! ```text
//! S <- diag(T) S + K^T V      K: the chunk's keys, each times the decay after it; T: the chunk's whole decay
//! H <- diag(T) H + Q^T dO     in reverse; Q: scale times the queries, each times the decay up to it
//! ```
//!
//! A cube has a block of 64 key channels and [`StatePlan::value_blocks`] blocks of value channels of one sequence and
//! head, keeps its state in registers and goes through the chunks one after the other: the state is written once a
//! chunk and never read back. Blocks of the state are independent; there are `heads * sequences * K/64 * V/64` cubes.

use cubecl::prelude::*;

use super::{
    blocks::{ALIGNMENT, BLOCK, Blocks, Grid, Layout, Planes, UNITS, operand_stride},
    columns::{
        CHANNEL_STRIDE, CHANNELS, Column, WholeDecays, factors, times_from_start, times_to_end, write_operand,
    },
    decay::{CHUNK, SUB_CHUNKS},
    tiles::{Tile, TileShape, load},
};
use crate::scan::DecayKind;

/// What is known when the kernel is compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct StatePlan {
    pub decay: DecayKind,
    /// Gradients of the states, from the last chunk to the first.
    pub reverse: bool,
    /// Whether `initial` holds anything.
    pub has_initial: bool,
    pub planes: Option<Planes>,
    /// Blocks of 16 value channels of a cube.
    pub value_blocks: usize,
    /// Columns of blocks that go through shared memory at a time.
    pub strip: usize,
    /// Sub-chunks whose products are made at a time.
    pub slab: usize,
}

impl StatePlan {
    const fn grid(self) -> Grid {
        Grid::new(CHANNELS / BLOCK, self.value_blocks, self.planes)
    }

    /// Bytes of shared memory, with operands of `operand_bytes` each.
    pub const fn shared_bytes(self, operand_bytes: usize) -> usize {
        let operands = self.slab * BLOCK * (CHANNEL_STRIDE + operand_stride(self.value_blocks));
        let floats = self.grid().stage_len(self.strip) + WholeDecays::LEN;
        operands * operand_bytes + floats * 4
    }
}

/// `segments`: three numbers each: first token, one past the last, slot of the state before its first chunk. The state
/// after chunk `c` of a segment has slot `first + c + 1`.
///
/// Cubes: segments, heads, blocks of key channels times blocks of value channels.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn state_kernel<F: Float, G: Float, S: Float, E: Float, NV: Size>(
    keys: &[F],
    values: &[Vector<F, NV>],
    log_decay: &[G],
    initial: &[f32],
    segments: &[u32],
    states: &mut [S],
    last: &mut [f32],
    scale: f32,
    heads: usize,
    key_dim: usize,
    value_dim: usize,
    #[comptime] plan: StatePlan,
    #[define(F)] _input: ElemType,
    #[define(G)] _decay: ElemType,
    #[define(S)] _state: ElemType,
    #[define(E)] _operand: ElemType,
) {
    let grid = comptime!(plan.grid());
    let width = comptime!(plan.value_blocks * BLOCK);
    let segment = CUBE_POS_X as usize;
    let head = CUBE_POS_Y as usize;
    let value_tiles = value_dim.div_ceil(width);
    let first_key = CUBE_POS_Z as usize / value_tiles * CHANNELS;
    let first_value = CUBE_POS_Z as usize % value_tiles * width;
    let start = segments[segment * 3] as usize;
    let end = segments[segment * 3 + 1] as usize;
    let first_slot = segments[segment * 3 + 2] as usize;
    let chunks = (end - start).div_ceil(CHUNK);
    let block = StateBlock { first_key, first_value, key_dim, value_dim };

    let mut lhs = Shared::<[E]>::new_aligned_slice(comptime!(plan.slab * BLOCK * CHANNEL_STRIDE), ALIGNMENT);
    let mut rhs = Shared::<[E]>::new_aligned_slice(
        comptime!(plan.slab * BLOCK * operand_stride(plan.value_blocks)),
        ALIGNMENT,
    );
    let mut stage = Shared::<[f32]>::new_aligned_slice(comptime!(grid.stage_len(plan.strip)), ALIGNMENT);
    let mut wholes = WholeDecays::new();

    let mut state = Blocks::zeros(grid);
    if comptime!(plan.has_initial) {
        #[unroll]
        for strip in 0..comptime!(plan.value_blocks / plan.strip) {
            block.read(initial, segment * heads + head, &mut stage, strip, plan);
            sync_cube();
            state.fill(&stage, comptime!(strip * plan.strip), plan.strip);
            sync_cube();
        }
    }

    for step in 0..chunks {
        let chunk = if comptime!(plan.reverse) { chunks - 1 - step } else { step };
        let token = start + chunk * CHUNK;
        let length = (end - token).min(CHUNK);
        let column = Column::of_unit(token, length, head, heads, first_key, key_dim, plan.decay);
        let own = column.load::<F>(keys);
        let logs = column.load_log_decay::<G>(log_decay, plan.decay);
        let own_factors = factors(&logs);
        let decayed = if comptime!(plan.reverse) {
            times_from_start(&own, &own_factors)
        } else {
            times_to_end(&own, &own_factors)
        };
        wholes.share(&logs);

        let slot = if comptime!(plan.reverse) { first_slot + chunk + 1 } else { first_slot + chunk };
        #[unroll]
        for strip in 0..comptime!(plan.value_blocks / plan.strip) {
            state.spill(&mut stage, comptime!(strip * plan.strip), plan.strip);
            sync_cube();
            block.write::<S>(&mut stage, states, slot * heads + head, strip, plan);
            if comptime!(plan.decay != DecayKind::None) {
                // Each unit scales what it has just read.
                scale_rows(&mut stage, &wholes, plan);
                sync_cube();
                state.fill(&stage, comptime!(strip * plan.strip), plan.strip);
            }
            sync_cube();
        }

        let mut rest = 1.0f32;
        if comptime!(plan.decay != DecayKind::None) {
            rest = if comptime!(plan.reverse) {
                wholes.over(column.channel, 0usize, column.sub_chunk)
            } else {
                wholes.over(column.channel, column.sub_chunk + 1, SUB_CHUNKS)
            };
        }
        if comptime!(plan.reverse) {
            rest *= scale;
        }
        #[unroll]
        for slab in 0..comptime!(SUB_CHUNKS / plan.slab) {
            if column.sub_chunk / comptime!(plan.slab) == slab {
                let row = column.sub_chunk % comptime!(plan.slab) * BLOCK;
                write_operand::<E>(&decayed, rest, column.channel, &mut lhs, row * CHANNEL_STRIDE);
            }
            let before = comptime!(slab * plan.slab * BLOCK);
            load::<F, NV, E>(
                values,
                &Tile {
                    start: ((token + before) * heads + head) * value_dim + first_value,
                    row_stride: heads * value_dim,
                    rows: select(length > before, length - before, 0usize),
                    cols: value_dim - first_value,
                },
                &mut rhs,
                0usize,
                comptime!(TileShape::new(plan.slab * BLOCK, width, operand_stride(plan.value_blocks))),
            );
            sync_cube();
            state.product::<E>(
                &lhs,
                0usize,
                comptime!(Layout::DepthMajor(CHANNEL_STRIDE)),
                &rhs,
                0usize,
                comptime!(Layout::operand(plan.value_blocks)),
                comptime!(plan.slab * BLOCK),
                comptime!(grid.all()),
            );
            sync_cube();
        }
    }

    #[unroll]
    for strip in 0..comptime!(plan.value_blocks / plan.strip) {
        state.spill(&mut stage, comptime!(strip * plan.strip), plan.strip);
        sync_cube();
        block.write::<f32>(&mut stage, last, segment * heads + head, strip, plan);
        if comptime!(!plan.reverse) {
            block.write::<S>(&mut stage, states, (first_slot + chunks) * heads + head, strip, plan);
        }
        sync_cube();
    }
}

/// The cube's part of a state.
#[derive(CubeType, Clone, Copy)]
struct StateBlock {
    first_key: usize,
    first_value: usize,
    key_dim: usize,
    value_dim: usize,
}

#[cube]
impl StateBlock {
    /// Reads a strip of state `index` of `[.., key_dim, value_dim]`, zeros outside.
    fn read(
        &self,
        source: &[f32],
        index: usize,
        stage: &mut Shared<[f32]>,
        #[comptime] strip: usize,
        #[comptime] plan: StatePlan,
    ) {
        let width = comptime!(plan.strip * BLOCK);
        #[unroll]
        for round in 0..comptime!(CHANNELS * width / UNITS) {
            let place = UNIT_POS as usize + comptime!(round * UNITS);
            let row = place / width;
            let col = place % width;
            let key = self.first_key + row;
            let value = self.first_value + comptime!(strip * width) + col;
            let inside = key < self.key_dim && value < self.value_dim;
            let at = select(inside, (index * self.key_dim + key) * self.value_dim + value, 0usize);
            stage[row * comptime!(plan.grid().stage_stride(plan.strip)) + col] =
                select(inside, source[at], 0.0f32);
        }
    }

    /// Writes a strip into state `index`.
    fn write<S: Float>(
        &self,
        stage: &mut Shared<[f32]>,
        target: &mut [S],
        index: usize,
        #[comptime] strip: usize,
        #[comptime] plan: StatePlan,
    ) {
        let width = comptime!(plan.strip * BLOCK);
        #[unroll]
        for round in 0..comptime!(CHANNELS * width / UNITS) {
            let place = UNIT_POS as usize + comptime!(round * UNITS);
            let row = place / width;
            let col = place % width;
            let key = self.first_key + row;
            let value = self.first_value + comptime!(strip * width) + col;
            if key < self.key_dim && value < self.value_dim {
                target[(index * self.key_dim + key) * self.value_dim + value] =
                    S::cast_from(stage[row * comptime!(plan.grid().stage_stride(plan.strip)) + col]);
            }
        }
    }
}

/// Multiplies the rows of a strip, key channels, by the decay of the chunk; the same unit as in [`StateBlock::write`].
#[cube]
fn scale_rows(stage: &mut Shared<[f32]>, wholes: &WholeDecays, #[comptime] plan: StatePlan) {
    let width = comptime!(plan.strip * BLOCK);
    #[unroll]
    for round in 0..comptime!(CHANNELS * width / UNITS) {
        let place = UNIT_POS as usize + comptime!(round * UNITS);
        let row = place / width;
        stage[row * comptime!(plan.grid().stage_stride(plan.strip)) + place % width] *= wholes.of_chunk(row);
    }
}
