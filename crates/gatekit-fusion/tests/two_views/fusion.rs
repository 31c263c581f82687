//! The four fusions.

use burn::module::Param;
use burn::tensor::Tensor;
use gatekit_core::ModuleConfig;
use gatekit_fusion::two_views::fusion::Fusion;
use gatekit_fusion::two_views::{SingleViewConfig, Strategy, ViewFusionConfig};

use crate::{assert_close, devices, ramp, values};

fn fusion(strategy: Strategy) -> ViewFusionConfig {
    ViewFusionConfig::new(3, 5).with_d_model(4).with_heads(2).with_strategy(strategy)
}

#[test]
fn every_fusion_gives_a_frame_for_each_self_supervised_one() {
    for device in devices() {
        for strategy in Strategy::ALL {
            let fusion = fusion(strategy).init(&device);
            for (ssl, spectral) in [(1, 1), (1, 9), (7, 1), (5, 11), (4, 4)] {
                let views = fusion
                    .forward(ramp([2, ssl, 3], 1.0, &device), ramp([2, spectral, 5], 0.7, &device))
                    .unwrap();
                assert_eq!(views.fused.dims(), [2, ssl, 4]);
                assert!(values(views.fused).iter().all(|value| value.is_finite()));
                assert_eq!(views.gate.is_some(), strategy == Strategy::Gate);
            }
        }
    }
}

#[test]
fn a_gate_at_its_ends_passes_one_view() {
    for device in devices() {
        let mut fusion = fusion(Strategy::Gate).init(&device);
        let (ssl, spectral) = (ramp([2, 6, 3], 1.0, &device), ramp([2, 6, 5], 0.7, &device));
        let s = fusion.ssl_norm.forward(fusion.ssl_proj.forward(ssl.clone()));
        let x = fusion.spectral_norm.forward(fusion.spectral_proj.forward(spectral.clone()));
        for (logit, share, view) in [(1e4, 1.0, s), (-1e4, 0.0, x)] {
            let Fusion::Gate(gate) = &mut fusion.strategy else { panic!("a gate") };
            gate.outer.bias = Some(Param::from_tensor(Tensor::full([4], logit, &device)));
            let views = fusion.forward(ssl.clone(), spectral.clone()).unwrap();
            assert_close(&values(views.fused), &values(view), 0.0);
            assert!(values(views.gate.unwrap()).iter().all(|gate| *gate == share));
        }
    }
}

#[test]
fn attention_to_one_spectral_frame_adds_the_same_everywhere() {
    // The softmax over one key is 1: LN(s + W_o v + b_o), whatever the queries.
    for device in devices() {
        let fusion = fusion(Strategy::CrossAttention).init(&device);
        let (ssl, spectral) = (ramp([1, 5, 3], 1.0, &device), ramp([1, 1, 5], 0.7, &device));
        let repeated = spectral.clone().repeat_dim(1, 6);
        let one = fusion.forward(ssl.clone(), spectral).unwrap().fused;
        let many = fusion.forward(ssl, repeated).unwrap().fused;
        assert_close(&values(one), &values(many), 1e-5);
    }
}

#[test]
fn views_that_do_not_fit_are_refused() {
    for device in devices() {
        for strategy in Strategy::ALL {
            let fusion = fusion(strategy).init(&device);
            let refused = |ssl: [usize; 3], spectral: [usize; 3]| {
                let views = fusion.forward(Tensor::zeros(ssl, &device), Tensor::zeros(spectral, &device));
                views.unwrap_err().field
            };
            assert_eq!(refused([2, 4, 3], [3, 4, 5]), "spectral");
            assert_eq!(refused([2, 0, 3], [2, 4, 5]), "ssl");
            assert_eq!(refused([2, 4, 3], [2, 0, 5]), "spectral");
            assert_eq!(refused([2, 4, 2], [2, 4, 5]), "ssl");
            assert_eq!(refused([2, 4, 3], [2, 4, 6]), "spectral");
            assert_eq!(refused([0, 4, 3], [0, 4, 5]), "ssl");
        }
        let single = SingleViewConfig::new(3).with_d_model(4).init(&device);
        assert_eq!(single.forward(Tensor::zeros([1, 0, 3], &device)).unwrap_err().field, "view");
    }
}
