//! Any language model of this crate, chosen by a folder's `config.json`.
//!
//! ```no_run
//! use burn::tensor::Device;
//! use gatekit_sequence::generate::{GenerateConfig, generate};
//! use gatekit_sequence::from_pretrained;
//!
//! let model = from_pretrained("models/gla-340m", &Device::flex())?;
//! let config = GenerateConfig::new(100).with_temperature(0.7);
//! for token in generate(&model, &[1, 450, 3872], &config)? {
//!     println!("{}", token?);
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! `model_type` there (or, without it, `architectures`) selects the model; [`model_types`] lists
//! the known ones.

mod config;
mod model;
mod state;

use std::path::Path;

use burn::tensor::Device;
use gatekit_core::checkpoint::{CheckpointError, load_pretrained};

pub use config::{AutoConfig, model_types};
pub use model::{AutoModel, AutoNetwork};
pub use state::AutoState;

/// Loads the model in a folder, whichever of this crate's it is.
///
/// # Errors
///
/// [`CheckpointError`] as [`load_pretrained`] gives it, and for a `model_type` that names no model
/// of this crate, for weights that are quantised (`quantization_config`), and for rotary positions
/// that are scaled (`rope_scaling`, or a `rope_type` other than `default`).
pub fn from_pretrained(folder: impl AsRef<Path>, device: &Device) -> Result<AutoModel, CheckpointError> {
    load_pretrained::<AutoConfig>(folder, device).map(|(_, model)| model)
}
