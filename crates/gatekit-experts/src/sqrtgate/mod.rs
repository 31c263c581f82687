//! SqrtGate, MuonH and HyperP: experts, weights and learning rates that keep their power.
//!
//! Ren, Liu, Shen, Chen: "Rethinking Language Model Scaling under Transferable Hypersphere Optimization",
//! 2026, arXiv 2603.28743.
//!
//! ```text
//! W' = |W| (W - lr |W| U / |U|) / |W - lr |W| U / |U||        U: the update, orthogonalised (MuonH) or Adam's (AdamH)
//! y = sum_k sqrt(p_k) f_k(x)                                   sum_k sqrt(p_k)^2 = 1
//! ```
//!
//! Weights stay on spheres of fixed Frobenius norm, so all experts' outputs have about the same RMS; gates
//! that are the square roots of the routing probabilities then keep the RMS of their sum, however many
//! experts are active; and one learning rate, which is a relative step, holds for every width, depth and
//! number of experts, up to the factors of [`HyperP`].
//!
//! | item | owns |
//! |---|---|
//! | [`SqrtGateMoe`], [`SqrtGateConfig`] | the layer |
//! | [`init`] | how projections, embeddings and heads start |
//! | [`global_balance`] | its balancing loss over several devices or micro-batches |
//! | [`newton_schulz`], [`sphere_step`], [`frobenius_norm`] | what the optimisers are made of |
//! | [`MuonH`], [`AdamH`] | optimisers on the sphere, for Burn's `ModuleOptimizer` and learner |
//! | [`SphereOptimizer`] | sends every parameter to its optimiser; refuses zero weights, reports NaN gradients |
//! | [`HyperP`], [`HyperPScheduler`] | learning rate and residual scale of a run, and the schedule |
//! | [`StabilityProbe`] | output RMS, router z and outliers by layer |

mod adam_h;
mod balance;
mod config;
mod guard;
mod hyper_p;
pub mod init;
mod layer;
mod muon_h;
mod optimizer;
mod probe;
mod sphere;

pub use adam_h::{AdamH, AdamHConfig, AdamHState};
pub use balance::{GlobalBalance, global_balance};
pub use config::SqrtGateConfig;
pub use guard::{Guarded, SkippedGradient, SkippedGradients};
pub use hyper_p::{HyperP, HyperPConfig, HyperPScheduler, Schedule};
pub use layer::{SqrtGateMoe, SqrtGateOutput};
pub use muon_h::{MuonH, MuonHConfig, MuonHState};
pub use optimizer::{SphereGroup, SphereOptimizer, SphereOptimizerConfig};
pub use probe::StabilityProbe;
pub use sphere::{frobenius_norm, newton_schulz, sphere_step};
