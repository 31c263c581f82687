//! Gating layers for [Burn](https://burn.dev): gates, linear recurrences, attention, and the
//! published systems built from them.
//!
//! A gate decides, from data, how much of something passes. [`core`] owns the mechanisms,
//! [`sequence`] composes them into token mixers and language models, and [`device`] names the
//! devices they run on.
//!
//! The README shows a layer in a module of one's own, and its training.
#![deny(missing_docs)]

pub mod device;

pub use gatekit_core as core;
pub use gatekit_experts as experts;
pub use gatekit_fusion as fusion;
pub use gatekit_sequence as sequence;

/// What most programs need.
pub mod prelude {
    pub use gatekit_core::{
        ConfigError, InputError, ModuleConfig,
        gate::GateActivation,
        moe::{MoeLayer, MoeLayerConfig},
        norm::{GatedRmsNorm, GatedRmsNormConfig, RmsNorm, RmsNormConfig},
        sequence::{Boundaries, Packing},
    };
    pub use gatekit_sequence::{
        RoutedLm,
        gated_associative_memory::{GamConfig, GamLm},
        gla::{GatedLinearAttention, GatedLinearAttentionConfig, GlaConfig, GlaForCausalLm},
        hybrid_linear_attention::{
            HybridAttentionConfig, HybridConfig, HybridForCausalLm, HybridMixerConfig,
        },
        lm::{CausalLm, StreamState, StreamingLm},
        mamba::{MambaConfig, MambaForCausalLm, MambaMixer, MambaMixerConfig},
        qwen3_next::{Qwen3NextConfig, Qwen3NextForCausalLm},
        transnormer::{TransNormerConfig, TransNormerLlm},
    };
}

/// The README's code is compiled and run with the documentation tests.
#[cfg(all(doctest, feature = "flex"))]
#[doc = include_str!("../../../README.md")]
struct Readme;
