//! The selective scan as fused loops on slices: forward, analytic backward and single decoding steps.
//!
//! Channels are independent but for the sums over them, and the lanes of the vectors. A job scans a block of channels,
//! step by step as the recurrence is defined, with its state in the first-level cache: `exp(delta a)` multiplies the
//! state, so no difference of decays is ever formed. Where blocks and sequences are few, sequences are cut in time too
//! (see [`States`](crate::pieces::States)). Every sum is made in an order that depends on the shape alone, so results repeat bit by bit on any
//! number of threads.

mod backward;
mod carry;
mod forward;
mod problem;
mod step;

pub(crate) use backward::backward;
pub(crate) use forward::forward;
pub(crate) use problem::Problem;
pub(crate) use step::{StepProblem, step};
