//! The mixture-of-experts layer at its edges, and what it refuses.
#![cfg(all(feature = "ndarray", feature = "flex"))]
#![allow(missing_docs)]

use burn::tensor::{Bool, Device, Int, Tensor, TensorData};
use gatekit_core::ModuleConfig;
use gatekit_experts::dispatch::{Capacity, DispatchPlan, Priority, grouped_matmul};
use gatekit_experts::moe::{MoeLayer, MoeLayerConfig, MoeLayout};
use gatekit_experts::router::{
    Assignment, BalanceLosses, CountNormalizer, ExpertChoiceRouterConfig, GroupScore, Phase, RouterInputs,
    RouterNoise, Routing, ScoringFunc, SecondExpertPolicy, Selection, TopkOrder,
};

const WIDTH: usize = 6;
const EXPERTS: usize = 4;

#[allow(deprecated)] // The library supports ndarray as long as Burn does.
fn devices() -> [Device; 2] {
    [Device::ndarray(), Device::flex()]
}

fn config() -> MoeLayerConfig {
    MoeLayerConfig::new(WIDTH, 5).with_num_experts(EXPERTS)
}

/// A layer whose experts the token ids name: id e goes to expert e.
fn by_id(device: &Device) -> MoeLayer {
    config()
        .with_num_experts_per_tok(1)
        .with_selection(Selection::Hash)
        .with_vocab_size(Some(EXPERTS))
        .init(device)
}

fn ids(ids: &[i64], device: &Device) -> RouterInputs {
    let ids = Tensor::<1, Int>::from_data(TensorData::new(ids.to_vec(), [ids.len()]), device);
    RouterInputs { token_ids: Some(ids), ..RouterInputs::default() }
}

fn tokens(count: usize, device: &Device) -> Tensor<2> {
    let values: Vec<f32> = (0..count * WIDTH).map(|index| (0.7 * index as f32 + 0.2).sin()).collect();
    Tensor::from_data(TensorData::new(values, [count, WIDTH]), device)
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    tensor.into_data().iter::<f64>().collect()
}

fn assert_close(got: &[f64], want: &[f64]) {
    assert_eq!(got.len(), want.len());
    for (got, want) in got.iter().zip(want) {
        assert!((got - want).abs() < 1e-6, "{got} is not {want}");
    }
}

#[test]
fn an_expert_without_tokens_changes_nothing_and_learns_nothing() {
    for device in devices() {
        let device = device.autodiff();
        let layer = by_id(&device);
        let x = tokens(5, &device);
        let (y, routing) =
            layer.forward_with(x.clone(), &ids(&[0, 3, 0, 1, 3], &device), Phase::Training).unwrap();
        assert_eq!(routing.assignment.tokens_per_expert(), [2, 1, 0, 2]);
        let row = |token: usize, expert| {
            values(layer.experts.forward_expert(x.clone().narrow(0, token, 1), expert))
        };
        let want = [row(0, 0), row(1, 3), row(2, 0), row(3, 1), row(4, 3)].concat();
        assert_close(&values(y.clone()), &want);
        let gradients = y.square().sum().backward();
        for weight in [&layer.experts.gate_up_proj, &layer.experts.down_proj] {
            let gradient = weight.val().grad(&gradients).expect("other experts learn");
            let of_expert = |expert| values(gradient.clone().narrow(0, expert, 1));
            assert!(of_expert(2).iter().all(|slope| *slope == 0.0));
            for expert in [0, 1, 3] {
                assert!(of_expert(expert).iter().any(|slope| slope.abs() > 1e-9), "expert {expert}");
            }
        }
    }
}

#[test]
fn an_expert_that_gets_all_is_a_dense_layer() {
    for device in devices() {
        let layer = by_id(&device);
        for count in [1, 2, 7] {
            let x = tokens(count, &device);
            let inputs = ids(&vec![2; count], &device);
            let (y, routing) = layer.forward_with(x.clone(), &inputs, Phase::Training).unwrap();
            assert_eq!(routing.assignment.tokens_per_expert(), [0, 0, count, 0]);
            assert_close(&values(y), &values(layer.experts.forward_expert(x, 2)));
        }
    }
}

