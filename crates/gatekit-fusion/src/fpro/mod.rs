//! FPro: image restoration guided by prompts of low and high frequencies.
//!
//! | module | owns |
//! |---|---|
//! | [`config`] | widths, depths, which prompts there are |
//! | [`dynamic_filter`] | the gated filter, made by its input, that splits features into low and high frequencies |
//! | [`generators`] | prompts of both parts: one gated in space, one in the Fourier domain |
//! | [`modulators`] | how a prompt acts on decoder features: attention in windows, and one global token |
//! | [`prompts`] | both of them, merged; the four of the network |
//! | [`blocks`] | the transformer's blocks: attention between channels, gated feed-forward |
//! | [`model`] | the network |
//! | [`loss`], [`training`] | loss with a spectrum term, PSNR; schedule, clipping, flips and turns, the trainer |
//! | [`tiles`] | restoring images of any size, tile by tile |
//!
//! Images and feature maps are `[B, C, H, W]`, images in [0, 1]. Convolutions have no bias unless said. Zhou et al., "Seeing
//! the Unseen: A Frequency Prompt Guided Transformer for Image Restoration" (ECCV 2024).

pub mod blocks;
pub mod config;
pub mod dynamic_filter;
pub mod generators;
mod layout;
pub mod loss;
pub mod model;
pub mod modulators;
pub mod prompts;
pub mod tiles;
pub mod training;

pub use config::{FProConfig, Frequencies};
pub use dynamic_filter::{FrequencyParts, GatedDynamicFilter, GatedDynamicFilterConfig};
pub use generators::{
    HighPromptGenerator, HighPromptGeneratorConfig, LowPromptGenerator, LowPromptGeneratorConfig,
};
pub use loss::{psnr, restoration_loss};
pub use model::{FPro, FProOutput};
pub use modulators::{
    HighPromptModulator, HighPromptModulatorConfig, LowPromptModulator, LowPromptModulatorConfig,
};
pub use prompts::{PromptModule, PromptModuleConfig, PromptStage, Prompts};
pub use tiles::Tiling;
pub use training::{FProTrainer, FProTraining, Orientation};
