//! Sending tokens to their experts and adding up what comes back.
//!
//! Slots are sorted by expert, so that every expert sees a run of consecutive rows: no dense
//! `[N, E, C]` masks and no padding. Where rows differ in how many stages of a chain they run instead, a
//! [`PrefixPlan`] sorts them once by that number.

mod capacity;
mod grouped;
mod plan;
mod prefix;
#[cfg(test)]
mod tests;
mod unlike;

pub use capacity::{Capacity, Priority};
pub use gatekit_kernels::grouped::{SortedSlots, gated_experts};
pub use grouped::{GroupedLinear, GroupedLinearConfig, grouped_matmul, narrow_matmul};
pub use plan::DispatchPlan;
pub use prefix::{PrefixPlan, depth_execute};
pub use unlike::{Expert, Rows, unlike_experts};
