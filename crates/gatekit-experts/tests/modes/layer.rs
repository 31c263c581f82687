//! The layer: what is skipped is as if its weight were 0.

use burn::tensor::Bool;
use gatekit_core::checkpoint::{TensorLayout, named_parameters};
use gatekit_core::moe::MoeLayout;
use gatekit_core::router::RouterInputs;
use gatekit_experts::modes::{Bypass, SkippingMoeLayerConfig, Thresholds};

use super::*;

fn layer(shared: usize, thresholds: (f64, f64), device: &Device) -> SkippingMoeLayer {
    let mut layer = SkippingMoeLayer::new(moe_layer(shared, 0.2, device), device);
    layer.skipper.set_importance([0.6, 0.9]).unwrap();
    layer.skipper.set_thresholds(Thresholds::new(thresholds.0, thresholds.1).unwrap());
    layer
}

fn modalities(tokens: usize) -> TokenModalities {
    TokenModalities::from_codes(&(0..tokens).map(|token| (token % 3) as i64).collect::<Vec<_>>()).unwrap()
}

#[test]
fn skipping_equals_weights_of_zero() {
    for device in devices() {
        for shared in [0, 4] {
            let layer = layer(shared, (0.2, 0.3), &device);
            for (batch, time) in [(1, 1), (2, 1), (1, 7), (3, 5)] {
                let x = tensor(&ramp(batch * time * 8, 0.9), [batch, time, 8], &device);
                let modalities = modalities(batch * time);
                let forward = layer.forward_with(x.clone(), &modalities, &Default::default()).unwrap();
                let keep = forward.decision.keep().to_vec();
                let shape = [batch * time, 3];
                let mask = Tensor::<2, Bool>::from_data(TensorData::new(keep.clone(), shape), &device);
                let whole = forward.routing.clone();
                let dense = Routing { weights: whole.weights.clone() * mask.float(), ..whole };
                let expected = layer.layer.forward_routed(x.clone(), &dense);
                assert_close(&values(forward.y), &values(expected), 1e-5);
                if batch * time > 6 {
                    let skipped = keep.iter().filter(|keep| !**keep).count();
                    assert!(skipped > 3 && skipped < keep.len() - 3, "{skipped} of {}", keep.len());
                }
            }
        }
    }
}

#[test]
fn without_thresholds_it_is_the_layer_that_it_wraps() {
    for device in devices() {
        let layer = layer(4, (0.0, 0.0), &device);
        let x = tensor(&ramp(48, 0.1), [2, 3, 8], &device);
        let y = layer.forward(x.clone(), &modalities(6)).unwrap();
        assert_close(&values(y), &values(layer.layer.forward(x)), 0.0);
    }
}

#[test]
fn with_everything_skipped_the_shared_expert_remains() {
    for device in devices() {
        let x = tensor(&ramp(56, 0.1), [1, 7, 8], &device);
        let skipping = layer(4, (2.0, 2.0), &device);
        let y = skipping.forward(x.clone(), &TokenModalities::text(7)).unwrap();
        let shared = skipping.layer.shared_expert.as_ref().unwrap().forward(x.clone().reshape([7, 8]));
        assert_close(&values(y), &values(shared), 0.0);
        let y = layer(0, (2.0, 2.0), &device).forward(x.clone(), &TokenModalities::text(7)).unwrap();
        assert_eq!(values(y), [0.0; 56]);
        // One token goes another way, without sorting.
        let one = x.narrow(1, 0, 1);
        let y = layer(0, (2.0, 2.0), &device).forward(one, &TokenModalities::text(1)).unwrap();
        assert_eq!(values(y), [0.0; 8]);
    }
}

#[test]
fn decoding_agrees_with_prefill() {
    for device in devices() {
        let layer = layer(4, (0.2, 0.3), &device);
        let x = tensor(&ramp(40, 0.5), [1, 5, 8], &device);
        let together = values(layer.forward(x.clone(), &TokenModalities::text(5)).unwrap());
        for token in 0..5 {
            let y = layer.forward(x.clone().narrow(1, token, 1), &TokenModalities::text(1)).unwrap();
            assert_close(&values(y), &together[8 * token..8 * (token + 1)], 1e-5);
        }
    }
}

