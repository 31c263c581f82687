//! Hecto: unlike experts, a recurrent and a feed-forward one, behind a top-1 gate.
//!
//! Pandey, Chopra, Bhat, Abhyudaya: "Hecto: Modular Sparse Experts for Adaptive and Interpretable
//! Reasoning", 2025, arXiv 2506.22919.
//!
//! A gate on the sentence vector sends each input to one expert: a GRU that reads the sequence of
//! tokens, or a feed-forward net that reads the sentence vector. The choice itself says which kind of
//! reasoning an input needs.
//!
//! | item | owns |
//! |---|---|
//! | [`Top1Gate`], [`Estimator`] | the choice, and how it is trained |
//! | [`SequenceExpert`], [`GruExpert`], [`FfnnExpert`], [`HectoExpert`] | unlike experts behind one signature |
//! | [`HectoHead`] | projection, gate and experts on the states of any encoder |
//! | [`HectoModel`] | the head on a small transformer encoder |
//! | [`HectoLoss`] | task, entropy, diversity |
//! | [`ExpertUsage`] | which classes go to which expert |
//!
//! ```
//! # #[cfg(feature = "flex")] {
//! use burn::tensor::{Bool, Device, Tensor};
//! use gatekit_core::ModuleConfig;
//! use gatekit_experts::hecto::HectoConfig;
//!
//! let device = Device::flex();
//! let head = HectoConfig::new().with_encoder_dim(16).with_input_dim(8).with_hidden_dim(8).init(&device);
//! let mask = Tensor::<2, Bool>::from_data([[true, true, true], [true, true, false]], &device);
//! let output = head.forward(Tensor::ones([2, 3, 16], &device), mask)?;
//! assert_eq!((output.y.dims(), output.probs.dims(), output.choice.dims()), ([2, 4], [2, 2], [2]));
//! # }
//! # Ok::<(), gatekit_core::InputError>(())
//! ```

mod config;
mod experts;
mod gate;
mod head;
mod losses;
mod model;
mod usage;

pub use config::{Estimator, ExpertKind, HectoConfig};
pub use experts::{FfnnExpert, Gru, GruConfig, GruExpert, HectoExpert, SequenceExpert};
pub use gate::{Top1Choice, Top1Gate, Top1GateConfig};
pub use head::{HectoHead, HectoOutput, check_mask};
pub use losses::{HectoLoss, HectoLossConfig, HectoLosses, HectoTargets, HectoTask};
pub use model::{HectoModel, HectoModelConfig};
pub use usage::ExpertUsage;
