//! TouchFormer: several touch sensors, of which some may be missing or useless, and one material.
//!
//! | module | owns |
//! |---|---|
//! | [`config`] | sizes, dropout, how sensors are weighed |
//! | [`gating`] | a gate a sensor, the threshold, importance weights |
//! | [`encoder`] | pre-norm encoder from one sensor's sequence to another's, or within one |
//! | [`model`] | the network |
//! | [`loss`] | cross entropy and regularisation across the instances of a batch |
//! | [`augment`] | sensors removed or replaced by noise, white noise |
//! | [`training`], [`evaluation`] | the loop's steps and schedule; accuracy and macro F1 |
//!
//! Sensor m gives sequences `[B, T_m, d_m]`; which sensors are there and which steps are real says a
//! [`ModalityMask`](gatekit_core::cross_modal::ModalityMask). Lyu et al., "TouchFormer: A Robust Transformer-based
//! Framework for Multimodal Material Perception" (arXiv 2511.19509); encoders after the Multimodal Transformer
//! (Tsai et al., arXiv 1906.00295).
//!
//! ```
//! use burn::tensor::{Device, Distribution, Tensor};
//! use gatekit_core::ModuleConfig;
//! use gatekit_core::cross_modal::ModalityMask;
//! use gatekit_fusion::touchformer::TouchFormerConfig;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let device = Device::default();
//! let model = TouchFormerConfig::new(vec![6, 4], 3).with_dim(8).with_layers(1).try_init(&device)?;
//! let sound = Tensor::random([2, 10, 6], Distribution::Default, &device);
//! let force = Tensor::random([2, 7, 4], Distribution::Default, &device);
//! // In the second instance the force sensor is missing.
//! let mask = ModalityMask::full(2, &[10, 7], &device).without(&[vec![false, false], vec![false, true]])?;
//! let output = model.forward(&[sound, force], &mask);
//! assert_eq!(output.logits.dims(), [2, 3]);
//! # Ok(())
//! # }
//! ```

pub mod augment;
pub mod config;
pub mod encoder;
pub mod evaluation;
pub mod gating;
pub mod loss;
pub mod model;
mod positions;
pub mod training;

pub use augment::{ModalityDropout, SensorNoise, WhiteNoise};
pub use config::{TouchFormerConfig, Weighting};
pub use encoder::{CrossModalEncoder, CrossModalEncoderConfig, Source};
pub use evaluation::{Evaluation, macro_f1};
pub use gating::{ModalityGating, ModalityGatingConfig, SensorWeights};
pub use loss::{TouchFormerLoss, TouchFormerLossConfig, TouchFormerLosses, cross_instance_regularization};
pub use model::{TouchFormer, TouchFormerOutput};
pub use training::{EpochReport, TouchBatch, TouchFormerTrainer, TouchFormerTrainingConfig};

use burn::module::Initializer;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::Device;
use gatekit_core::ConfigError;

/// Weights Xavier uniform, every bias at `bias`.
fn linear(from: usize, to: usize, bias: f64, device: &Device) -> Linear {
    let xavier = Initializer::XavierUniform { gain: 1.0 };
    Linear {
        bias: Some(Initializer::Constant { value: bias }.init([to], device)),
        ..LinearConfig::new(from, to).with_bias(false).with_initializer(xavier).init(device)
    }
}

/// Refuses shares outside [0, 1).
fn check_shares(shares: &[(&str, f64)]) -> Result<(), ConfigError> {
    match shares.iter().find(|(_, share)| !(0.0..1.0).contains(share)) {
        Some((field, share)) => Err(ConfigError::new(*field, share, "a number in [0, 1)")),
        None => Ok(()),
    }
}

/// Refuses numbers that are not finite or not above 0.
fn check_positive(numbers: &[(&str, f64)]) -> Result<(), ConfigError> {
    match numbers.iter().find(|(_, number)| !(number.is_finite() && *number > 0.0)) {
        Some((field, number)) => Err(ConfigError::new(*field, number, "a finite number above 0")),
        None => Ok(()),
    }
}
