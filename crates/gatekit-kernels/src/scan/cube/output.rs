//! Outputs of every chunk from its inputs and the state before it, or in reverse the gradients of its values.
//!
//! ```text
//! O  = scale (Q S + A V)          A_ij  = sum_c q_ic k_jc decay_ijc  for i >= j
//! dV = K H + scale A^T dO
//! ```
//!
//! with Q: queries times the decay from the chunk's start, K: keys times the decay to its end, H: the gradient of the
//! state after it. The two are one kernel: the rows are the steps it computes (queries, or keys in reverse), the
//! columns those it sums over.
//!
//! Decays per key channel stand within the sum over channels. Between sub-chunks they are split at a point between row
//! and column, so that both factors are at most 1: first at the middle of each half of the chunk, then at the middle
//! of the chunk, so each step is scaled twice and not once for every other sub-chunk. Within a sub-chunk nothing can be
//! split: one unit for each column and quarter of the channels walks down the rows with a running product, which costs
//! a multiplication a pair and channel and no `exp`.
//!
//! A cube has one chunk of one head and up to 128 value channels, so scores are computed once up to that width. It
//! reads `2 CK` (`3 CK` with decay per key) inputs, a state `KV` and `CV` values, and writes `CV`; scores never leave
//! it. Channels go by in slabs of 16, the depth of a matrix unit's product, which keeps everything within 32 KiB.

use cubecl::prelude::*;

use super::{
    blocks::{ALIGNMENT, BLOCK, Blocks, Grid, Layout, Planes, UNITS, operand_stride},
    decay::{CHUNK, Decays, SUB_CHUNKS, decay_stride},
    tiles::{Tile, TileShape, load},
};
use crate::scan::DecayKind;

/// Channels of a slab.
const SLAB: usize = BLOCK;

/// Distance between the rows of an operand with a chunk's steps.
const STEP_STRIDE: usize = operand_stride(SUB_CHUNKS);

/// Groups of channels of a slab that units walk down separately.
const GROUPS: usize = UNITS / CHUNK;

/// What is known when the kernel is compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct OutputPlan {
    pub decay: DecayKind,
    /// Gradients of the values.
    pub reverse: bool,
    pub planes: Option<Planes>,
    /// Blocks of 16 value channels of a cube.
    pub value_blocks: usize,
}

impl OutputPlan {
    const fn scores(self) -> Grid {
        Grid::new(SUB_CHUNKS, SUB_CHUNKS, self.planes)
    }

    const fn outputs(self) -> Grid {
        Grid::new(SUB_CHUNKS, self.value_blocks, self.planes)
    }

    /// Whether rows of sub-chunk `row` sum over columns of sub-chunk `col`.
    const fn sees(self, row: usize, col: usize) -> bool {
        if self.reverse { row <= col } else { row >= col }
    }

    /// The blocks on and beside the diagonal that hold pairs.
    fn triangle(self) -> u32 {
        self.scores().active(|row, col| self.sees(row, col))
    }

    /// The blocks whose decay is split at the middle of groups of `2 * half` sub-chunks.
    fn halves(self, half: usize) -> u32 {
        self.scores().active(|row, col| {
            row / (2 * half) == col / (2 * half) && row / half != col / half && self.sees(row, col)
        })
    }

    /// Channels of the decay factors in shared memory.
    const fn decay_width(self) -> usize {
        match self.decay {
            DecayKind::PerKey => SLAB,
            _ => 1,
        }
    }

    /// Distance between the steps of a slab: odd for units, whole 16-byte words of half-precision numbers for matrix units.
    const fn slab_stride(self) -> usize {
        if self.planes.is_none() { SLAB + 1 } else { SLAB + 8 }
    }

    /// Whether the stages of accumulators share the memory of two tables of decays.
    const fn shares_stage(self) -> bool {
        matches!(self.decay, DecayKind::PerKey)
    }

    /// Numbers that those tables have room for at least.
    const fn decay_room(self) -> usize {
        if self.shares_stage() { self.scores().stage_len(1) } else { 0 }
    }

    /// Bytes of shared memory, with operands of `operand_bytes` each.
    pub const fn shared_bytes(self, operand_bytes: usize) -> usize {
        let operands = 2 * CHUNK * self.slab_stride() + SLAB * (STEP_STRIDE + self.rhs_stride());
        let width = self.decay_width();
        let (table, room) = (CHUNK * decay_stride(width), self.decay_room());
        let decays = table + 2 * if table < room { room } else { table } + SUB_CHUNKS * width;
        let stage = if self.shares_stage() { 0 } else { 2 * self.scores().stage_len(1) };
        operands * operand_bytes + (decays + stage) * 4
    }

