//! Linear attention layers alone and mixed with full attention.
//!
//! Wang, Zhu, Abreu, Shan, Kergan, Pan, Chou, Li, Zhang, Huang, Eshraghian: "A Systematic Analysis of
//! Hybrid Linear Attention", 2025, arXiv 2507.06457. Six layers whose memory has a constant size,
//! from a gated vector to the gated delta rule, in one stack with a few layers of softmax attention:
//! which gate a layer has decides how well the hybrid recalls.
//!
//! | layer | memory | forgets | writes |
//! |---|---|---|---|
//! | [`Retention`] (RetNet) | matrix | a fixed share per head | adds |
//! | [`Hgrn`] | vector | a learned share per channel, with a floor | what it forgets |
//! | [`Hgrn2`] | matrix | a learned share per key channel, with a floor | what it forgets |
//! | [`GatedLinearAttention`](crate::gla::GatedLinearAttention) | matrix | a learned share per key channel | adds |
//! | [`DeltaNet`] | matrix | nothing | replaces what the key held |
//! | [`GatedDeltaNet`] | matrix | a learned share per head | replaces what the key held |
//!
//! All of them are [`TokenMixer`](crate::backbone::TokenMixer)s; [`HybridConfig`] stacks one of them
//! with attention at any layers. Names of fields and parameters are those of flash-linear-attention,
//! so [`load_pretrained`](crate::load_pretrained) reads its checkpoints.
//!
//! ```
//! # #[cfg(feature = "flex")] {
//! use burn::tensor::{Device, Int, Tensor};
//! use gatekit_core::ModuleConfig;
//! use gatekit_sequence::hybrid_linear_attention::{HybridAttentionConfig, HybridConfig, Hgrn2Config};
//! use gatekit_sequence::lm::CausalLm;
//!
//! // Three HGRN2 layers to one of attention.
//! let mixer = Hgrn2Config::new(32).with_num_heads(Some(2)).into();
//! let layers = HybridConfig::ratio(3, 1, 4).unwrap();
//! let config = HybridConfig::new(96, 4, mixer).with_attn(Some(HybridAttentionConfig::new(layers, 2)));
//! let device = Device::flex();
//! let model = config.init(&device);
//! let logits = model.forward(Tensor::<2, Int>::from_data([[1, 5, 7]], &device), None); // [1, 3, 96]
//! # let _ = logits;
//! # }
//! ```

mod config;
mod delta_net;
mod gated_deltanet;
mod hgrn;
mod hgrn2;
mod mixer;
mod published;
mod retention;

pub(crate) use delta_net::write_strength;
pub(crate) use gated_deltanet::{Heads, a_log, dt_bias};

pub use config::{HybridAttentionConfig, HybridConfig};
pub use delta_net::{DeltaNet, DeltaNetConfig};
pub use gated_deltanet::{GatedDeltaNet, GatedDeltaNetConfig};
pub use hgrn::{Hgrn, HgrnConfig};
pub use hgrn2::{Hgrn2, Hgrn2Config};
pub use mixer::{HybridForCausalLm, HybridLayerState, HybridMixer, HybridMixerConfig, HybridState};
pub use retention::{Retention, RetentionConfig};
