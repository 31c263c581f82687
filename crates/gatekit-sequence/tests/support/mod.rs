//! What the tests of this crate share.
#![allow(dead_code, reason = "every test target uses its own part")]

pub mod decoders;
pub mod hybrid;

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor, TensorData};
use gatekit_core::ModuleConfig;
use gatekit_sequence::checkpoint::{NamedTensors, load_tensors, named_parameters};
use gatekit_sequence::gla::{GlaConfig, GlaForCausalLm};

/// The devices that every test runs on.
#[allow(deprecated, reason = "NdArray is supported as long as Burn has it")]
pub fn devices() -> [Device; 2] {
    [Device::ndarray(), Device::flex()]
}

/// A small model that uses none of the optional parts.
pub fn plain() -> GlaConfig {
    GlaConfig::new(37, 16, 2).with_num_heads(2).with_intermediate_size(Some(24)).with_gate_low_rank_dim(4)
}

/// Small models that together use every optional part.
pub fn variants() -> Vec<GlaConfig> {
    vec![
        plain(),
        plain()
            .with_num_heads(4)
            .with_num_kv_heads(Some(2))
            .with_expand_k(1.0)
            .with_use_short_conv(true)
            .with_conv_bias(true)
            .with_gate_logit_normalizer(2.0)
            .with_clamp_min(Some(-0.3)),
        plain().with_feature_map(Some("relu".into())).with_gate_fn("sigmoid".into()).with_chunk_size(16),
        plain().with_use_output_gate(false).with_tie_word_embeddings(true).with_use_short_conv(true),
    ]
}

/// A model whose weights are larger than a fresh one's, so that every part matters.
pub fn lively(config: &GlaConfig, device: &Device) -> GlaForCausalLm {
    enlivened(config.init(device))
}

/// `model` with such weights.
pub fn enlivened<M: Module>(model: M) -> M {
    let mut state = 1u64;
    let tensors: NamedTensors = named_parameters(&model)
        .into_iter()
        .map(|(name, data)| {
            let center = if name.ends_with("norm.weight") || name.contains("g_norm") { 1.0 } else { 0.0 };
            let values: Vec<f32> =
                (0..data.num_elements()).map(|_| center + noise(&mut state) * 0.7).collect();
            (name, TensorData::new(values, data.shape().clone()))
        })
        .collect();
    load_tensors(model, tensors).unwrap()
}

/// The next number in (-1, 1) of a fixed sequence.
pub fn noise(state: &mut u64) -> f32 {
    *state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
    ((*state >> 40) as f32 / (1u64 << 23) as f32) - 1.0
}

/// Tokens `[batch, time]` of a vocabulary of 37.
pub fn tokens(batch: usize, time: usize, device: &Device) -> Tensor<2, Int> {
    let values: Vec<i64> = (0..batch * time).map(|i| ((i * i + 7 * i + 3) % 37) as i64).collect();
    Tensor::from_data(TensorData::new(values, [batch, time]), device)
}

/// Values of a tensor on the host.
pub fn values<const D: usize>(tensor: &Tensor<D>) -> Vec<f32> {
    tensor.to_data().iter::<f32>().collect()
}

/// Fails unless the relative L2 error is within `tolerance` and every value is finite.
pub fn assert_close(got: &[f32], want: &[f32], tolerance: f64, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}: number of values");
    assert!(got.iter().all(|value| value.is_finite()), "{what}: not finite");
    let square = |x: f64| x * x;
    let norm: f64 = want.iter().map(|&w| square(f64::from(w))).sum::<f64>().sqrt();
    let error: f64 =
        got.iter().zip(want).map(|(&g, &w)| square(f64::from(g) - f64::from(w))).sum::<f64>().sqrt();
    assert!(norm > 0.0, "{what}: nothing to compare");
    assert!(error <= tolerance * norm, "{what}: relative error {} above {tolerance}", error / norm);
}
