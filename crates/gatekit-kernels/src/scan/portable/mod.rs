//! The scans in backend operations alone: correct on every device, the fallback where no fused
//! kernel exists, and the yardstick of those that do.

mod backward;
mod chunks;
mod elementwise;
mod forward;
mod pairs;
mod step;

pub(crate) use backward::backward;
pub(crate) use elementwise::{elementwise_backward, elementwise_forward};
pub(crate) use forward::forward;
pub(crate) use step::step;

/// Log decays below this count as this: `exp(-100)` is 0 in float32, and minus infinity would make
/// NaN of sums.
const LOG_DECAY_FLOOR: f64 = -100.0;

/// Log decays below this get no gradient: what they let through is invisible in float32, the
/// rounding of the closed form is not.
const LOG_DECAY_GRADIENT_FLOOR: f64 = -30.0;
