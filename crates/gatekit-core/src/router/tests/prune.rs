//! Pruned slots: gone from weights, indices, counts and plans alike.

use burn::module::Module;

use super::*;
use crate::dispatch::{Capacity, DispatchPlan, Priority};
use crate::moe::{MoeLayer, MoeLayerConfig};

/// Three tokens of four experts, two each.
fn routing(device: &Device) -> Routing {
    let config = RouterConfig::new(4).with_num_experts(4);
    let logits = [2.0, 0.0, 1.0, -1.0, 0.0, 3.0, 1.0, 2.0, 0.0, 1.0, 0.0, 2.0];
    let routing = route(&transparent(&config, device), &logits);
    assert_eq!(routing.assignment.experts(), [0, 2, 1, 3, 3, 1]);
    routing
}

const KEEP: [bool; 6] = [true, false, false, false, true, true];

#[test]
fn host_and_device_say_the_same() {
    for device in devices() {
        let whole = routing(&device);
        let weights = values(whole.weights.clone());
        let pruned = whole.clone().prune(&KEEP);
        assert_eq!(pruned.assignment.experts(), [0, 4, 4, 4, 3, 1]);
        let indices: Vec<i64> = pruned.indices.clone().into_data().iter::<i64>().collect();
        assert_eq!(indices, [0, 4, 4, 4, 3, 1]);
        assert_eq!(pruned.kept().into_data().iter::<bool>().collect::<Vec<_>>(), KEEP);
        let expected: Vec<f64> =
            weights.iter().zip(KEEP).map(|(weight, keep)| if keep { *weight } else { 0.0 }).collect();
        assert_close(&values(pruned.weights.clone()), &expected, 0.0);
        assert_eq!(pruned.assignment.tokens_per_expert(), [1, 1, 0, 1]);
        assert_eq!(pruned.assignment.dropped_share(), 0.5);
        let importance = [weights[0], weights[5], 0.0, weights[4]];
        assert_close(&values(pruned.importance()), &importance, 1e-7);
        let plan = DispatchPlan::new(&pruned.assignment);
        assert_eq!(plan.order(), [0, 5, 4]);
        assert_eq!(plan.offsets(), [0, 1, 2, 2, 3]);
        // Nothing to prune changes nothing.
        assert_eq!(whole.clone().prune(&[true; 6]).assignment, whole.assignment);
    }
}

#[test]
fn pruning_twice_keeps_what_both_keep() {
    for device in devices() {
        let twice = routing(&device).prune(&KEEP).prune(&[true, true, true, true, false, true]);
        let once = routing(&device).prune(&[true, false, false, false, false, true]);
        assert_eq!(twice.assignment, once.assignment);
        assert_close(&values(twice.weights), &values(once.weights), 0.0);
        assert_eq!(
            twice.indices.into_data().iter::<i64>().collect::<Vec<_>>(),
            once.indices.into_data().iter::<i64>().collect::<Vec<_>>()
        );
    }
}

#[test]
fn losses_and_capacity_count_what_is_left() {
    for device in devices() {
        let pruned = routing(&device).prune(&KEEP);
        let losses = BalanceLosses::new(&pruned, [1, 3], None, CountNormalizer::Tokens);
        assert_eq!(losses.tokens_per_expert, [1, 1, 0, 1]);
        assert!(values(losses.sequence_balance)[0].is_finite());
        let importance = squared_variation(pruned.importance());
        assert_close(&values(losses.importance_cv2), &values(importance), 1e-6);
        // One slot an expert: none that is left has to go.
        let full = Capacity::new(0.5, Priority::Token).unwrap().apply(pruned.assignment.clone(), &[]);
        assert_eq!(full, pruned.assignment);
    }
}

#[test]
fn a_weight_that_is_not_finite_goes_with_its_slot() {
    for device in devices() {
        let mut routing = routing(&device);
        routing.weights = float32(&[1.0, f64::INFINITY, f64::NAN, 1.0, 1.0, 1.0], [3, 2], &device);
        let pruned = routing.prune(&[true, false, false, true, true, true]);
        assert_close(&values(pruned.weights), &[1.0, 0.0, 0.0, 1.0, 1.0, 1.0], 0.0);
    }
}

