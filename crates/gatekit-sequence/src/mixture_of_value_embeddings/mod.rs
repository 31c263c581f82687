//! MoVE: mixture of value embeddings.
//!
//! Li: "MoVE: Mixture of Value Embeddings - A New Axis for Scaling Parametric Memory in
//! Autoregressive Models" (arXiv 2601.22887). One bank of value embeddings, indexed by token and
//! shared by all layers, holds M slots for every token. In every layer gates of each head mix the
//! slots into the value projection, so memory grows by adding slots, without depth or width:
//!
//! ```text
//! m_{t,i} = E[id_t, i]                        looked up once for all layers
//! g_t = 2 sigmoid(W_g x_t)                    M + 1 gates a head, of the layer's normalised input
//! v~_t = g_{t,0} v_t + sum_i g_{t,i} m_{t,i}  what attention reads and the cache keeps
//! ```
//!
//! | type | is |
//! |---|---|
//! | [`ValueEmbeddingBank`] | the table; owned by a model, never by a layer |
//! | [`ValueMixer`] | the gates and the sum |
//! | [`MoveAttention`], [`MoveLatentAttention`], [`MoveImageAttention`] | attention around it |
//! | [`ValueMemory`] | one bank for all layers, or a baseline: tables of single layers (LaVE), none |
//! | [`MoveTextModel`] | a language model, blocks as in nanochat |
//! | [`MoveImageModel`] | a class-conditional model of pictures, blocks as in LlamaGen |
//! | [`MoveOptimizer`] | the text model's optimiser |
//!
//! Names of fields and parameters are nanochat's and LlamaGen's.
//!
//! ```
//! # #[cfg(feature = "flex")] {
//! use burn::tensor::{Device, Int, Tensor};
//! use gatekit_core::ModuleConfig;
//! use gatekit_sequence::lm::{CausalLm, StreamingLm};
//! use gatekit_sequence::mixture_of_value_embeddings::{MoveTextConfig, ValueMemory};
//!
//! let device = Device::flex();
//! let model = MoveTextConfig::new(96, 2, 4, 32)
//!     .with_memory(ValueMemory::Global { slots: 4 })
//!     .init(&device);
//! let ids = Tensor::<2, Int>::from_data([[1, 5, 7, 2]], &device);
//! let logits = model.forward(ids.clone(), None); // [1, 4, 96]
//! let (streamed, state) = model.prefill(ids, model.empty_state(1, &device));
//! # let _ = (logits, streamed, state);
//! # }
//! ```

mod attention;
mod bank;
mod cache;
mod image;
mod image_attention;
mod image_config;
mod image_generate;
mod init;
mod latent;
mod memory;
mod mixer;
mod text;
mod text_config;
mod training;

pub use attention::{MoveAttention, MoveAttentionConfig};
pub use bank::{ValueEmbeddingBank, ValueEmbeddingBankConfig};
pub use cache::{MoveCache, MoveLatentCache};
pub use image::{MoveImageBlock, MoveImageModel, MoveImageState};
pub use image_attention::{MoveImageAttention, MoveImageAttentionConfig};
pub use image_config::MoveImageConfig;
pub use image_generate::guided;
pub use latent::{LatentTarget, MoveLatentAttention, MoveLatentAttentionConfig};
pub use memory::{ValueEmbeddings, ValueMemory};
pub use mixer::{ValueMixer, ValueMixerConfig};
pub use text::{
    IGNORED_TARGET, MoveBlock, MoveMlp, MoveTextModel, MoveTextState, TextAttention, Transformer,
};
pub use text_config::MoveTextConfig;
pub use training::{MoveLearningRates, MoveOptimizer};
