//! Mixtures of experts, early exit and conditional computation.
//!
//! | module | owns |
//! |---|---|
//! | [`acm`] | adaptive computation modules: as many learners as a token needs |
//! | [`dispatch`] | sorting tokens by expert, grouped products, capacity (from the core) |
//! | [`hecto`] | a recurrent and a feed-forward expert behind a top-1 gate |
//! | [`jei_dnn`] | early exits whose gates and classifiers learn from each other |
//! | [`mixer_experts`] | MixER: experts on dynamical systems, their gate refitted by k-means and least squares |
//! | [`modes`] | skipping experts that matter little, without training: importance, thresholds, frontier search |
//! | [`moe_continual_learning`] | linear experts in continual learning, and when their gate must stop learning |
//! | [`moe`] | the mixture-of-experts layer of Mixtral, Qwen3-MoE and DeepSeek-V3 (from the core) |
//! | [`router`] | which experts a token goes to, with which weight; what keeps them evenly used (from the core) |
//! | [`sqrtgate`] | mixture of experts, optimisers and learning rates that keep the power of outputs and weights |
//! | [`thor`] | experts drawn at random in place of a router, trained to agree |
//!
//! # Example
//!
//! A sparse layer in a module of one's own, trained with balanced experts:
//!
//! ```
//! # #[cfg(feature = "flex")] {
//! use burn::tensor::{Device, Distribution, Tensor};
//! use gatekit_core::ModuleConfig;
//! use gatekit_experts::moe::MoeLayerConfig;
//! use gatekit_experts::router::{BalanceLosses, CountNormalizer, ScoringFunc};
//!
//! let device = Device::flex().autodiff();
//! // Eight experts of width 32, two a token, and one that every token goes to.
//! let config = MoeLayerConfig::new(16, 32)
//!     .with_scoring_func(ScoringFunc::Sigmoid)
//!     .with_selection_bias(Some(true))
//!     .with_shared_intermediate_size(32);
//! let mut layer = config.init(&device);
//!
//! let x = Tensor::<3>::random([4, 10, 16], Distribution::Default, &device);
//! let (y, routing) = layer.forward_with_routing(x.clone());
//! let losses = BalanceLosses::new(&routing, [4, 10], None, CountNormalizer::Tokens);
//! let loss = (y - x).square().mean() + losses.load_balance * 0.01 + losses.z_loss * 0.001;
//! let gradients = loss.backward();
//! // After the optimiser's step, in place of the loss or beside it:
//! layer.gate.rebalance(&config.balancer(), &losses.tokens_per_expert);
//! # let _ = gradients;
//! # }
//! ```
//!
//! The parts alone, for experts that are no SwiGLU:
//!
//! ```
//! # #[cfg(feature = "flex")] {
//! use burn::tensor::{Device, Distribution, Tensor};
//! use gatekit_core::ModuleConfig;
//! use gatekit_experts::dispatch::{DispatchPlan, GroupedLinearConfig};
//! use gatekit_experts::router::{Phase, RouterConfig, RouterInputs};
//!
//! let device = Device::flex();
//! let router = RouterConfig::new(16).with_num_experts(4).init(&device);
//! let experts = GroupedLinearConfig::new(4, 16, 16).init(&device);
//!
//! let x = Tensor::<2>::random([10, 16], Distribution::Default, &device);
//! let routing = router.route(x.clone(), &RouterInputs::default(), Phase::Inference).unwrap();
//! let plan = DispatchPlan::new(&routing.assignment);
//! let outputs = experts.forward(plan.gather(x), plan.offsets());
//! let y = plan.scatter_combine(outputs, routing.weights); // [10, 16]
//! # let _ = y;
//! # }
//! ```
#![deny(missing_docs)]

pub mod acm;
pub mod hecto;
pub mod jei_dnn;
pub mod mixer_experts;
pub mod modes;
pub mod moe_continual_learning;
mod random;
pub mod sqrtgate;
pub mod thor;

pub use gatekit_core::{dispatch, moe, router};
