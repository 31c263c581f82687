//! MixER: many related dynamical systems learned together by a mixture of meta-learned vector fields.
//!
//! Nzoyem, Stevens, Sahota, Barton, Deakin: "Towards Foundational Models for Dynamical System
//! Reconstruction: Hierarchical Meta-Learning via Mixture of Experts", 2025, arXiv 2502.05335. Every
//! system, an *environment*, has a context vector; a gate on the context picks one expert, and the
//! expert's weights move with the context:
//!
//! ```text
//! p = softmax([xi, 1] G)     i = argmax p     dy/dt = f_i(y, xi_i + shift_i)
//! ```
//!
//! The gate is not trained by gradients. After every step it is refitted: k-means on the contexts, one
//! expert for every cluster by its loss there, one least-squares solve for G.
//!
//! With much data on one family of systems it is worse than a single meta-learner: clusters are forced on
//! what has none, and every expert sees a part of the data.
//!
//! # What is here
//!
//! | item | what it is |
//! |---|---|
//! | [`ContextGate`] | the gate |
//! | [`KMeansGateUpdate`] | its refitting, a pure function |
//! | [`MetaExpert`] | an expert whose weights move with a context: [`GepsField`], [`CodaField`], or one's own |
//! | [`MixerField`] | experts and gate: `dy/dt` |
//! | [`OdeSolver`] | [`Rk4`] with fixed steps, [`DormandPrince`] with adaptive ones |
//! | [`ContextTable`] | the contexts |
//! | [`MixerTrainer`] | proximal alternating minimisation with gate refits |
//! | [`adapt`] | contexts of new environments for a trained field |
//! | [`AdaBelief`] | the optimiser |

mod adabelief;
mod adaptation;
mod coda;
mod config;
mod contexts;
mod dormand_prince;
mod expert;
mod field;
mod gate;
mod gate_update;
mod geps;
mod losses;
mod mixture;
mod proximal;
mod root;
mod solver;
mod trainer;
mod trainer_config;

pub use adabelief::{AdaBelief, AdaBeliefConfig};
pub use adaptation::{Adaptation, AdaptationConfig, adapt};
pub use coda::{CodaField, HyperLayer};
pub use config::{MetaLearner, MixerFieldConfig};
pub use contexts::ContextTable;
pub use dormand_prince::DormandPrince;
pub use expert::{MetaExpert, MixerExpert};
pub use field::{BoundField, MixerField};
pub use gate::ContextGate;
pub use gate_update::{GateUpdate, KMeansGateUpdate};
pub use geps::{GepsField, LeftFactors, LeftLayer, RightFactors, RightLayer};
pub use losses::{context_objective, environment_losses};
pub use mixture::SoftField;
pub use root::{AdaptedRoot, RootLayer, RootNetwork};
pub use solver::{OdeSolver, Rk4, SolveError, StackedField, VectorField};
pub use trainer::{GateReport, MixerError, MixerTrainer, OuterStep};
pub use trainer_config::{GateTraining, MixerTrainingConfig};
