//! ImageBind-LLM: one vector of a joint embedding space, injected into every token of a language model without
//! attention.
//!
//! | module | owns |
//! |---|---|
//! | [`config`] | sizes, published configurations |
//! | [`bind`] | the bind network: a joint embedding to a vector of the language model's width |
//! | [`attention`] | causal rotary attention with an injected visual value, and its key/value cache |
//! | [`lora`] | low-rank and bias deltas on frozen projections |
//! | [`model`] | the decoder, the loss |
//! | [`decode`] | decoding with a cache, generation with temperature and nucleus |
//! | [`phases`] | pre-training and fine-tuning: what trains, weight decay, learning rate |
//! | [`batch`] | prompts and answers as padded token tensors |
//! | [`mix`] | arithmetic in the embedding space |
//! | [`cache`] | training-free retrieval and blending |
//! | [`embedder`] | frozen encoders into the joint space |
//! | [`layout`] | the names of the published checkpoint |
//!
//! From a picture (or a sound, or a weighted mix) to words:
//!
//! ```
//! # #[cfg(feature = "flex")] {
//! use burn::tensor::{Device, Distribution, Tensor};
//! use gatekit_core::ModuleConfig;
//! use gatekit_fusion::imagebind_llm::{GenerationConfig, ImageBindLlmConfig, ModalityMix};
//!
//! let device = Device::flex();
//! let model = ImageBindLlmConfig::new()
//!     .with_modality_dim(16)
//!     .with_d_model(32)
//!     .with_heads(4)
//!     .with_layers(2)
//!     .with_vocab(50)
//!     .with_ffn_hidden(64)
//!     .init(&device);
//! // An image and a sound, in equal parts.
//! let embeddings = Tensor::<3>::random([2, 1, 16], Distribution::Normal(0.0, 1.0), &device);
//! let mixed = ModalityMix::new(vec![1.0, 1.0]).unwrap().forward(embeddings).unwrap();
//! let visual = model.visual(mixed).unwrap();
//! let config = GenerationConfig::new().with_max_new_tokens(5).with_eos_token_id(Some(2));
//! let words = model.generate(&[vec![1, 7, 9]], Some(visual), &config).unwrap();
//! assert!(words[0].len() <= 5);
//! # }
//! ```
//!
//! Han, Zhang, Shao et al., "ImageBind-LLM: Multi-modality Instruction Tuning" (arXiv 2309.03905).

pub mod attention;
pub mod batch;
pub mod bind;
pub mod cache;
pub mod config;
pub mod decode;
pub mod embedder;
pub mod layout;
pub mod lora;
pub mod mix;
pub mod model;
pub mod phases;

pub use attention::{InjectedAttention, InjectedAttentionConfig};
pub use batch::CaptionBatch;
pub use bind::{BindBlock, BindNetwork, BindNetworkConfig, BindNorm};
pub use cache::{FlatIndex, Retrieval, VectorIndex, VisualCache, VisualCacheConfig};
pub use config::ImageBindLlmConfig;
pub use decode::{DecodingState, GenerationConfig, GenerationError};
pub use embedder::Embedder;
pub use layout::merge_published;
pub use lora::{LoraDelta, LoraLinear};
pub use mix::ModalityMix;
pub use model::{Block, FeedForward, ImageBindLlm, Llama, caption_loss};
pub use phases::{Phase, PhaseConfig, PhaseTrainer};