#[test]
#[should_panic(expected = "`keep` has 5 entries, the routing 3 tokens of 2 slots")]
fn a_mask_of_another_length_is_refused() {
    routing(&devices()[0]).prune(&[true; 5]);
}

fn layer(device: &Device) -> MoeLayer {
    let config = MoeLayerConfig::new(4, 3).with_num_experts(4).with_shared_intermediate_size(3);
    let mut layer = config.init(device);
    let scaled = |param: Param<Tensor<3>>| param.map(|value| value.mul_scalar(20.0));
    layer.experts.gate_up_proj = scaled(layer.experts.gate_up_proj);
    layer.experts.down_proj = scaled(layer.experts.down_proj);
    layer
}

/// All slots computed, those pruned times 0.
fn masked(layer: &MoeLayer, x: Tensor<2>, whole: &Routing, keep: &[bool]) -> Tensor<2> {
    let [tokens, k] = whole.weights.dims();
    let keep = Tensor::<2, Bool>::from_data(TensorData::new(keep.to_vec(), [tokens, k]), &x.device());
    let weights = whole.weights.clone() * keep.float();
    layer.forward_routed(x, &Routing { weights, ..whole.clone() })
}

#[test]
fn a_layer_without_pruned_slots_equals_weights_of_zero() {
    for device in devices() {
        let layer = layer(&device);
        for tokens in [1usize, 2, 7] {
            let x = float32(&ramp(4 * tokens, 1.0), [tokens, 4], &device);
            let (y, whole) = layer.forward_with_routing(x.clone());
            assert_close(&values(layer.forward_routed(x.clone(), &whole)), &values(y), 0.0);
            let some: Vec<bool> = (0..2 * tokens).map(|slot| slot % 3 == 1).collect();
            for keep in [some, vec![false; 2 * tokens]] {
                let pruned = layer.forward_routed(x.clone(), &whole.clone().prune(&keep));
                let expected = masked(&layer, x.clone(), &whole, &keep);
                assert_close(&values(pruned), &values(expected), 1e-6);
            }
            // Without any slot the shared expert remains.
            let none = layer.forward_routed(x.clone(), &whole.prune(&vec![false; 2 * tokens]));
            let shared = layer.shared_expert.as_ref().unwrap().forward(x);
            assert_close(&values(none), &values(shared), 0.0);
        }
        let empty = Tensor::<2>::zeros([0, 4], &device);
        let (_, whole) = layer.forward_with_routing(empty.clone());
        assert_eq!(layer.forward_routed(empty, &whole.prune(&[])).dims(), [0, 4]);
    }
}

#[test]
fn gradients_are_those_of_the_slots_that_stay() {
    for device in devices() {
        let layer = layer(&device).train();
        let gradient = |forward: &dyn Fn(Tensor<2>, Routing) -> Tensor<2>| {
            let x = float32(&ramp(12, 1.0), [3, 4], &device.clone().autodiff()).require_grad();
            let (_, whole) = layer.forward_with_routing(x.clone());
            let gradients = forward(x.clone(), whole).sum().backward();
            let of_router = match &layer.gate {
                Router::Learned(router) => router.weight.val().grad(&gradients).unwrap(),
                Router::Assigned(_) => unreachable!("learned by default"),
            };
            let of_experts = layer.experts.down_proj.val().grad(&gradients).unwrap();
            [values(x.grad(&gradients).unwrap()), values(of_router), values(of_experts)].concat()
        };
        let pruned = gradient(&|x, whole| layer.forward_routed(x, &whole.prune(&KEEP)));
        assert_close(&pruned, &gradient(&|x, whole| masked(&layer, x, &whole, &KEEP)), 1e-5);
    }
}

#[test]
#[should_panic(expected = "`routing` has (3, 4) tokens and experts, need (2, 4)")]
fn a_routing_of_other_tokens_is_refused() {
    let device = &devices()[0];
    layer(device).forward_routed(Tensor::<2>::zeros([2, 4], device), &routing(device));
}
