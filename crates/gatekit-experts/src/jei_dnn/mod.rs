//! JEI-DNN: a frozen network whose samples leave early, with gates and classifiers that learn from
//! each other.
//!
//! Regol, Chataoui, Coates: "Jointly-Learned Exit and Inference for a Dynamic Neural Network:
//! JEI-DNN", ICLR 2024, arXiv 2310.09163; code networkslab/dynn.
//!
//! After every block of a trained network stand a small classifier and a gate of five parameters that
//! looks at how sure the classifier is. Gates (leave here?) and classifiers (answer here) are trained in
//! turns, each against the other as it is, so that a classifier learns on the samples that will really
//! leave at it.
//!
//! | item | owns |
//! |---|---|
//! | [`UncertaintyGate`] | four measures of a classifier's doubt to one logit |
//! | [`SequentialExit`](gatekit_core::gate::SequentialExit) | gate values to a distribution over exits (core) |
//! | [`EarlyExits`] | classifiers and gates on given features |
//! | [`DynamicNetwork`], [`StagedBackbone`] | the same behind a network in stages; [`infer`](DynamicNetwork::infer) stops computing |
//! | [`exit_gate_loss`], [`inference_module_loss`], [`warmup_loss`] | what they are trained on |
//! | [`AlternatingTrainer`], [`ExitLearner`], [`SgdExitLearner`] | warm-up, then phases in turns |
//! | [`ExitReport`], [`ConformalThresholds`] | accuracy, cost, calibration, sets of labels |
//!
//! ```
//! # #[cfg(feature = "flex")] {
//! use burn::tensor::{Device, Tensor};
//! use gatekit_core::ModuleConfig;
//! use gatekit_experts::jei_dnn::JeiDnnConfig;
//!
//! // Three exits and the final head, each a quarter of the cost further.
//! let config = JeiDnnConfig::new(3, 16, 10, vec![0.25, 0.5, 0.75, 1.0]);
//! let exits = config.init(&Device::flex());
//! let output = exits.forward(Tensor::zeros([2, 4, 16], &Device::flex()));
//! let decision = exits.decide(&output)?;
//! assert_eq!(decision.logits.dims(), [2, 10]);
//! # }
//! # Ok::<(), gatekit_core::InputError>(())
//! ```

mod config;
mod evaluation;
mod exits;
mod gate;
mod learner;
mod losses;
mod network;
mod training;

pub use config::{GateObjective, JeiDnnConfig, ModuleWeighting};
pub use evaluation::{ConformalThresholds, ExitReport};
pub use exits::{EarlyExits, ExitDecision, ExitOutput};
pub use gate::{UncertaintyGate, uncertainty_features};
pub use learner::{ExitSamples, SgdExitLearner};
pub use losses::{
    BestExits, ExitGateLoss, best_exits, exit_gate_loss, inference_module_loss, positive_weights, warmup_loss,
};
pub use network::{DynamicNetwork, ExitAnswers, StagedBackbone, normalised_costs};
pub use training::{AlternatingTrainer, ExitLearner, ExitPhase, TrainingReport};
