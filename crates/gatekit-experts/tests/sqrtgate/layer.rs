//! The layer: against its equation on the host, its power, its balance.

use gatekit_core::checkpoint::{load_tensors, named_parameters};
use gatekit_core::router::{Assignment, Router};
use gatekit_experts::sqrtgate::{StabilityProbe, global_balance};

use super::*;

fn small(k: usize) -> SqrtGateConfig {
    SqrtGateConfig::new(6).with_intermediate_size(Some(12)).with_sparsity(3).with_top_k(k)
}

/// Every expert on every token, with the gates of those that are not chosen at 0.
fn dense(layer: &SqrtGateMoe, x: &Tensor<2>) -> Tensor<2> {
    let config = layer.config();
    let routing = layer.route(x.clone());
    let [experts, k] = config.routed();
    let [tokens, _] = x.dims();
    let mut gates = vec![0.0; tokens * experts];
    let weights = values(routing.weights.clone());
    for (slot, expert) in routing.assignment.experts().iter().enumerate() {
        gates[slot / k * experts + expert] = weights[slot];
    }
    let gates = Tensor::<2>::from_data(TensorData::new(gates, [tokens, experts]), &x.device());
    let parts = (0..experts)
        .map(|expert| layer.experts.forward_expert(x.clone(), expert) * gates.clone().narrow(1, expert, 1));
    let y = parts.reduce(|sum, part| sum + part).unwrap();
    match &layer.shared {
        None => y,
        Some(shared) => {
            let of_all = shared.forward_expert(x.clone(), 0);
            if config.sqrt_gate { (y + of_all) * 0.5f64.sqrt() } else { y + of_all }
        }
    }
}

#[test]
fn sending_tokens_equals_computing_all_experts_and_masking() {
    for device in devices() {
        for config in [
            small(4),
            small(2),
            small(1).with_share_expert(false),
            small(3).with_share_expert(false),
            small(4).with_sqrt_gate(false),
            // All experts are active.
            small(4).with_sparsity(1),
            small(12).with_logit_scale(3.0),
        ] {
            let layer = config.init(&device);
            for tokens in [1, 7] {
                let x = wave([tokens, 6], 1.0, &device);
                let output = layer.forward(x.clone());
                assert_close(&values(output.y), &values(dense(&layer, &x)), 1e-5);
                let [_, k] = config.routed();
                let gates = output.routing.weights.clone();
                let whole = if config.sqrt_gate { gates.square() } else { gates };
                assert_close(&values(whole.sum_dim(1)), &vec![1.0; tokens], 1e-5);
                assert_eq!(output.routing.indices.dims(), [tokens, k]);
            }
        }
    }
}

#[test]
fn the_residual_scales_the_branch_by_the_depth() {
    for device in devices() {
        let x = wave([2, 3, 6], 1.0, &device);
        let plain = small(2).init(&device);
        let deep = small(2).with_residual_depth(8).init(&device);
        let deep = load_tensors(deep, named_parameters(&plain)).unwrap();
        let branch = plain.forward(x.clone()).y / 4.0;
        assert_close(&values(deep.forward(x.clone()).y), &values(x + branch), 1e-6);
    }
}

#[test]
fn gates_that_underflow_have_finite_gradients() {
    for device in devices() {
        let device = device.autodiff();
        let layer = small(3).with_share_expert(false).with_logit_scale(1e4).init(&device);
        let x = wave([4, 6], 1.0, &device).require_grad();
        let output = layer.forward(x.clone());
        let gates = values(output.routing.weights.clone());
        assert!(gates.iter().any(|gate| *gate < 1e-20), "some gate closes: {gates:?}");
        let gradients = output.y.sum().backward();
        assert!(values(x.grad(&gradients).unwrap()).iter().all(|value| value.is_finite()));
        let Router::Learned(router) = &layer.router else { panic!("the router is learned") };
        let gradient = values(router.weight.val().grad(&gradients).unwrap());
        assert!(gradient.iter().all(|value| value.is_finite()), "{gradient:?}");
    }
}

#[test]
fn the_power_does_not_depend_on_the_number_of_active_experts() {
    let device = Device::flex();
    let mean_rms = |k: usize, sqrt_gate: bool| {
        let config = SqrtGateConfig::new(64)
            .with_intermediate_size(Some(256))
            .with_sparsity(4)
            .with_top_k(k)
            .with_share_expert(false)
            .with_sqrt_gate(sqrt_gate);
        let draws = 3;
        let draw = |seed| {
            device.seed(seed);
            let x = Tensor::random([64, 64], burn::tensor::Distribution::Normal(0.0, 1.0), &device);
            rms(&config.init(&device).forward::<2>(x).y)
        };
        (0..draws).map(draw).sum::<f64>() / draws as f64
    };
    let one = mean_rms(1, true);
    assert!((0.09..0.14).contains(&one), "{one}");
    for k in [2, 8, 32] {
        let (root, plain) = (mean_rms(k, true), mean_rms(k, false));
        assert!((root / one - 1.0).abs() < 0.15, "K {k}: {root}, {one} for one expert");
        let shrunk = plain * (k as f64).sqrt() / one;
        assert!((0.85..1.25).contains(&shrunk), "K {k}: plain gates shrink as 1 / sqrt(K), {plain}");
    }
}

