//! How the parameters beside the experts start: what they start with is their radius for good.

use burn::module::Initializer;
use burn::nn::{Embedding, EmbeddingConfig, Linear, LinearConfig};
use burn::tensor::Device;

/// A projection without a bias, uniform within `1 / sqrt(d_in)`: its norm is about `sqrt(d_out / 3)`,
/// whatever `d_in`. Burn keeps its weight `[d_in, d_out]`.
pub fn projection(d_in: usize, d_out: usize, device: &Device) -> Linear {
    let bound = (d_in as f64).powf(-0.5);
    let uniform = Initializer::Uniform { min: -bound, max: bound };
    LinearConfig::new(d_in, d_out).with_bias(false).with_initializer(uniform).init(device)
}

/// A table of `vocab_size` vectors of `dim` channels, normal(0, 1e-4): it is no part of a sphere, and the
/// first norm scales it up.
pub fn embedding(vocab_size: usize, dim: usize, device: &Device) -> Embedding {
    let normal = Initializer::Normal { mean: 0.0, std: 1e-4 };
    EmbeddingConfig::new(vocab_size, dim).with_initializer(normal).init(device)
}

/// An untied output head without a bias, normal(0, 0.02). Not zero, which has no sphere.
pub fn head(dim: usize, vocab_size: usize, device: &Device) -> Linear {
    let normal = Initializer::Normal { mean: 0.0, std: 0.02 };
    LinearConfig::new(dim, vocab_size).with_bias(false).with_initializer(normal).init(device)
}
