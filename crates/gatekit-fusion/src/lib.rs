//! Several modalities, one representation.
//!
//! | module | owns |
//! |---|---|
//! | [`bihierarchical_fusion`] | a sequence branch and a structure branch that hear of one another at every level |
//! | [`fpro`] | FPro: image restoration guided by prompts of low and high frequencies |
//! | [`pacgnet`] | PACGNet: cross-gated dual-stream detection of oriented objects in RGB and infrared images |
#![deny(missing_docs)]

pub mod bihierarchical_fusion;
pub mod fpro;
pub mod pacgnet;

pub use fpro::{FPro, FProConfig};
pub use pacgnet::{PacgNet, PacgNetConfig};
