//! Models with the same weights on every device.

use burn::{module::Module, tensor::Device};
use gatekit::{
    core::ModuleConfig,
    sequence::{
        GlaConfig, GlaForCausalLm,
        checkpoint::{load_tensors, named_parameters},
    },
};

use crate::random::Draw;

/// A GLA model whose weights follow from the seed: norms near 1, all else normal with deviation
/// `deviation`.
///
/// # Panics
///
/// When the configuration is refused.
pub fn gla(config: &GlaConfig, deviation: f64, seed: u64, device: &Device) -> GlaForCausalLm {
    with_drawn_weights(config.init(device), deviation, seed)
}

fn with_drawn_weights<M: Module>(module: M, deviation: f64, seed: u64) -> M {
    let mut draw = Draw::new(seed);
    let tensors = named_parameters(&module).into_iter().map(|(name, data)| {
        let center = if name.ends_with("norm.weight") || name.contains("g_norm") { 1.0 } else { 0.0 };
        let drawn = draw.array(&data.shape().to_vec(), |draw| center + deviation * draw.normal());
        (name, drawn)
    });
    let tensors = tensors.collect();
    load_tensors(module, tensors).unwrap_or_else(|error| panic!("{error}"))
}
