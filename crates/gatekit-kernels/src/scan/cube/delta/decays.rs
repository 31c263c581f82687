//! The decay from a chunk's start up to each step, and after each step to the chunk's end.

use burn_cubecl::cubecl::{self, ir::ElemType, prelude::*};

use super::layout::{Place, Sizes, locate};
use super::tiles::View;

/// `exp(-100)` is 0 in float32; minus infinity would make NaN of `0 * inf` on some devices.
const LOG_DECAY_FLOOR: f32 = -100.0;

/// A log decay as the kernels add it up.
#[cube]
pub(super) fn bounded<G: Float>(log_decay: G) -> f32 {
    f32::cast_from(log_decay).max(LOG_DECAY_FLOOR)
}

/// Writes both factors, in the log decay's shape. A unit walks one column of a chunk.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn decay_kernel<G: Float>(
    chunks: &[u32],
    log_decay: &[G],
    from_start: &mut [f32],
    to_end: &mut [f32],
    columns: usize,
    #[comptime] sizes: Sizes,
    #[define(G)] _type: ElemType,
) {
    let decays = comptime!(sizes.decays());
    let index = ABSOLUTE_POS;
    if index < columns {
        let column = index % decays;
        let head = index / decays % sizes.heads;
        let place: Place = locate(chunks, index / comptime!(decays * sizes.heads), head, sizes);
        let view: View = place.rows(decays, sizes);
        let first = view.origin + column;
        let mut sum = 0.0f32.runtime();
        for step in 0..place.steps {
            sum += bounded::<G>(log_decay[first + step * view.row]);
            from_start[first + step * view.row] = sum.exp();
        }
        sum = 0.0f32.runtime();
        for back in 0..place.steps {
            let at = first + (place.steps - 1 - back) * view.row;
            to_end[at] = sum.exp();
            sum += bounded::<G>(log_decay[at]);
        }
    }
}
