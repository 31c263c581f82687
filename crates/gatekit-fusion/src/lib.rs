//! Several modalities, one representation.
//!
//! | module | owns |
//! |---|---|
//! | [`bihierarchical_fusion`] | a sequence branch and a structure branch that hear of one another at every level |
//! | [`fpro`] | FPro: image restoration guided by prompts of low and high frequencies |
//! | [`irregular_ehr`] | irregular vital signs and notes of a stay: interpolated and carried forward, gated, fused hour by hour |
//! | [`imagebind_llm`] | ImageBind-LLM: a joint embedding injected into a language model through gates that start at 0 |
//! | [`pacgnet`] | PACGNet: cross-gated dual-stream detection of oriented objects in RGB and infrared images |
//! | [`touchformer`] | TouchFormer: touch sensors behind gates with a threshold, some of them missing or useless |
//! | [`two_views`] | cepstra and self-supervised frames of speech, fused four ways to detect forgeries |
#![deny(missing_docs)]

pub mod bihierarchical_fusion;
pub mod fpro;
pub mod imagebind_llm;
pub mod irregular_ehr;
pub mod pacgnet;
pub mod touchformer;
pub mod two_views;

pub use fpro::{FPro, FProConfig};
pub use pacgnet::{PacgNet, PacgNetConfig};
pub use touchformer::{TouchFormer, TouchFormerConfig};