#[test]
fn an_empty_batch_gives_empty_results() {
    for device in devices() {
        for device in [device.clone(), device.autodiff()] {
            for config in [
                config(),
                config().with_noise(RouterNoise::Gaussian).with_capacity_factor(Some(1.0)),
                config().with_layout(MoeLayout::DeepseekV3).with_shared_intermediate_size(3),
                config().with_num_experts_per_tok(1).with_selection(Selection::Random),
            ] {
                let layer = config.init(&device);
                let (y, routing) = layer.forward_with_routing(Tensor::<3>::zeros([0, 3, WIDTH], &device));
                assert_eq!(y.dims(), [0, 3, WIDTH]);
                let k = config.num_experts_per_tok;
                assert_eq!((routing.weights.dims(), routing.indices.dims()), ([0, k], [0, k]));
                assert_eq!(routing.assignment.tokens_per_expert(), [0; EXPERTS]);
                assert_eq!(routing.assignment.dropped_share(), 0.0);
                let plan = DispatchPlan::new(&routing.assignment);
                assert_eq!((plan.order().len(), plan.offsets()), (0, &[0; EXPERTS + 1][..]));
                if routing.scores.is_some() {
                    let losses = BalanceLosses::new(&routing, [0, 3], None, CountNormalizer::Tokens);
                    assert_eq!(values(losses.load_balance), [0.0]);
                }
            }
        }
    }
}

#[test]
fn losses_of_masked_tokens_alone_are_zero() {
    for device in devices() {
        let layer = config().init(&device);
        let (_, routing) = layer.forward_with_routing(tokens(6, &device));
        let mask = Tensor::<2, Bool>::from_data(TensorData::from([[false; 3]; 2]), &device);
        let losses = BalanceLosses::new(&routing, [2, 3], Some(&mask), CountNormalizer::Assignments);
        let all = [losses.load_balance, losses.sequence_balance, losses.z_loss, losses.importance_cv2];
        assert!(all.into_iter().all(|loss| values(loss) == [0.0]));
        assert_eq!(losses.tokens_per_expert, [0; EXPERTS]);
    }
}

#[test]
#[cfg(debug_assertions)]
fn nan_scores_are_refused_in_debug_builds() {
    for device in devices() {
        let layer = config().init(&device);
        let mut x = vec![0.5f32; 2 * WIDTH];
        x[WIDTH] = f32::NAN;
        let x = Tensor::<2>::from_data(TensorData::new(x, [2, WIDTH]), &device);
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| layer.forward(x)));
        let text = outcome.err().and_then(|payload| {
            let text = payload.downcast_ref::<String>().cloned();
            text.or_else(|| payload.downcast_ref::<&str>().map(ToString::to_string))
        });
        assert!(text.expect("refused").contains("the logits hold NaN"));
    }
}

#[test]
fn indices_outside_the_experts_are_refused() {
    for device in devices() {
        let layer = by_id(&device);
        let x = tokens(2, &device);
        let refused = |inputs: &RouterInputs| {
            let error = layer.forward_with(x.clone(), inputs, Phase::Inference).map(drop).unwrap_err();
            error.to_string()
        };
        assert_eq!(refused(&ids(&[0, 4], &device)), "input `token_ids`: got 4 at [1], need 0 .. 4");
        assert_eq!(refused(&ids(&[-1, 0], &device)), "input `token_ids`: got -1 at [0], need 0 .. 4");
        assert_eq!(refused(&ids(&[0], &device)), "input `token_ids`: got 1 entries, need 2");
        assert_eq!(refused(&RouterInputs::default()), "input `token_ids`: got none, need one a token");

        let random = config().with_num_experts_per_tok(1).with_selection(Selection::Random).init(&device);
        let draws = ids(&[0, 4], &device).token_ids;
        let inputs = RouterInputs { expert_draws: draws, ..RouterInputs::default() };
        let error = random.forward_with(x, &inputs, Phase::Inference).map(drop).unwrap_err();
        assert_eq!(error.to_string(), "input `expert_draws`: got 4 at [1], need 0 .. 4");

        let indices = |values: [[i64; 2]; 2]| Tensor::<2, Int>::from_data(TensorData::from(values), &device);
        let logits = || Tensor::zeros([2, EXPERTS], &device);
        let weights = |k| Tensor::ones([2, k], &device);
        let parts = |indices, weights| Routing::from_parts(logits(), ScoringFunc::Softmax, indices, weights);
        let error = parts(indices([[0, 1], [2, 4]]), weights(2)).map(drop).unwrap_err();
        assert_eq!(error.to_string(), "input `indices`: got expert 4 at [1, 1], need 0 .. 4");
        let error = parts(indices([[0, -1], [2, 3]]), weights(2)).map(drop).unwrap_err();
        assert_eq!(error.to_string(), "input `indices`: got -1, need 0 .. 4");
        let error = parts(indices([[0, 1], [2, 3]]), weights(1)).map(drop).unwrap_err();
        assert_eq!(error.field, "indices");
        assert!(parts(indices([[0, 1], [2, 3]]), weights(2)).is_ok());
    }
    assert!(Assignment::new(vec![0, 4], 1, 4).is_err());
    assert!(Assignment::new(vec![0], 1, 0).is_err(), "there is no expert 0 of none");
    assert!(Assignment::new(vec![0, 1, 2], 2, 4).is_err());
    assert!(Assignment::new(vec![0, 1], 0, 4).is_err());
}

