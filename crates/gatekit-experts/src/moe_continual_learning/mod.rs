//! A mixture of experts that learns task after task, and when its gate must stop learning.
//!
//! Li, Lin, Duan, Liang, Shroff: "Theory on Mixture-of-Experts in Continual Learning", 2024, arXiv
//! 2406.16437. A round brings one data set of one task. A linear gate sends all of it to one linear
//! expert, which moves to the nearest exact fit:
//!
//! ```text
//! h = Theta sum_i x_i     m = argmax(h + noise)     w_m <- w_m + X^T (X X^T)^-1 (y - X w_m)
//! ```
//!
//! The gate learns from how far that expert had to move ([`LocalityLoss`]) and from the load so far
//! ([`CumulativeLoadLoss`]). Once it tells the tasks apart its updates do harm: all experts look alike
//! to the losses, and the noise of the updates ruins the routing. [`GateTerminator`] says when that is.
//!
//! # What the theory says
//!
//! - In the first rounds the experts specialise, each on one cluster of tasks that are nearly alike;
//!   some rounds later the gate separates the clusters.
//! - With the gate stopped, every expert stays on its cluster: forgetting ends, and an expert's error
//!   falls by the factor `1 - s/d` in every round of its own.
//! - Without, errors grow again. More experts need more rounds to explore and may not help.
//!
//! # What is here
//!
//! | item | what it is |
//! |---|---|
//! | [`TaskRouter`] | the gate, with what it remembers of the rounds so far |
//! | [`MinNormExperts`] | linear experts that move to the nearest exact fit |
//! | [`LocalityLoss`], [`CumulativeLoadLoss`] | what the gate learns from |
//! | [`GateTerminator`] | when the gate stops learning; for any router |
//! | [`ContinualMoe`] | the algorithm, round by round |
//! | [`ErrorLedger`] | forgetting and generalisation, measured |
//! | [`ExpectedErrors`] | the same, expected, by closed formulas |
//! | [`SyntheticTasks`] | the tasks of the paper's simulations |
//!
//! Losses and terminator serve deep networks too: an expert's drift is then [`parameter_drift`], the
//! distance between its parameters before and after a round.

mod config;
mod errors;
mod expected;
mod experts;
mod losses;
mod model;
mod router;
mod tasks;
mod terminator;

pub use config::{ContinualMoeConfig, Variant};
pub use errors::{ErrorLedger, squared_errors};
pub use expected::{ExpectedErrors, ExpectedErrorsConfig, ExpectedRun};
pub use experts::{MinNormExperts, parameter_drift};
pub use losses::{CumulativeLoadLoss, LocalityLoss};
pub use model::{ContinualMoe, Round};
pub use router::{TaskRouter, TaskRouting};
pub use tasks::{Design, SyntheticTasks, SyntheticTasksConfig, TaskData};
pub use terminator::{GateTerminator, GateTerminatorConfig};