#[test]
fn a_bypass_leaves_other_tokens_alone() {
    for device in devices() {
        let mut layer = layer(4, (0.0, 0.0), &device);
        let x = tensor(&ramp(48, 0.1), [6, 8], &device);
        let whole = values(layer.forward(x.clone(), &modalities(6)).unwrap());
        let shared = values(layer.layer.shared_expert.as_ref().unwrap().forward(x.clone()));
        for (bypass, code) in [(Bypass::Text, 0), (Bypass::Vision, 1)] {
            layer.skipper.set_bypass(bypass);
            let forward = layer.forward_with(x.clone(), &modalities(6), &RouterInputs::default()).unwrap();
            assert_eq!(forward.decision.counts().ratio(), 0.0);
            let y = values(forward.y);
            for token in 0..6 {
                let expected = if token % 3 == code { &shared } else { &whole };
                let row = 8 * token..8 * (token + 1);
                assert_close(&y[row.clone()], &expected[row], 1e-5);
            }
        }
    }
}

#[test]
fn an_empty_batch_is_legal_and_other_numbers_of_tokens_are_refused() {
    for device in devices() {
        let layer = layer(4, (0.2, 0.2), &device);
        let empty = Tensor::<3>::zeros([0, 5, 8], &device);
        let forward = layer.forward_with(empty, &TokenModalities::text(0), &Default::default()).unwrap();
        assert_eq!(forward.y.dims(), [0, 5, 8]);
        assert_eq!(forward.decision.counts().ratio(), 0.0);
        let x = Tensor::<3>::zeros([1, 5, 8], &device);
        assert_refused(layer.forward(x, &TokenModalities::text(4)), &["modality", "4 tokens", "5"]);
    }
}

#[test]
fn a_checkpoint_has_the_wrapped_layers_names_and_the_importance() {
    let moe = MoeLayerConfig::new(8, 4)
        .with_num_experts(2)
        .with_shared_intermediate_size(4)
        .with_layout(MoeLayout::DeepseekV3);
    let config = SkippingMoeLayerConfig::new(moe);
    let layer = config.init(&devices()[1]);
    let layout = config.tensor_layout(TensorLayout::default(), "");
    let published = layout.to_published(named_parameters(&layer));
    let names: Vec<&str> = published.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "experts.0.down_proj.weight",
            "experts.0.gate_proj.weight",
            "experts.0.up_proj.weight",
            "experts.1.down_proj.weight",
            "experts.1.gate_proj.weight",
            "experts.1.up_proj.weight",
            "gate.e_score_correction_bias",
            "gate.weight",
            "importance",
            "shared_experts.down_proj.weight",
            "shared_experts.gate_proj.weight",
            "shared_experts.up_proj.weight",
        ]
    );
    let layout = config.tensor_layout(TensorLayout::default(), "model.layers.{}.mlp.");
    assert_eq!(
        layout.published_names("model.layers.3.mlp.skipper.importance", &[2]),
        ["model.layers.3.mlp.importance"]
    );
    assert_eq!(
        layout.published_names("model.layers.3.mlp.layer.experts.down_proj", &[1, 8, 4]),
        ["model.layers.3.mlp.experts.0.down_proj.weight"]
    );
}

#[test]
fn a_configuration_that_makes_no_layer_is_refused() {
    let device = &devices()[1];
    let config = SkippingMoeLayerConfig::new(MoeLayerConfig::new(8, 0));
    assert_eq!(config.try_init(device).unwrap_err().field, "moe.moe_intermediate_size");
    let config = SkippingMoeLayerConfig::new(MoeLayerConfig::new(8, 4)).with_threshold_vision(-1.0);
    assert_eq!(config.try_init(device).unwrap_err().field, "threshold_vision");
}
