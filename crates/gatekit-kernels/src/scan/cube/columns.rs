//! One unit for each of 64 channels and each sub-chunk: its 16 steps of a channel in registers.
//!
//! Unit `u` has channel `u % 64` and sub-chunk `u / 64`. Neighbouring units read neighbouring channels, so the loads
//! are coalesced, and all of a unit's loads are in flight together. What runs along time, as products of decay factors
//! and sums of gradients do, then costs nothing but registers, and crosses sub-chunks through one number each.

use cubecl::prelude::*;

use super::{
    blocks::{BLOCK, operand_stride},
    decay::{SUB_CHUNKS, bounded, factor},
};
use crate::scan::DecayKind;

/// Channels of a cube.
pub(crate) const CHANNELS: usize = 64;

/// Distance between the rows of an operand with these channels as its columns or rows.
pub(crate) const CHANNEL_STRIDE: usize = operand_stride(CHANNELS / BLOCK);

/// The unit's place.
#[derive(CubeType, Clone, Copy)]
pub(crate) struct Column {
    /// Channel within the cube's.
    pub channel: usize,
    pub sub_chunk: usize,
    /// Element of its first step in `[tokens, heads, key_dim]`.
    start: usize,
    row_stride: usize,
    /// Steps of its sub-chunk that exist; 0 for a channel past the last.
    steps: usize,
    /// As `start` and `row_stride`, in the log decays.
    decay_start: usize,
    decay_stride: usize,
}

#[cube]
impl Column {
    /// Of the unit, for the channels from `first` on and the chunk of `length` steps from `token` on.
    pub fn of_unit(
        token: usize,
        length: usize,
        head: usize,
        heads: usize,
        first: usize,
        key_dim: usize,
        #[comptime] decay: DecayKind,
    ) -> Column {
        let channel = UNIT_POS as usize % CHANNELS;
        let sub_chunk = UNIT_POS as usize / CHANNELS;
        let before = sub_chunk * BLOCK;
        let row = (token + before) * heads + head;
        let column = first + channel;
        let left = select(length > before, length - before, 0usize);
        let decays = comptime!(decay == DecayKind::PerKey);
        Column {
            channel,
            sub_chunk,
            start: row * key_dim + column,
            row_stride: heads * key_dim,
            steps: select(column < key_dim, left.min(BLOCK), 0usize),
            decay_start: if decays { row * key_dim + column } else { row },
            decay_stride: if decays { heads * key_dim } else { heads },
        }
    }

    /// The unit's steps of a tensor; 0 where there are none.
    pub fn load<F: Float>(&self, source: &[F]) -> Array<f32> {
        let mut values = Array::<f32>::new(BLOCK);
        #[unroll]
        for row in 0..BLOCK {
            let inside = row < self.steps;
            let place = select(inside, self.start + row * self.row_stride, 0usize);
            values[row] = select(inside, f32::cast_from(source[place]), 0.0f32);
        }
        values
    }

    /// The unit's log decays, none below -1000; 0 where there are none.
    pub fn load_log_decay<G: Float>(&self, source: &[G], #[comptime] decay: DecayKind) -> Array<f32> {
        let mut values = Array::<f32>::new(BLOCK);
        #[unroll]
        for row in 0..BLOCK {
            if comptime!(decay == DecayKind::None) {
                values[row] = 0.0;
            } else {
                let inside = row < self.steps;
                let place = select(inside, self.decay_start + row * self.decay_stride, 0usize);
                values[row] = select(inside, bounded(f32::cast_from(source[place])), 0.0f32);
            }
        }
        values
    }

    /// Writes the unit's steps.
    pub fn store<F: Float>(&self, values: &Array<f32>, target: &mut [F]) {
        #[unroll]
        for row in 0..BLOCK {
            if row < self.steps {
                target[self.start + row * self.row_stride] = F::cast_from(values[row]);
            }
        }
    }
}

/// The decays of the cube's channels over each sub-chunk, as sums of logarithms, and over the chunk, in shared memory.
#[derive(CubeType)]
pub(crate) struct WholeDecays {
    sums: Shared<[f32]>,
    chunk: Shared<[f32]>,
}

impl WholeDecays {
    /// Numbers of shared memory.
    pub const LEN: usize = (SUB_CHUNKS + 1) * CHANNELS;
}

#[cube]
impl WholeDecays {
    pub fn new() -> WholeDecays {
        WholeDecays {
            sums: Shared::<[f32]>::new_slice(comptime!(SUB_CHUNKS * CHANNELS)),
            chunk: Shared::<[f32]>::new_slice(CHANNELS),
        }
    }

    /// Makes the decays from the log decays of every unit. The caller synchronises the cube before the first and
    /// before the next reading of [`of_chunk`](Self::of_chunk).
    pub fn share(&mut self, log_decay: &Array<f32>) {
        let mut sum = 0.0f32;
        #[unroll]
        for row in 0..BLOCK {
            sum += log_decay[row];
        }
        self.sums[UNIT_POS as usize] = sum;
        sync_cube();
        if UNIT_POS < comptime!(CHANNELS as u32) {
            self.chunk[UNIT_POS as usize] = self.over(UNIT_POS as usize, 0usize, SUB_CHUNKS);
        }
    }

    /// The decay of a channel over the chunk.
    pub fn of_chunk(&self, channel: usize) -> f32 {
        self.chunk[channel]
    }

    /// The decay of a channel over the sub-chunks `from..to`.
    pub fn over(&self, channel: usize, from: usize, to: usize) -> f32 {
        let mut sum = 0.0f32;
        for sub_chunk in from..to {
            sum += self.sums[sub_chunk * CHANNELS + channel];
        }
        factor(sum)
    }
}

/// Each step times the decay after it to the end of its sub-chunk.
#[cube]
pub(crate) fn times_to_end(values: &Array<f32>, factors: &Array<f32>) -> Array<f32> {
    let mut result = Array::<f32>::new(BLOCK);
    let mut rest = 1.0f32;
    #[unroll]
    for back in 0..BLOCK {
        let row = comptime!(BLOCK - 1 - back);
        result[row] = values[row] * rest;
        rest *= factors[row];
    }
    result
}

/// Each step times the decay from the start of its sub-chunk up to it.
#[cube]
pub(crate) fn times_from_start(values: &Array<f32>, factors: &Array<f32>) -> Array<f32> {
    let mut result = Array::<f32>::new(BLOCK);
    let mut product = 1.0f32;
    #[unroll]
    for row in 0..BLOCK {
        product *= factors[row];
        result[row] = values[row] * product;
    }
    result
}

/// The factors of log decays.
#[cube]
pub(crate) fn factors(log_decay: &Array<f32>) -> Array<f32> {
    let mut result = Array::<f32>::new(BLOCK);
    #[unroll]
    for row in 0..BLOCK {
        result[row] = factor(log_decay[row]);
    }
    result
}

/// Writes the unit's steps as rows `16 * at ..` of an operand `[steps, channels]`.
#[cube]
pub(crate) fn write_operand<E: Float>(
    values: &Array<f32>,
    factor: f32,
    channel: usize,
    operand: &mut Shared<[E]>,
    at: usize,
) {
    #[unroll]
    for row in 0..BLOCK {
        operand[at + comptime!(row * CHANNEL_STRIDE) + channel] = E::cast_from(values[row] * factor);
    }
}
