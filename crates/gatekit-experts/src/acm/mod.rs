//! Adaptive computation modules: a layer of a trained transformer becomes a chain of small learners whose partial sums
//! are each a valid output, and a tiny gate decides for each token after how many learners to stop.
//!
//! Wójcik, Devoto, Pustelnik, Minervini, Scardapane: "Adaptive Computation Modules: Granular Conditional Computation
//! For Efficient Inference", AAAI 2025, arXiv 2312.10193.
//!
//! | step | what does it |
//! |---|---|
//! | a trained model becomes one of modules | [`Acmize`], for projections, MLPs, [`DenseBlock`]s and stacks of them |
//! | phase 1: learners imitate what they replace | [`distillation_loss`] over what [`Acmize::record`] saw |
//! | phase 2: gates learn where more learners stop to help | [`gate_pretraining_loss`] |
//! | phase 3: the whole model, within a budget | the model's gates and [`AcmObjective`] |
//! | inference | [`AcmMode::Gated`], which runs what was chosen and no more; [`ModelCost`] counts it |
//!
//! ```
//! # #[cfg(feature = "flex")] {
//! use burn::tensor::{Device, Tensor};
//! use gatekit_core::ModuleConfig;
//! use gatekit_experts::acm::{AcmConfig, AcmMode};
//!
//! let device = Device::flex();
//! let layer = AcmConfig::mlp(64, 256, 4).init(&device); // four learners of width 64
//! let x = Tensor::<3>::zeros([2, 10, 64], &device);
//! let out = layer.forward(x, AcmMode::Gated).unwrap();
//! assert_eq!(out.y.dims(), [2, 10, 64]);
//! assert_eq!(out.choice.dims(), [2, 10]); // learners that every token used
//! # }
//! ```

mod acmize;
mod block;
mod config;
mod cost;
mod dense;
mod gate;
mod layer;
mod learners;
mod losses;
mod phases;

pub use acmize::{Acmize, AcmizeConfig, HasAcms, Recorded};
pub use block::{AcmAttention, AcmBlock, AcmBlockConfig, AcmBlockOutput, BLOCK_ACMS};
pub use config::{AcmActivation, AcmBias, AcmConfig, AcmGateConfig, AcmGateKind, AcmLearnersConfig};
pub use cost::{AcmCost, ModelCost, linear_cost};
pub use dense::{DenseAttention, DenseBlock, DenseBlockConfig};
pub use gate::{AcmGate, AcmGateOutput};
pub use layer::{Acm, AcmMode, AcmOutput};
pub use learners::AcmLearners;
pub use losses::{
    AcmLosses, AcmObjective, BudgetLoss, compute_diversity, compute_share, distill, gate_entropy,
    gate_labels, gate_loss, stack_gates,
};
pub use phases::{distillation_loss, gate_pretraining_loss};
