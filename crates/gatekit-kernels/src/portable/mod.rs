//! The scans in backend operations alone: correct on every device, the fallback where no fused
//! kernel exists, and the yardstick of those that do.

mod backward;
mod chunks;
mod elementwise;
mod forward;
mod pairs;

pub(crate) use backward::backward;
pub(crate) use elementwise::{elementwise_backward, elementwise_forward};
pub(crate) use forward::forward;

/// Log decays below this are raised to it before prefix sums: `exp(-30)` is invisible in float32,
/// while one step of -1000 would cost all later differences of the sums their absolute precision.
const LOG_DECAY_FLOOR: f64 = -30.0;
