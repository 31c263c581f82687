//! How a gate value is made from logits, and how it is applied.
//!
//! Made: [`GateActivation`] (with temperatures and scales), [`hard_gate`] and [`gumbel_sigmoid`] with
//! a straight-through gradient, [`straight_through_one_hot`] and [`gumbel_softmax`] for a choice of one,
//! [`lower_bounded_gate`], [`selective_gate`] (every step against those after it). Applied: [`output_gate`], [`convex_mix`],
//! [`power_mix`], [`highway`], [`gated_residual`], [`gated_sum`], and as modules with parameters [`OutputGate`],
//! [`Highway`], [`ConvexGate`], [`TanhGate`] and [`GatedSum`]. All of them keep finite values and gradients at any
//! [`Highway`], [`TanhGate`], [`SelfGate`] and [`GatedSum`]. All of them keep finite values and gradients at any
//! finite logit: a gate may be exactly 0 or 1.

mod activation;
mod convex;
mod functions;
mod layers;
mod power_mix;
mod selective;
mod self_gate;
mod sequential_exit;
mod straight_through;
mod sum;
#[cfg(test)]
mod tests;

pub use activation::{GateActivation, sigmoid};
pub use convex::{ConvexGate, ConvexGateConfig, ConvexMixture, GateLevel};
pub use functions::{
    convex_mix, gated_residual, gumbel_sigmoid, hard_gate, highway, logistic_noise, lower_bounded_gate,
    output_gate,
};
pub use layers::{Highway, HighwayConfig, OutputGate, OutputGateConfig, TanhGate, TanhGateConfig};
pub use power_mix::{gated_power_mix, power_mix};
pub use selective::{selective_gate, selective_log_gate};
pub use self_gate::{SelfGate, SelfGateConfig};
pub use sequential_exit::{ExitDistribution, ExitStep, SequentialExit};
pub use straight_through::{
    first_argmax, gumbel_noise, gumbel_softmax, one_hot_argmax, straight_through_one_hot,
};
pub use sum::{GatedSum, GatedSumConfig, gated_sum};
