//! How the models start: gates at 1, outputs of layers at 0.

use burn::module::Param;
use burn::nn::{Embedding, EmbeddingConfig, Initializer, Linear, LinearConfig};
use burn::tensor::{Device, Tensor};
use gatekit_core::ConfigError;

/// Larger sizes than any model has: a larger number in a configuration is a damaged file, and its
/// products would not fit.
const MAX_SIZE: usize = 1 << 30;

/// Refuses a size of 0 or beyond any model's.
pub(super) fn check_size(field: &str, size: usize) -> Result<(), ConfigError> {
    match size {
        0 => Err(ConfigError::new(field, size, "at least 1")),
        1..=MAX_SIZE => Ok(()),
        _ => Err(ConfigError::new(field, size, format!("at most {MAX_SIZE}"))),
    }
}

/// Standard deviation of the head's weight.
const HEAD: f64 = 0.001;

/// Uniform in `+-sqrt(3 / width)`, so with the variance `1 / width`.
fn uniform(width: usize) -> Initializer {
    let bound = (3.0 / width as f64).sqrt();
    Initializer::Uniform { min: -bound, max: bound }
}

fn projection(d_in: usize, d_out: usize, initializer: Initializer, device: &Device) -> Linear {
    LinearConfig::new(d_in, d_out).with_bias(false).with_initializer(initializer).init(device)
}

/// A projection of a model of `width` channels, uniform in `+-sqrt(3 / width)`.
pub(super) fn linear(d_in: usize, d_out: usize, width: usize, device: &Device) -> Linear {
    projection(d_in, d_out, uniform(width), device)
}

/// The last projection of a layer: 0, so that the layer adds nothing at first.
pub(super) fn output(d_in: usize, d_out: usize, device: &Device) -> Linear {
    projection(d_in, d_out, Initializer::Zeros, device)
}

/// The projection to logits, `normal(0, 0.001)`.
pub(super) fn head(d_in: usize, d_out: usize, device: &Device) -> Linear {
    projection(d_in, d_out, Initializer::Normal { mean: 0.0, std: HEAD }, device)
}

/// Embeddings, `normal(0, 1)`.
pub(super) fn embedding(rows: usize, width: usize, device: &Device) -> Embedding {
    let normal = Initializer::Normal { mean: 0.0, std: 1.0 };
    EmbeddingConfig::new(rows, width).with_initializer(normal).init(device)
}

/// A table of values `[rows, columns]`, which starts like the value projection of a model of `width`
/// channels.
pub(super) fn values(rows: usize, columns: usize, width: usize, device: &Device) -> Param<Tensor<2>> {
    uniform(width).init([rows, columns], device)
}
