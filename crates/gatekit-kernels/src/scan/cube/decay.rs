//! Decay factors within a chunk, from log decays, without differences of sums.
//!
//! A chunk of 64 steps is four sub-chunks of 16. For each step and channel there are the factor of the step, the
//! product of the factors of its sub-chunk up to it (`from`, itself included) and of those after it (`to`, itself
//! excluded), and for each sub-chunk the whole. All other decays are products of these, so every factor is at most 1
//! and a step that forgets everything costs no other step its precision. Within 16 steps factors are multiplied, one
//! `exp` a step; over a sub-chunk and a chunk log decays are added first, so that long memories lose nothing to the
//! rounding of factors near 1.

use cubecl::prelude::*;

use super::blocks::{ALIGNMENT, BLOCK};

/// Sub-chunks of a chunk.
pub(crate) const SUB_CHUNKS: usize = 4;

/// Steps of a chunk.
pub(crate) const CHUNK: usize = SUB_CHUNKS * BLOCK;

/// Log decays below this count as minus infinity: `exp` of them is 0 in float32.
const LOG_ZERO: f32 = -104.0;

/// Log decays below this get no gradient: `exp(-30)` is invisible in float32, the rounding of the closed form is not.
pub(crate) const GRADIENT_FLOOR: f32 = -30.0;

/// `exp` of a log decay, exactly 0 for minus infinity whatever the device's `exp` makes of it.
#[cube]
pub(crate) fn factor(log_decay: f32) -> f32 {
    let bounded = log_decay.max(LOG_ZERO);
    select(log_decay <= LOG_ZERO, 0.0f32, bounded.exp())
}

/// A log decay that can be added up.
#[cube]
pub(crate) fn bounded(log_decay: f32) -> f32 {
    log_decay.max(-1000.0f32)
}

/// The factors of some channels of a chunk in shared memory.
#[derive(CubeType)]
pub(crate) struct Decays {
    /// Log decay, then factor of each step, `[CHUNK, width]`.
    pub step: Shared<[f32]>,
    pub from: Shared<[f32]>,
    pub to: Shared<[f32]>,
    /// `[SUB_CHUNKS, width]`.
    whole: Shared<[f32]>,
    #[cube(comptime)]
    pub width: usize,
}

/// Distance between the steps of [`Decays`]: odd, for the banks of shared memory.
pub(crate) const fn decay_stride(width: usize) -> usize {
    width | 1
}

#[cube]
impl Decays {
    /// Memory for `width` channels, and for `room` numbers in each of `from` and `to`, for what comes after the decays.
    pub fn new(#[comptime] width: usize, #[comptime] room: usize) -> Decays {
        let len = comptime!(CHUNK * decay_stride(width));
        Decays {
            step: Shared::<[f32]>::new_slice(len),
            from: Shared::<[f32]>::new_aligned_slice(comptime!(len.max(room)), ALIGNMENT),
            to: Shared::<[f32]>::new_aligned_slice(comptime!(len.max(room)), ALIGNMENT),
            whole: Shared::<[f32]>::new_slice(comptime!(SUB_CHUNKS * width)),
            width,
        }
    }

    /// Makes the factors of the log decays in `step`: one unit a channel and sub-chunk. The caller synchronises the
    /// cube before and after.
    pub fn compute(&mut self) {
        let stride = comptime!(decay_stride(self.width));
        let unit = UNIT_POS as usize;
        if unit < comptime!(SUB_CHUNKS * self.width) {
            let channel = unit % comptime!(self.width);
            let sub_chunk = unit / comptime!(self.width);
            let at = sub_chunk * comptime!(BLOCK * stride) + channel;
            let mut sum = 0.0f32;
            let mut product = 1.0f32;
            #[unroll]
            for row in 0..BLOCK {
                let place = at + comptime!(row * stride);
                let log_decay = bounded(self.step[place]);
                let own = factor(log_decay);
                sum += log_decay;
                product *= own;
                self.step[place] = own;
                self.from[place] = product;
            }
            self.whole[unit] = factor(sum);
            let mut rest = 1.0f32;
            #[unroll]
            for back in 0..BLOCK {
                let place = at + comptime!((BLOCK - 1 - back) * stride);
                self.to[place] = rest;
                rest *= self.step[place];
            }
        }
    }

    /// The decay from the start of the aligned group of `group` sub-chunks around step `step` up to it.
    pub fn since_start(&self, step: usize, channel: usize, #[comptime] group: usize) -> f32 {
        let sub_chunk = step / BLOCK;
        let first = (sub_chunk / group) * group;
        let mut product = self.from[step * comptime!(decay_stride(self.width)) + channel];
        for earlier in first..sub_chunk {
            product *= self.whole[earlier * comptime!(self.width) + channel];
        }
        product
    }

    /// The decay after step `step` up to the end of the aligned group of `group` sub-chunks around it.
    pub fn to_end(&self, step: usize, channel: usize, #[comptime] group: usize) -> f32 {
        let sub_chunk = step / BLOCK;
        let end = (sub_chunk / group + 1) * group;
        let mut product = self.to[step * comptime!(decay_stride(self.width)) + channel];
        for later in sub_chunk + 1..end {
            product *= self.whole[later * comptime!(self.width) + channel];
        }
        product
    }

    /// The decay from step `earlier` to step `later`, 1 where they are the same.
    pub fn between(&self, later: usize, earlier: usize, channel: usize) -> f32 {
        let stride = comptime!(decay_stride(self.width));
        let last = later / BLOCK;
        let first = earlier / BLOCK;
        let mut product = 1.0f32;
        if last == first {
            for step in earlier + 1..later + 1 {
                product *= self.step[step * stride + channel];
            }
        } else {
            product = self.to[earlier * stride + channel] * self.from[later * stride + channel];
            for middle in first + 1..last {
                product *= self.whole[middle * comptime!(self.width) + channel];
            }
        }
        product
    }
}
