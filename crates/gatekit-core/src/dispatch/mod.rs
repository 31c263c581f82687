//! Sending tokens to their experts and adding up what comes back.
//!
//! Slots are sorted by expert, so that every expert sees a run of consecutive rows: no dense
//! `[N, E, C]` masks and no padding.

mod capacity;
mod grouped;
mod plan;
#[cfg(test)]
mod tests;

pub use capacity::{Capacity, Priority};
pub use grouped::{GroupedLinear, GroupedLinearConfig, grouped_matmul};
pub use gatekit_kernels::grouped::{SortedSlots, gated_experts};
pub use plan::DispatchPlan;