    /// The right operand is a slab of columns, then of states and values.
    const fn rhs_stride(self) -> usize {
        if self.value_blocks > SUB_CHUNKS { operand_stride(self.value_blocks) } else { STEP_STRIDE }
    }
}

/// `rows`, `cols`: queries and keys, in reverse keys and queries; `values`: values, in reverse the gradients of the
/// outputs; `states`: those before every chunk, in reverse the gradients of those after it.
///
/// `chunks`: three numbers each: first token, length, slot of the state before it.
///
/// Cubes: chunks, heads, blocks of value channels.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn output_kernel<
    F: Float,
    G: Float,
    S: Float,
    E: Float,
    NK: Size,
    NV: Size,
    NG: Size,
    NS: Size,
>(
    rows: &[Vector<F, NK>],
    cols: &[Vector<F, NK>],
    values: &[Vector<F, NV>],
    log_decay: &[Vector<G, NG>],
    states: &[Vector<S, NS>],
    chunks: &[u32],
    output: &mut [F],
    weight_scale: f32,
    output_scale: f32,
    heads: usize,
    key_dim: usize,
    value_dim: usize,
    #[comptime] plan: OutputPlan,
    #[define(F)] _input: ElemType,
    #[define(G)] _decay: ElemType,
    #[define(S)] _state: ElemType,
    #[define(E)] _operand: ElemType,
) {
    let width = comptime!(plan.value_blocks * BLOCK);
    let chunk = CUBE_POS_X as usize;
    let head = CUBE_POS_Y as usize;
    let first_value = CUBE_POS_Z as usize * width;
    let token = chunks[chunk * 3] as usize;
    let length = chunks[chunk * 3 + 1] as usize;
    let slot = chunks[chunk * 3 + 2] as usize + comptime!(plan.reverse as usize);
    let first_row = token * heads + head;

    let mut row_slab = Shared::<[E]>::new_aligned_slice(comptime!(CHUNK * plan.slab_stride()), ALIGNMENT);
    let mut col_slab = Shared::<[E]>::new_aligned_slice(comptime!(CHUNK * plan.slab_stride()), ALIGNMENT);
    let mut lhs = Shared::<[E]>::new_aligned_slice(comptime!(SLAB * STEP_STRIDE), ALIGNMENT);
    let mut rhs = Shared::<[E]>::new_aligned_slice(comptime!(SLAB * plan.rhs_stride()), ALIGNMENT);
    let mut decays = Decays::new(comptime!(plan.decay_width()), comptime!(plan.decay_room()));

    let mut scores = Blocks::zeros(comptime!(plan.scores()));
    let mut outputs = Blocks::zeros(comptime!(plan.outputs()));
    let mut own = Array::<f32>::new(BLOCK);
    #[unroll]
    for row in 0..BLOCK {
        own[row] = 0.0;
    }

    if comptime!(plan.decay == DecayKind::PerHead) {
        load::<G, NG, f32>(
            log_decay,
            &Tile { start: first_row, row_stride: heads, rows: length, cols: 1usize },
            &mut decays.step,
            0usize,
            comptime!(TileShape::new(CHUNK, 1, decay_stride(1))),
        );
        sync_cube();
        decays.compute();
        sync_cube();
    }

    let slab_shape = comptime!(TileShape::new(CHUNK, SLAB, plan.slab_stride()));
    let step_layout = comptime!(Layout::DepthMajor(STEP_STRIDE));
    for slab in 0..key_dim.div_ceil(SLAB) {
        let first_key = slab * SLAB;
        let tile = Tile {
            start: first_row * key_dim + first_key,
            row_stride: heads * key_dim,
            rows: length,
            cols: key_dim - first_key,
        };
        load::<F, NK, E>(rows, &tile, &mut row_slab, 0usize, slab_shape);
        load::<F, NK, E>(cols, &tile, &mut col_slab, 0usize, slab_shape);
        if comptime!(plan.decay == DecayKind::PerKey) {
            load::<G, NG, f32>(
                log_decay,
                &tile,
                &mut decays.step,
                0usize,
                comptime!(TileShape::new(CHUNK, SLAB, decay_stride(SLAB))),
            );
            sync_cube();
            decays.compute();
            sync_cube();
            add_own::<E>(&mut own, &row_slab, &col_slab, &decays, plan);
            #[unroll]
            for half in [1usize, 2usize] {
                write_operand::<E>(&row_slab, &decays, &mut lhs, STEP_STRIDE, plan.reverse, half, plan);
                write_operand::<E>(
                    &col_slab,
                    &decays,
                    &mut rhs,
                    comptime!(plan.rhs_stride()),
                    comptime!(!plan.reverse),
                    half,
                    plan,
                );
                sync_cube();
                scores.product::<E>(
                    &lhs,
                    0usize,
                    step_layout,
                    &rhs,
                    0usize,
                    comptime!(Layout::DepthMajor(plan.rhs_stride())),
                    SLAB,
                    comptime!(plan.halves(half)),
                );
                sync_cube();
            }
        } else {
            sync_cube();
            scores.product::<E>(
                &row_slab,
                0usize,
                comptime!(Layout::AxisMajor(plan.slab_stride())),
                &col_slab,
                0usize,
                comptime!(Layout::AxisMajor(plan.slab_stride())),
                SLAB,
                comptime!(plan.triangle()),
            );
        }
        write_operand::<E>(
            &row_slab,
            &decays,
            &mut lhs,
            STEP_STRIDE,
            plan.reverse,
            comptime!(SUB_CHUNKS),
            plan,
        );
        load::<S, NS, E>(
            states,
            &Tile {
                start: ((slot * heads + head) * key_dim + first_key) * value_dim + first_value,
                row_stride: value_dim,
                rows: key_dim - first_key,
                cols: value_dim - first_value,
            },
            &mut rhs,
            0usize,
            comptime!(TileShape::new(SLAB, width, plan.rhs_stride())),
        );
        sync_cube();
        outputs.product::<E>(
            &lhs,
            0usize,
            step_layout,
            &rhs,
            0usize,
            comptime!(Layout::DepthMajor(plan.rhs_stride())),
            SLAB,
            comptime!(plan.outputs().all()),
        );
        // The slabs were read before the last synchronisation, the operands are written after the next.
    }
    sync_cube();

    let mut stage = if comptime!(plan.shares_stage()) {
        decays.from.clone()
    } else {
        Shared::<[f32]>::new_aligned_slice(comptime!(plan.scores().stage_len(1)), ALIGNMENT)
    };
    let mut other_stage = if comptime!(plan.shares_stage()) {
        decays.to.clone()
    } else {
        Shared::<[f32]>::new_aligned_slice(comptime!(plan.scores().stage_len(1)), ALIGNMENT)
    };
    #[unroll]
    for strip in 0..SUB_CHUNKS {
        scores.spill(&mut stage, strip, 1usize);
        sync_cube();
        if comptime!(plan.decay == DecayKind::PerKey) {
            merge_own(&own, &mut stage, strip, plan);
        }
        write_weights::<E>(&stage, &decays, &mut lhs, weight_scale, strip, plan);
        let before = comptime!(strip * BLOCK);
        load::<F, NV, E>(
            values,
            &Tile {
                start: (first_row + before * heads) * value_dim + first_value,
                row_stride: heads * value_dim,
                rows: select(length > before, length - before, 0usize),
                cols: value_dim - first_value,
            },
            &mut rhs,
            0usize,
            comptime!(TileShape::new(BLOCK, width, plan.rhs_stride())),
        );
        sync_cube();
        outputs.product::<E>(
            &lhs,
            0usize,
            step_layout,
            &rhs,
            0usize,
            comptime!(Layout::DepthMajor(plan.rhs_stride())),
            BLOCK,
            comptime!(plan.outputs().active(|row, _| plan.sees(row, strip))),
        );
        // The stage was read before the last synchronisation, the operands are written after the next.
    }

    // By turns through two stages: what is written was read before the last synchronisation.
    #[unroll]
    for strip in 0..comptime!(plan.value_blocks) {
        let turn = if comptime!(strip % 2 == 0) { &mut stage } else { &mut other_stage };
        outputs.spill(turn, strip, 1usize);
        sync_cube();
        for round in 0..comptime!(CHUNK * BLOCK / UNITS) {
            let place = UNIT_POS as usize + round * UNITS;
            let row = place / BLOCK;
            let col = place % BLOCK;
            let value = first_value + comptime!(strip * BLOCK) + col;
            if row < length && value < value_dim {
                output[(first_row + row * heads) * value_dim + value] =
                    F::cast_from(output_scale * turn[row * comptime!(plan.outputs().stage_stride(1)) + col]);
            }
        }
    }
}

