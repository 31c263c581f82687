//! Several modalities, one representation.
//!
//! | module | owns |
//! |---|---|
//! | [`bihierarchical_fusion`] | a sequence branch and a structure branch that hear of one another at every level |
//! | [`pacgnet`] | PACGNet: cross-gated dual-stream detection of oriented objects in RGB and infrared images |
//! | [`touchformer`] | TouchFormer: touch sensors behind gates with a threshold, some of them missing or useless |
#![deny(missing_docs)]

pub mod bihierarchical_fusion;
pub mod pacgnet;
pub mod touchformer;

pub use pacgnet::{PacgNet, PacgNetConfig};
pub use touchformer::{TouchFormer, TouchFormerConfig};
