//! Sending tokens to their experts and adding up what comes back.
//!
//! Slots are sorted by expert, so that every expert sees a run of consecutive rows: no dense
//! `[N, E, C]` masks and no padding.

mod capacity;
mod grouped;
mod plan;
#[cfg(test)]
mod tests;
mod unlike;

pub use capacity::{Capacity, Priority};
pub use grouped::{GroupedLinear, GroupedLinearConfig, grouped_matmul};
pub use plan::DispatchPlan;
pub use unlike::{Expert, Rows, unlike_experts};
