//! Several modalities, one representation.
//!
//! | module | owns |
//! |---|---|
//! | [`bihierarchical_fusion`] | a sequence branch and a structure branch that hear of one another at every level |
//! | [`irregular_ehr`] | irregular vital signs and notes of a stay: interpolated and carried forward, gated, fused hour by hour |
//! | [`pacgnet`] | PACGNet: cross-gated dual-stream detection of oriented objects in RGB and infrared images |
#![deny(missing_docs)]

pub mod bihierarchical_fusion;
pub mod irregular_ehr;
pub mod pacgnet;

pub use pacgnet::{PacgNet, PacgNetConfig};
