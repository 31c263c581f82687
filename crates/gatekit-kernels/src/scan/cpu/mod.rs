//! Fused scans with a matrix state on the CPU: forward, closed-form backward and single decoding steps, on slices.
//!
//! * Gated linear attention, retention, HGRN2, linear attention: additive writes, a decay per key channel, per head or
//!   none (Yang et al. 2024, "Gated Linear Attention Transformers with Hardware-Efficient Training").
//! * Delta rule, gated delta rule, Kimi delta attention: [`Problem::beta`] given (Kimi Team 2025, "Kimi Linear").
//!
//! The recurrences are run as they are defined, step by step, but a block of the state at a time: in registers for the
//! additive scan, in the first-level cache for the delta rule. A step multiplies the state by `exp(log decay)`, so no
//! difference of decays is ever formed and nothing can overflow however strong the decays are. Work is spread over
//! segments, heads and blocks of the state; every sum is made in an order that depends on neither the number of threads
//! nor the blocks, so results repeat bit by bit.

mod additive;
mod ahead;
mod backward;
mod delta;
pub mod elementwise;
mod forward;
mod packing;
mod parallel;
mod problem;
mod step;
mod tile;

pub use backward::backward;
pub use forward::forward;
pub use problem::{Decay, Problem, Segment};
pub use step::{StepProblem, step};

#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;
