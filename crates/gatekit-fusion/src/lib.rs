//! Several modalities, one representation.
//!
//! | module | owns |
//! |---|---|
//! | [`bihierarchical_fusion`] | a sequence branch and a structure branch that hear of one another at every level |
//! | [`imagebind_llm`] | ImageBind-LLM: a joint embedding injected into a language model through gates that start at 0 |
//! | [`pacgnet`] | PACGNet: cross-gated dual-stream detection of oriented objects in RGB and infrared images |
#![deny(missing_docs)]

pub mod bihierarchical_fusion;
pub mod imagebind_llm;
pub mod pacgnet;

pub use pacgnet::{PacgNet, PacgNetConfig};