/// Writes a slab as an operand `[channels, steps]`, each step times the decay from the start of its group of sub-chunks
/// (or, `to_end`, after it to its end). Neighbouring units write neighbouring steps.
#[cube]
fn write_operand<E: Float>(
    slab: &Shared<[E]>,
    decays: &Decays,
    target: &mut Shared<[E]>,
    #[comptime] stride: usize,
    #[comptime] to_end: bool,
    #[comptime] group: usize,
    #[comptime] plan: OutputPlan,
) {
    for round in 0..comptime!(CHUNK * SLAB / UNITS) {
        let place = UNIT_POS as usize + round * UNITS;
        let step = place % CHUNK;
        let channel = place / CHUNK;
        let mut value = f32::cast_from(slab[step * comptime!(plan.slab_stride()) + channel]);
        if comptime!(plan.decay != DecayKind::None) {
            let decayed = if comptime!(plan.decay == DecayKind::PerKey) { channel } else { 0usize.runtime() };
            if comptime!(to_end) {
                value *= decays.to_end(step, decayed, group);
            } else {
                value *= decays.since_start(step, decayed, group);
            }
        }
        target[channel * stride + step] = E::cast_from(value);
    }
}

/// Adds the pairs within the sub-chunks: the unit's step is the key, its channels are every fourth of the slab.
#[cube]
fn add_own<E: Float>(
    own: &mut Array<f32>,
    row_slab: &Shared<[E]>,
    col_slab: &Shared<[E]>,
    decays: &Decays,
    #[comptime] plan: OutputPlan,
) {
    let key = UNIT_POS as usize / GROUPS;
    let group = UNIT_POS as usize % GROUPS;
    let first = key / BLOCK * BLOCK;
    let queries = if comptime!(plan.reverse) { col_slab } else { row_slab };
    let keys = if comptime!(plan.reverse) { row_slab } else { col_slab };
    for index in 0..comptime!(SLAB / GROUPS) {
        let channel = index * GROUPS + group;
        let mut weight = f32::cast_from(keys[key * comptime!(plan.slab_stride()) + channel]);
        #[unroll]
        for row in 0..BLOCK {
            let step = first + row;
            let decay = decays.step[step * comptime!(decay_stride(SLAB)) + channel];
            weight *= select(step > key, decay, 1.0f32);
            let query = f32::cast_from(queries[step * comptime!(plan.slab_stride()) + channel]);
            own[row] += select(step >= key, query * weight, 0.0f32);
        }
    }
}