#[test]
fn a_matrix_starts_with_a_norm_that_its_width_does_not_change() {
    let device = Device::flex();
    for (hidden, k) in [(32, 2), (128, 2), (64, 8)] {
        let layer = SqrtGateConfig::new(hidden).with_top_k(k).with_sparsity(2).init(&device);
        let norms = gatekit_experts::sqrtgate::frobenius_norm(layer.experts.down_proj.val(), true);
        let want = (hidden as f64 / 3.0).sqrt();
        for norm in values(norms) {
            assert!((norm / want - 1.0).abs() < 0.1, "width {hidden}: {norm}, want {want}");
        }
    }
}

#[test]
fn projections_embeddings_and_heads_start_on_their_radii() {
    use gatekit_experts::sqrtgate::init::{embedding, head, projection};
    let device = Device::flex();
    let weight = projection(100, 300, &device).weight.val();
    assert!(values(weight.clone()).iter().all(|value| value.abs() <= 0.1));
    assert!((rms(&weight) / 0.1 * 3f64.sqrt() - 1.0).abs() < 0.05);
    assert!((rms(&embedding(100, 50, &device).weight.val()) / 1e-4 - 1.0).abs() < 0.1);
    assert!((rms(&head(50, 100, &device).weight.val()) / 0.02 - 1.0).abs() < 0.1);
}

#[test]
fn nothing_is_routed_exactly_and_one_token_alone_too() {
    for device in devices() {
        let layer = small(2).init(&device);
        let none = layer.forward(Tensor::<3>::zeros([2, 0, 6], &device));
        assert_eq!(none.y.dims(), [2, 0, 6]);
        assert_eq!((values(none.aux_loss), values(none.router_z)), (vec![0.0], vec![0.0]));
        let one = layer.forward(wave([1, 1, 6], 1.0, &device));
        assert_eq!(one.routing.assignment.tokens(), 1);
    }
}

#[test]
fn one_expert_can_get_all_tokens() {
    for device in devices() {
        let mut layer = small(2).init(&device);
        if let Router::Learned(router) = &mut layer.router {
            let mut weight = vec![0.0; 30];
            weight[12..18].fill(50.0);
            let weight = Tensor::from_data(TensorData::new(weight, [5, 6]), &device);
            router.weight = Param::from_tensor(weight);
        }
        let x = wave([5, 6], 1.0, &device).abs() + 0.1;
        let output = layer.forward(x.clone());
        assert_eq!(output.routing.assignment.tokens_per_expert(), [0, 0, 5, 0, 0]);
        assert_close(&values(output.y), &values(dense(&layer, &x)), 1e-5);
        // The loss of a collapse: E P_e f_e with P and f at one expert.
        assert_close(&values(output.aux_loss), &[0.1 * 5.0], 1e-4);
    }
}

#[test]
fn balance_over_parts_is_that_of_the_whole_batch() {
    for device in devices() {
        let device = device.autodiff();
        let layer = small(3).init(&device);
        let (a, b) = (wave([4, 6], 1.0, &device), wave([3, 6], -2.0, &device));
        let whole = layer.forward(Tensor::cat(vec![a.clone(), b.clone()], 0));
        let none = layer.route(Tensor::zeros([0, 6], &device));
        let parts = [layer.route(a), none.clone(), layer.route(b)];
        let balance = global_balance(&parts, 0.1);
        assert_close(&values(balance.aux_loss.clone()), &values(whole.aux_loss), 1e-5);
        assert_close(&values(balance.router_z), &values(whole.router_z), 1e-5);
        assert_eq!(balance.tokens_per_expert, whole.routing.assignment.tokens_per_expert());
        let gradients = balance.aux_loss.backward();
        let Router::Learned(router) = &layer.router else { panic!("the router is learned") };
        assert!(router.weight.val().grad(&gradients).is_some());
        assert_eq!(values(global_balance(&[none], 0.1).aux_loss), [0.0]);
        // Not the mean over the parts.
        let mean = (values(global_balance(&parts[..1], 0.1).aux_loss)[0]
            + values(global_balance(&parts[2..], 0.1).aux_loss)[0])
            / 2.0;
        assert!((mean - values(global_balance(&parts, 0.1).aux_loss)[0]).abs() > 1e-4);
    }
}

#[test]
fn weights_of_a_routing_can_be_mapped() {
    let device = Device::flex();
    let routing = small(3).init(&device).route(wave([4, 6], 1.0, &device));
    let before = values(routing.weights.clone());
    let mapped = routing.map_weights(|weights| weights * 2.0);
    assert_eq!(values(mapped.weights.clone()), before.iter().map(|w| w * 2.0).collect::<Vec<_>>());
    assert_eq!(mapped.assignment, Assignment::from_tensor(&mapped.indices, 8).unwrap());
}

#[test]
fn the_probe_sees_outliers() {
    let device = Device::flex();
    let mut probe = StabilityProbe::new(3.0);
    let mut output = vec![0.1; 99];
    output.push(100.0);
    let output = Tensor::<1>::from_data(TensorData::new(output, [100]), &device);
    probe.record("moe", 3, output, None);
    probe.record("moe", 4, Tensor::<2>::zeros([0, 3], &device), Some(2.5));
    assert_eq!(probe.series().points("moe/outliers").len(), 1);
    assert!((probe.series().last("moe/outliers").unwrap() - 0.01).abs() < 1e-6);
    assert!((probe.series().last("moe/rms").unwrap() - 10.0).abs() < 0.01);
    assert_eq!(probe.series().points("moe/router_z"), [(4, 2.5)]);
}
