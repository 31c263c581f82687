//! The decay from a chunk's start up to each step, and after each step to the chunk's end.

use cubecl::{ir::ElemType, prelude::*};

use super::super::decay::{bounded, factor};
use super::place::{Sizes, place};
use crate::scan::DecayKind;

/// Writes both factors, in the log decay's shape. A unit walks one column of a chunk.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn decay_kernel<G: Float>(
    log_decay: &[G],
    chunks: &[u32],
    from_start: &mut [f32],
    to_end: &mut [f32],
    columns: usize,
    sizes: &Sizes,
    #[define(G)] _decay: ElemType,
) {
    let mut decays = 1usize.runtime();
    if comptime!(sizes.decay == DecayKind::PerKey) {
        decays = sizes.key_dim;
    }
    let index = ABSOLUTE_POS;
    if index < columns {
        let place = place(chunks, sizes, index / (decays * sizes.heads), index / decays % sizes.heads);
        let view = place.decays(sizes).from(0usize, index % decays);
        let mut sum = 0.0f32.runtime();
        for step in 0..place.steps {
            let at = view.at(step, 0usize);
            sum += bounded(f32::cast_from(log_decay[at]));
            from_start[at] = factor(sum);
        }
        sum = 0.0f32.runtime();
        for back in 0..place.steps {
            let at = view.at(place.steps - 1 - back, 0usize);
            to_end[at] = factor(sum);
            sum += bounded(f32::cast_from(log_decay[at]));
        }
    }
}