/// Adds the pairs within sub-chunk `strip` to its scores, one group of channels after the other.
#[cube]
fn merge_own(
    own: &Array<f32>,
    stage: &mut Shared<[f32]>,
    #[comptime] strip: usize,
    #[comptime] plan: OutputPlan,
) {
    let stride = comptime!(plan.scores().stage_stride(1));
    let key = UNIT_POS as usize / GROUPS;
    let group = UNIT_POS as usize % GROUPS;
    for turn in 0..GROUPS {
        if group == turn && key / BLOCK == strip {
            #[unroll]
            for row in 0..BLOCK {
                if comptime!(plan.reverse) {
                    stage[key * stride + row] += own[row];
                } else {
                    stage[comptime!((strip * BLOCK + row) * stride) + key % BLOCK] += own[row];
                }
            }
        }
        sync_cube();
    }
}

/// Writes column `strip` of the scores as an operand `[columns, rows]`, 0 where there is no pair.
#[cube]
fn write_weights<E: Float>(
    stage: &Shared<[f32]>,
    decays: &Decays,
    target: &mut Shared<[E]>,
    scale: f32,
    #[comptime] strip: usize,
    #[comptime] plan: OutputPlan,
) {
    for round in 0..comptime!(CHUNK * BLOCK / UNITS) {
        let place = UNIT_POS as usize + round * UNITS;
        let row = place % CHUNK;
        let col = place / CHUNK;
        let step = comptime!(strip * BLOCK) + col;
        let later = if comptime!(plan.reverse) { step } else { row };
        let earlier = if comptime!(plan.reverse) { row } else { step };
        let mut weight = stage[row * comptime!(plan.scores().stage_stride(1)) + col] * scale;
        if comptime!(plan.decay == DecayKind::PerHead) {
            weight *= decays.between(later, earlier, 0usize);
        }
        target[col * STEP_STRIDE + row] = E::cast_from(select(later >= earlier, weight, 0.0f32));
    }
}
