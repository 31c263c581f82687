//! The layer: streaming, padding, configuration.

use burn::module::Param;
use burn::tensor::{Bool, Device, Tensor};

use crate::ModuleConfig;
use crate::attention::*;
use crate::sequence::Packing;
use crate::test_util::{assert_close, devices, float32, ramp, values};

fn layer(device: &Device, window: Option<usize>) -> CausalAttention {
    let mut layer = CausalAttentionConfig::new(8, 4)
        .with_num_kv_heads(Some(2))
        .with_window_size(window)
        .with_qkv_bias(true)
        .init(device);
    layer.q_proj.weight = Param::from_tensor(float32(&ramp(64, 0.9), [8, 8], device));
    layer.k_proj.weight = Param::from_tensor(float32(&ramp(32, 0.8), [8, 4], device));
    layer.v_proj.weight = Param::from_tensor(float32(&ramp(32, 0.7), [8, 4], device));
    layer.o_proj.weight = Param::from_tensor(float32(&ramp(64, 0.6), [8, 8], device));
    layer.k_proj.bias = Some(Param::from_tensor(float32(&ramp(4, 0.5), [4], device)));
    layer
}

#[test]
fn streaming_equals_the_whole_sequence_and_a_window_bounds_the_cache() {
    for device in devices() {
        for window in [None, Some(1), Some(3), Some(100)] {
            let layer = layer(&device, window);
            let x = float32(&ramp(2 * 10 * 8, 1.0), [2, 10, 8], &device);
            let whole = layer.forward(x.clone(), None);
            let cache = layer.empty_cache(2, &device);
            assert!(cache.is_empty() && cache.bytes() == 0);
            let (first, cache) = layer.prefill(x.clone().narrow(1, 0, 4), cache);
            let (second, mut cache) = layer.prefill(x.clone().narrow(1, 4, 2), cache);
            let mut pieces = vec![first, second];
            for t in 6..10 {
                let (y, next) = layer.step(x.clone().narrow(1, t, 1).squeeze_dim(1), cache);
                cache = next;
                pieces.push(y.unsqueeze_dim(1));
            }
            assert_close(&values(Tensor::cat(pieces, 1)), &values(whole), 2e-6);
            let held = window.map_or(10, |window| (window - 1).min(10));
            assert_eq!((cache.position, cache.len()), (10, held));
            // Two rows, keys and values, two heads of two float32 channels.
            assert_eq!(cache.bytes(), 2 * 2 * held * 4 * 4);
            assert_eq!(cache.clone().to_device(&device).len(), held);
        }
    }
}

#[test]
fn padded_tokens_change_nothing_and_get_zero() {
    for device in devices() {
        let layer = layer(&device, Some(3));
        let x = float32(&ramp(2 * 5 * 8, 1.0), [2, 5, 8], &device);
        let mask = [[false, false, true, true, true], [true, true, true, true, false]];
        let packing = Packing::from_mask(&Tensor::<2, Bool>::from_data(mask, &device)).unwrap();
        let got = layer.forward(x.clone(), Some(&packing));
        let first = layer.forward(x.clone().narrow(0, 0, 1).narrow(1, 2, 3), None);
        let second = layer.forward(x.narrow(0, 1, 1).narrow(1, 0, 4), None);
        let zeros = |steps: usize| vec![0.0; steps * 8];
        let expected = [zeros(2), values(first), values(second), zeros(1)].concat();
        assert_close(&values(got), &expected, 1e-6);
    }
}

#[test]
fn weights_of_the_layer_are_causal() {
    for device in devices() {
        let weights = layer(&device, None).weights(float32(&ramp(5 * 8, 1.0), [1, 5, 8], &device));
        assert_eq!(weights.dims(), [1, 4, 5, 5]);
        for (i, weight) in values(weights).into_iter().enumerate() {
            assert_eq!(weight == 0.0, i % 5 > i / 5 % 5, "weight {i}: {weight}");
        }
    }
}

#[test]
fn refuses_bad_configurations() {
    let device = devices().remove(0);
    let field = |config: CausalAttentionConfig| config.try_init(&device).unwrap_err().field;
    assert_eq!(field(CausalAttentionConfig::new(8, 0)), "num_heads");
    assert_eq!(field(CausalAttentionConfig::new(0, 2)), "hidden_size");
    assert_eq!(field(CausalAttentionConfig::new(9, 2)), "hidden_size");
    assert_eq!(field(CausalAttentionConfig::new(8, 4).with_num_kv_heads(Some(3))), "num_kv_heads");
    assert_eq!(field(CausalAttentionConfig::new(8, 4).with_num_kv_heads(Some(0))), "num_kv_heads");
    assert_eq!(field(CausalAttentionConfig::new(8, 4).with_window_size(Some(0))), "window_size");
    assert_eq!(field(CausalAttentionConfig::new(9, 3)), "head_dim");
    assert_eq!(field(CausalAttentionConfig::new(8, 4).with_rope_theta(Some(0.0))), "rope_theta");
    assert!(CausalAttentionConfig::new(9, 3).with_rope_theta(None).try_init(&device).is_ok());
}