#[test]
fn configurations_that_make_no_layer_are_refused_by_field() {
    let device = Device::flex();
    let grouped = |groups, chosen| config().with_n_group(groups).with_topk_group(chosen);
    let one = || config().with_num_experts_per_tok(1);
    let refused = [
        (MoeLayerConfig::new(0, 5), "hidden_size"),
        (MoeLayerConfig::new(WIDTH, 0), "moe_intermediate_size"),
        (config().with_num_experts(0), "num_experts"),
        (config().with_num_experts_per_tok(0), "num_experts_per_tok"),
        (config().with_num_experts_per_tok(5), "num_experts_per_tok"),
        (grouped(3, 1), "n_group"),
        (grouped(0, 1), "n_group"),
        (grouped(2, 3), "topk_group"),
        (grouped(4, 1).with_group_score(GroupScore::Max), "topk_group"),
        (grouped(4, 2), "group_score"),
        (one().with_second_expert_policy(SecondExpertPolicy::Random), "second_expert_policy"),
        (config().with_capacity_factor(Some(0.0)), "capacity_factor"),
        (config().with_capacity_factor(Some(-1.0)), "capacity_factor"),
        (config().with_capacity_factor(Some(f64::INFINITY)), "capacity_factor"),
        (
            config().with_topk_order(TopkOrder::TopkThenScore).with_selection_bias(Some(true)),
            "selection_bias",
        ),
        (one().with_selection(Selection::Hash), "vocab_size"),
        (config().with_selection(Selection::Random), "num_experts_per_tok"),
        (config().with_bias_update_speed(f64::NAN), "bias_update_speed"),
        (config().with_shared_expert_gate(true), "shared_expert_gate"),
    ];
    for (config, field) in refused {
        let error = config.try_init(&device).map(drop).expect_err(field);
        assert_eq!(error.field, field, "{error}");
    }
    for factor in [0.0, f64::NAN] {
        let choice = ExpertChoiceRouterConfig::new(WIDTH).with_capacity_factor(factor);
        assert_eq!(choice.try_init(&device).map(drop).unwrap_err().field, "capacity_factor");
        assert_eq!(Capacity::new(factor, Priority::Token).unwrap_err().field, "capacity_factor");
    }
}

#[test]
fn a_capacity_below_one_slot_still_has_one() {
    for device in devices() {
        let device = device.autodiff();
        let layer = config().with_num_experts_per_tok(1).with_capacity_factor(Some(1e-6)).init(&device);
        let (y, routing) = layer.forward_with_routing(tokens(9, &device));
        let kept = routing.assignment.kept().iter().filter(|kept| **kept).count();
        let used = routing.assignment.tokens_per_expert().iter().filter(|count| **count > 0).count();
        assert_eq!(kept, used, "one slot for every expert that was chosen");
        let dropped: Vec<usize> = (0..9).filter(|token| !routing.assignment.kept()[*token]).collect();
        let y = values(y);
        for token in dropped {
            assert!(y[token * WIDTH..(token + 1) * WIDTH].iter().all(|value| *value == 0.0));
        }
    }
}

#[test]
#[should_panic(expected = "has 5 channels in its last axis, the module 6")]
fn a_wrong_width_panics() {
    let device = Device::flex();
    config().init(&device).forward(Tensor::<3>::zeros([1, 2, 5], &device));
}

#[test]
#[should_panic]
fn offsets_beyond_the_rows_panic() {
    let device = Device::flex();
    grouped_matmul(Tensor::zeros([3, WIDTH], &device), &[0, 2, 4], Tensor::zeros([2, 5, WIDTH], &device));
}
