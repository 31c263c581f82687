//! Gating layers for [Burn](https://burn.dev): gates, linear recurrences, attention, and the
//! published systems built from them.
//!
//! A gate decides, from data, how much of something passes. [`core`] owns the mechanisms,
//! [`sequence`] composes them into token mixers and language models, and [`device`] names the
//! devices they run on.
//!
//! ```
//! use burn::{module::Module, tensor::{Device, Distribution, Tensor}};
//! use gatekit::prelude::*;
//!
//! /// A module of one's own with a gated-linear-attention layer in it.
//! #[derive(Module, Debug)]
//! struct Encoder {
//!     norm: RmsNorm,
//!     mixer: GatedLinearAttention,
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let device = gatekit::device::parse("flex")?;
//! let encoder = Encoder {
//!     norm: RmsNormConfig::new(64).try_init(&device)?,
//!     mixer: GatedLinearAttentionConfig::new(64).try_init(&device)?,
//! };
//! let x = Tensor::<3>::random([2, 100, 64], Distribution::Normal(0.0, 1.0), &device);
//! let y = x.clone() + encoder.mixer.forward(encoder.norm.forward(x), None);
//! assert_eq!(y.dims(), [2, 100, 64]);
//! # Ok(())
//! # }
//! ```
#![deny(missing_docs)]

pub mod device;

pub use gatekit_core as core;
pub use gatekit_sequence as sequence;

/// What most programs need.
pub mod prelude {
    pub use gatekit_core::{
        ConfigError, InputError, ModuleConfig,
        gate::GateActivation,
        norm::{GatedRmsNorm, GatedRmsNormConfig, RmsNorm, RmsNormConfig},
        sequence::{Boundaries, Packing},
    };
    pub use gatekit_sequence::{
        gla::{GatedLinearAttention, GatedLinearAttentionConfig, GlaConfig, GlaForCausalLm},
        lm::{CausalLm, StreamState, StreamingLm},
    };
}
