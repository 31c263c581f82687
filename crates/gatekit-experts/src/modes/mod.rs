//! MoDES: experts that matter little are skipped, token by token, without any training.
//!
//! Huang, Wang, Yuan, Ding, Gong, Guo, Liu, Zhang: "MoDES: Accelerating Mixture-of-Experts
//! Multimodal Large Language Models via Dynamic Expert Skipping", 2025, arXiv 2511.15690.
//!
//! ```text
//! share_nk = w_nk / (sum_k w_nk + 1e-20)        of the router's K weights of token n
//! score_nk = alpha[l, m(n)] share_nk            m(n): text or vision; other tokens: the share
//! skip slot (n, k)   where   score_nk < tau[m(n)]
//! ```
//!
//! The importance `alpha` of a layer for text and for vision tokens is measured once: how far the
//! logits at the answers move when the layer's routed experts are off for the tokens of that
//! modality ([`Calibrator`]). The two thresholds follow from how many slots are to be skipped
//! ([`FrontierSearch`]). Skipped slots leave the routing before tokens are sorted by expert, so the
//! grouped products get smaller and their rows cost nothing. The kept weights stay as they are;
//! where all slots of a token are skipped, its shared expert and the residual around the layer
//! remain.
//!
//! | item | owns |
//! |---|---|
//! | [`ExpertSkipper`] | routing and modalities in, pruned routing out |
//! | [`SkippingMoeLayer`] | a mixture-of-experts layer behind a skipper |
//! | [`LayerImportance`] | the table `[L, 2]` |
//! | [`SkippableModel`] | what a model offers so that it can be calibrated and searched |
//! | [`Calibrator`] | importance, and the loss and ratio of thresholds |
//! | [`FrontierSearch`] | the best pair of thresholds for a ratio |
//! | [`SkipStats`] | skipped and total slots by layer and modality |
//!
//! ```
//! # #[cfg(feature = "flex")] {
//! use burn::tensor::{Device, Distribution, Tensor};
//! use gatekit_core::ModuleConfig;
//! use gatekit_core::moe::MoeLayerConfig;
//! use gatekit_experts::modes::{SkippingMoeLayer, Thresholds, TokenModalities};
//!
//! let device = Device::flex();
//! let moe = MoeLayerConfig::new(16, 32).with_num_experts(8).with_num_experts_per_tok(4);
//! let mut layer = SkippingMoeLayer::new(moe.init(&device), &device);
//! layer.skipper.set_importance([0.4, 0.2]).unwrap();
//! layer.skipper.set_thresholds(Thresholds::new(0.05, 0.06).unwrap());
//! // One sequence: a special token, four patches of an image, three words.
//! let modalities = TokenModalities::from_codes(&[2, 1, 1, 1, 1, 0, 0, 0]).unwrap();
//! let x = Tensor::<3>::random([1, 8, 16], Distribution::Default, &device);
//! let forward = layer.forward_with(x, &modalities, &Default::default()).unwrap();
//! println!("{:.0}% skipped", 100.0 * forward.decision.counts().ratio());
//! # }
//! ```

mod calibrator;
mod importance;
mod layer;
mod modality;
mod model;
mod search;
mod skipper;
mod stats;

pub use calibrator::{Calibration, CalibrationLoss, Calibrator, CalibratorConfig, Measurement, References};
pub use importance::LayerImportance;
pub use layer::{SkippedForward, SkippingMoeLayer, SkippingMoeLayerConfig};
pub use modality::{Modality, TokenModalities};
pub use model::SkippableModel;
pub use search::{Frontier, FrontierSearch, FrontierSearchConfig, GridMap, SearchError};
pub use skipper::{Bypass, ExpertSkipper, ExpertSkipperConfig, SkipDecision, Thresholds};
pub use stats::{SkipCounts, SkipStats};
