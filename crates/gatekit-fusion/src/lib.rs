//! Several modalities, one representation.
//!
//! | module | owns |
//! |---|---|
//! | [`pacgnet`] | PACGNet: cross-gated dual-stream detection of oriented objects in RGB and infrared images |
#![deny(missing_docs)]

pub mod pacgnet;

pub use pacgnet::{PacgNet, PacgNetConfig};
