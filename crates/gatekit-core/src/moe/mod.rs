//! The mixture-of-experts layer: router, SwiGLU experts, shared expert, and the names under which
//! the published models keep them.
//!
//! ```text
//! y = sum_k w_k f_k(x) + shared(x)        f(x) = down(silu(gate(x)) * up(x))
//! ```
//!
//! Mixtral (arXiv 2401.04088), DeepSeek-V3 (2412.19437), Qwen3-MoE (2505.09388).
//!
//! ```
//! # #[cfg(feature = "flex")] {
//! use burn::tensor::{Device, Distribution, Tensor};
//! use gatekit_core::ModuleConfig;
//! use gatekit_core::moe::MoeLayerConfig;
//! use gatekit_core::router::{BalanceLosses, CountNormalizer};
//!
//! let device = Device::flex();
//! let layer = MoeLayerConfig::new(16, 32).with_num_experts(4).init(&device);
//! let x = Tensor::<3>::random([2, 5, 16], Distribution::Default, &device);
//! let (y, routing) = layer.forward_with_routing(x);
//! let losses = BalanceLosses::new(&routing, [2, 5], None, CountNormalizer::Tokens);
//! let loss = losses.load_balance * 0.01 + losses.z_loss * 0.001;
//! # let _ = (y, loss);
//! # }
//! ```

mod config;
mod experts;
mod layer;
#[cfg(test)]
mod tests;

pub use config::{MoeLayerConfig, MoeLayout};
pub use experts::SwiGluExperts;
pub use layer::{MoeLayer, SharedExpert};
