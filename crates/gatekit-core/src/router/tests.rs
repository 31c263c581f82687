//! Routers beyond the golden cases: edges, draws, bad input.

use burn::tensor::{Bool, DType, Int, Tensor, TensorData};

use super::*;
use crate::config::ModuleConfig;
use crate::error::ConfigError;
use crate::test_util::{assert_close, devices, float32, float64, ramp, values};
use burn::module::Param;

fn learned(config: &RouterConfig, weight: &[f64], device: &Device) -> LearnedRouter {
    let Router::Learned(mut router) = config.init(device) else { panic!("learned by default") };
    let shape = [config.num_experts, config.hidden_size];
    router.weight = Param::from_tensor(float32(weight, shape, device));
    router
}

/// A router whose logits are its input.
fn transparent(config: &RouterConfig, device: &Device) -> LearnedRouter {
    let n = config.num_experts;
    let identity: Vec<f64> = (0..n * n).map(|i| f64::from(u8::from(i / n == i % n))).collect();
    learned(config, &identity, device)
}

fn route(router: &LearnedRouter, logits: &[f64]) -> Routing {
    let experts = router.config().num_experts;
    let x = float32(logits, [logits.len() / experts, experts], &router.weight.val().device());
    router.route(x, &RouterInputs::default(), Phase::Inference)
}

#[test]
fn underflowing_softmax_still_ranks() {
    for device in devices() {
        let config = RouterConfig::new(4).with_num_experts(4);
        let routing = route(&transparent(&config, &device), &[0.0, -300.0, -250.0, -200.0]);
        assert_eq!(routing.assignment.experts(), [0, 3]);
        // The scores are what they are: the second is 0.
        assert_close(&values(routing.weights), &[1.0, 0.0], 0.0);
    }
}

#[test]
fn equal_logits_choose_the_lower_index() {
    for device in devices() {
        for order in [TopkOrder::ScoreThenTopk, TopkOrder::TopkThenScore] {
            let config =
                RouterConfig::new(5).with_num_experts(5).with_num_experts_per_tok(3).with_topk_order(order);
            let routing = route(&transparent(&config, &device), &[1.0, 2.0, 2.0, 1.0, 1.0]);
            assert_eq!(routing.assignment.experts(), [1, 2, 0]);
        }
    }
}

#[test]
fn selection_bias_selects_and_does_not_weigh() {
    for device in devices() {
        let config = RouterConfig::new(3)
            .with_num_experts(3)
            .with_num_experts_per_tok(1)
            .with_scoring_func(ScoringFunc::Sigmoid)
            .with_norm_topk_prob(false)
            .with_selection_bias(true);
        let mut router = transparent(&config, &device);
        let bias = Tensor::from_data(TensorData::from([0.0f32, 0.0, 1.0]), &device);
        router.e_score_correction_bias = Some(Param::from_tensor(bias));
        let routing = route(&router, &[1.0, 0.5, -1.0]);
        assert_eq!(routing.assignment.experts(), [2]);
        assert_close(&values(routing.weights), &[1.0 / (1.0 + 1f64.exp())], 1e-6);
    }
}

#[test]
fn scores_of_half_precision_tokens_are_in_float32() {
    for device in devices().into_iter().filter(|device| device.supports_dtype(DType::F16)) {
        let router = learned(&RouterConfig::new(4).with_num_experts(3), &ramp(12, 0.7), &device);
        let x = float32(&ramp(8, 1.0), [2, 4], &device).cast(DType::F16);
        let routing = router.route(x, &RouterInputs::default(), Phase::Inference);
        assert_eq!(routing.weights.dtype(), DType::F32);
        assert_eq!(routing.scores.unwrap().dtype(), DType::F32);
    }
}

#[test]
fn no_tokens_give_empty_tensors() {
    for device in devices() {
        let config = RouterConfig::new(4).with_noise(RouterNoise::Gaussian);
        let router = config.init(&device);
        let routing =
            router.route(Tensor::zeros([0, 4], &device), &RouterInputs::default(), Phase::Training).unwrap();
        assert_eq!(routing.logits.as_ref().unwrap().dims(), [0, 8]);
        assert_eq!(routing.weights.dims(), [0, 2]);
        assert_eq!(routing.indices.dims(), [0, 2]);
        assert_eq!(values(routing.importance()), [0.0; 8]);
        assert_eq!(routing.kept().dims(), [0, 2]);

        let random = StochasticAssignment::random(3);
        let routing = random.route(&Tensor::zeros([0, 4], &device), &RouterInputs::default()).unwrap();
        assert_eq!(routing.weights.dims(), [0, 1]);
        let choice = ExpertChoiceRouterConfig::new(4).init(&device).route(Tensor::zeros([0, 4], &device));
        assert_eq!((choice.scores.dims(), choice.weights.dims()), ([0, 8], [8, 0]));
        assert_eq!(choice.plan().tokens_per_expert(), [0; 8]);
    }
}

#[test]
#[cfg(debug_assertions)]
#[should_panic(expected = "the logits hold NaN")]
fn nan_is_refused_in_debug_builds() {
    let device = devices().remove(0);
    let config = RouterConfig::new(4).with_num_experts(4);
    route(&transparent(&config, &device), &[0.0, f64::NAN, 1.0, 2.0]);
}

#[test]
fn noise_is_drawn_in_training_alone() {
    for device in devices() {
        device.seed(5);
        for noise in [RouterNoise::Gaussian, RouterNoise::Jitter] {
            let config = RouterConfig::new(6).with_num_experts(5).with_noise(noise).with_noise_epsilon(0.1);
            let router = learned(&config, &ramp(30, 0.5), &device);
            let x = float32(&ramp(24, 1.0), [4, 6], &device);
            let logits = |phase| {
                let routing = router.route(x.clone(), &RouterInputs::default(), phase);
                assert_eq!(
                    routing.load.is_some(),
                    phase == Phase::Training && noise == RouterNoise::Gaussian
                );
                values(routing.logits.unwrap())
            };
            let clean = logits(Phase::Inference);
            assert_eq!(clean, logits(Phase::Inference));
            let (one, other) = (logits(Phase::Training), logits(Phase::Training));
            assert!(one != other && one != clean, "{noise:?}");
            // Jitter stays within a tenth of what the tokens contribute.
            if noise == RouterNoise::Jitter {
                let bound: f64 = 0.1 * 6.0 * 0.5;
                assert!(one.iter().zip(&clean).all(|(one, clean)| (one - clean).abs() <= bound));
            }
        }
    }
}

#[test]
fn load_of_all_experts_is_the_number_of_tokens() {
    for device in devices() {
        let config = RouterConfig::new(3)
            .with_num_experts(2)
            .with_noise(RouterNoise::Gaussian)
            .with_topk_order(TopkOrder::TopkThenScore);
        let router = learned(&config, &ramp(6, 0.5), &device);
        let x = float32(&ramp(15, 1.0), [5, 3], &device);
        let routing = router.route(x, &RouterInputs::default(), Phase::Training);
        assert_eq!(values(routing.load.unwrap()), [5.0, 5.0]);
    }
}

#[test]
fn second_experts_are_left_out_by_chance_in_training_alone() {
    for device in devices() {
        let config =
            RouterConfig::new(3).with_num_experts(3).with_second_expert_policy(SecondExpertPolicy::Random);
        let router = transparent(&config, &device);
        // Second weights 0.5, 0.27, 0.02.
        let logits = float32(&[1.0, 1.0, 0.0, 1.0, 0.0, -9.0, 4.0, 0.0, -9.0], [3, 3], &device);
        let kept = |u: Option<f64>, phase| {
            let uniform = u.map(|u| float32(&[u; 3], [3], &device));
            let inputs = RouterInputs { uniform, ..RouterInputs::default() };
            let routing = router.route(logits.clone(), &inputs, phase);
            let zero: Vec<bool> =
                values(routing.weights.clone()).iter().map(|weight| *weight > 0.0).collect();
            assert_eq!(zero, routing.assignment.kept(), "a slot that is not kept weighs nothing");
            assert_eq!(routing.assignment.experts()[..2], [0, 1]);
            routing.assignment.kept().to_vec()
        };
        assert_eq!(kept(None, Phase::Inference), [true; 6]);
        assert_eq!(kept(Some(0.0), Phase::Training), [true; 6]);
        assert_eq!(kept(Some(0.5), Phase::Training), [true, true, true, true, true, false]);
        assert_eq!(kept(Some(0.999), Phase::Training), [true, true, true, false, true, false]);
        device.seed(11);
        let many: usize = (0..200).map(|_| usize::from(kept(None, Phase::Training)[3])).sum();
        assert!((80..=136).contains(&many), "kept {many} of 200 at probability 0.54");
    }
}

#[test]
fn a_balanced_table_evens_out_frequencies() {
    for device in devices() {
        let frequencies = [1.0, 9.0, 4.0, 4.0, 2.0, 0.0];
        let assignment = StochasticAssignment::balanced(&frequencies, 2, &device);
        // 9 to the first; 4, 4 to the second; 2 to the second (8 < 9); 1 to the first; 0 to the first.
        let table: Vec<i64> = assignment.hash_table.unwrap().val().into_data().iter::<i64>().collect();
        assert_eq!(table, [0, 0, 1, 1, 1, 0]);
    }
}

#[test]
fn drawn_experts_are_even() {
    for device in devices() {
        device.seed(3);
        let x = Tensor::zeros([3000, 1], &device);
        let routing = StochasticAssignment::random(3).route(&x, &RouterInputs::default()).unwrap();
        let counts = routing.assignment.tokens_per_expert();
        assert!(counts.iter().all(|count| (900..1100).contains(count)), "{counts:?}");
        assert_eq!(values(routing.weights), vec![1.0; 3000]);
    }
}

#[test]
fn bad_ids_and_draws_are_refused() {
    for device in devices() {
        let x = Tensor::zeros([2, 4], &device);
        let ids = |ids: [i64; 2]| Some(Tensor::<1, Int>::from_data(TensorData::from(ids), &device));
        let config = RouterConfig::new(4)
            .with_num_experts_per_tok(1)
            .with_selection(Selection::Hash)
            .with_vocab_size(Some(7));
        let hash = config.init(&device);
        let refused = |router: &Router, inputs| {
            let error = router.route(x.clone(), &inputs, Phase::Training).unwrap_err();
            error.to_string()
        };
        let none = RouterInputs::default();
        assert_eq!(refused(&hash, none.clone()), "input `token_ids`: got none, need one a token");
        for (bad, got) in [([6, 7], "7 at [1]"), ([-1, 0], "-1 at [0]")] {
            let inputs = RouterInputs { token_ids: ids(bad), ..none.clone() };
            assert_eq!(refused(&hash, inputs), format!("input `token_ids`: got {got}, need 0 .. 7"));
        }
        let short = Tensor::<1, Int>::from_data(TensorData::from([1i64]), &device);
        let inputs = RouterInputs { token_ids: Some(short), ..none.clone() };
        assert_eq!(refused(&hash, inputs), "input `token_ids`: got 1 entries, need 2");
        let good = RouterInputs { token_ids: ids([0, 6]), ..none.clone() };
        let routing = hash.route(x.clone(), &good, Phase::Inference).unwrap();
        assert_eq!(routing.assignment.experts(), [0, 6]);

        let random = config.with_selection(Selection::Random).init(&device);
        let inputs = RouterInputs { expert_draws: ids([0, 8]), ..none };
        assert_eq!(refused(&random, inputs), "input `expert_draws`: got 8 at [1], need 0 .. 8");
        let table = ids([0, 3]).unwrap();
        assert_eq!(StochasticAssignment::from_table(table, 3).unwrap_err().field, "hash_table");

        let indices = Tensor::<2, Int>::from_data(TensorData::from([[0i64, 4], [1, 2]]), &device);
        let error = Assignment::from_tensor(&indices, 4).unwrap_err();
        assert_eq!(error.to_string(), "input `indices`: got expert 4 at [0, 1], need 0 .. 4");
        assert!(Assignment::new(vec![0, 1, 2], 2, 4).is_err());
    }
}

#[test]
fn losses_of_masked_tokens_are_zero() {
    for device in devices() {
        let router = learned(&RouterConfig::new(4).with_num_experts(3), &ramp(12, 0.7), &device);
        let routing = router.route(
            float32(&ramp(16, 1.0), [4, 4], &device),
            &RouterInputs::default(),
            Phase::Inference,
        );
        let mask = |mask: [[bool; 2]; 2]| Tensor::<2, Bool>::from_data(TensorData::from(mask), &device);
        let all = |losses: BalanceLosses| {
            let BalanceLosses { load_balance, sequence_balance, z_loss, importance_cv2, .. } = losses;
            let tensors =
                [load_balance, sequence_balance, z_loss, importance_cv2, losses.load_cv2, losses.entropy];
            values(Tensor::cat(tensors.to_vec(), 0))
        };
        let none = mask([[false; 2]; 2]);
        let losses = BalanceLosses::new(&routing, [2, 2], Some(&none), CountNormalizer::Tokens);
        assert_eq!(losses.tokens_per_expert, [0; 3]);
        assert_eq!(all(losses), [0.0; 6]);

        // A masked sequence and a masked token count as if they were not there.
        let half = mask([[true, true], [false, false]]);
        let masked = BalanceLosses::new(&routing, [2, 2], Some(&half), CountNormalizer::Assignments);
        let first = router.route(
            float32(&ramp(16, 1.0)[..8], [2, 4], &device),
            &RouterInputs::default(),
            Phase::Inference,
        );
        let alone = BalanceLosses::new(&first, [1, 2], None, CountNormalizer::Assignments);
        assert_eq!(masked.tokens_per_expert, alone.tokens_per_expert);
        assert_close(&all(masked), &all(alone), 1e-6);
    }
}

#[test]
fn even_routing_has_the_smallest_losses() {
    for device in devices() {
        let config = RouterConfig::new(4).with_num_experts(4).with_num_experts_per_tok(1);
        let router = transparent(&config, &device);
        let identity: Vec<f64> = (0..16).map(|i| if i / 4 == i % 4 { 5.0 } else { 0.0 }).collect();
        let even = BalanceLosses::new(&route(&router, &identity), [1, 4], None, CountNormalizer::Tokens);
        let collapsed = [5.0, 0.0, 0.0, 0.0].repeat(4);
        let skewed = BalanceLosses::new(&route(&router, &collapsed), [1, 4], None, CountNormalizer::Tokens);
        assert_close(&values(even.load_balance), &[1.0], 1e-6);
        assert_close(&values(even.importance_cv2), &[0.0], 1e-6);
        assert_close(&values(even.entropy), &[-(4f64.ln())], 1e-6);
        assert!(values(skewed.load_balance)[0] > 3.5 && values(skewed.sequence_balance)[0] > 3.5);
        assert!(values(skewed.entropy)[0] > -0.5);
        assert_close(&values(skewed.load_cv2), &[3.0], 1e-6);
    }
}

#[test]
fn bias_alone_evens_the_load() {
    for device in devices() {
        let config = RouterConfig::new(4)
            .with_num_experts(4)
            .with_scoring_func(ScoringFunc::Sigmoid)
            .with_num_experts_per_tok(1)
            .with_selection_bias(true);
        let mut router = Router::Learned(transparent(&config, &device));
        // Expert 0 is best for every token, by a little more or less.
        let logits: Vec<f64> =
            ramp(160, 0.3).iter().enumerate().map(|(i, x)| if i % 4 == 0 { x + 1.0 } else { *x }).collect();
        let x = float32(&logits, [40, 4], &device);
        let counts = |router: &Router| {
            let routing = router.route(x.clone(), &RouterInputs::default(), Phase::Training).unwrap();
            routing.assignment.tokens_per_expert()
        };
        assert_eq!(counts(&router), [40, 0, 0, 0]);
        let balancer = BiasBalancer::new(0.002);
        for _ in 0..300 {
            let load = counts(&router);
            router.rebalance(&balancer, &load);
        }
        let load = counts(&router);
        assert!(load.iter().all(|count| (6..=14).contains(count)), "{load:?}");
        let Router::Learned(router) = &router else { panic!("it was learned") };
        assert!(!router.e_score_correction_bias.as_ref().unwrap().is_require_grad());
    }
}

#[test]
fn gradients_reach_the_gate_through_weights_and_losses() {
    for device in devices() {
        let device = device.autodiff();
        let config = RouterConfig::new(4).with_num_experts(3).with_selection_bias(true);
        let config = config.with_scoring_func(ScoringFunc::Sigmoid);
        let router = learned(&config, &ramp(12, 0.7), &device);
        let x = float32(&ramp(8, 1.0), [2, 4], &device);
        let routing = router.route(x, &RouterInputs::default(), Phase::Training);
        let losses = BalanceLosses::new(&routing, [1, 2], None, CountNormalizer::Tokens);
        let loss = routing.weights.clone().narrow(1, 0, 1).sum().reshape([1]) + losses.load_balance;
        let gradients = loss.backward();
        let gradient = values(router.weight.val().grad(&gradients).unwrap());
        assert!(gradient.iter().any(|slope| slope.abs() > 1e-3), "{gradient:?}");
        let bias = router.e_score_correction_bias.as_ref().unwrap().val();
        assert!(bias.grad(&gradients).is_none(), "selection takes no gradient");
    }
}

#[test]
fn experts_choose_their_share() {
    for device in devices() {
        for (factor, tokens, need) in [(1.0, 8, 2), (0.5, 6, 1), (0.01, 6, 1), (9.0, 6, 6), (2.0, 5, 2)] {
            let config = ExpertChoiceRouterConfig::new(3).with_num_experts(4).with_capacity_factor(factor);
            let router = config.init(&device);
            assert_eq!(router.capacity(tokens), need);
            let choice = router.route(float32(&ramp(tokens * 3, 1.0), [tokens, 3], &device));
            assert_eq!(choice.weights.dims(), [4, need]);
            assert_eq!(choice.coverage().iter().sum::<usize>(), 4 * need);
            assert_eq!(choice.plan().offsets()[4], 4 * need);
        }
        let double = ExpertChoiceRouterConfig::new(2).with_num_experts(2).init(&device);
        assert_eq!(double.route(float64(&ramp(4, 1.0), [2, 2], &device)).scores.dtype(), DType::F64);
    }
}

#[test]
fn refuses_bad_configurations() {
    let device = devices().remove(0);
    let ok = || RouterConfig::new(4).with_num_experts(8).with_num_experts_per_tok(2);
    assert!(ok().check().is_ok());
    let bad: Vec<(RouterConfig, &str)> = vec![
        (RouterConfig::new(0), "hidden_size"),
        (ok().with_num_experts(0), "num_experts"),
        (ok().with_num_experts(1 << 20), "num_experts"),
        (ok().with_num_experts_per_tok(0), "num_experts_per_tok"),
        (ok().with_num_experts_per_tok(9), "num_experts_per_tok"),
        (ok().with_n_group(0), "n_group"),
        (ok().with_n_group(3), "n_group"),
        (ok().with_n_group(2).with_topk_group(0), "topk_group"),
        (ok().with_n_group(2).with_topk_group(3), "topk_group"),
        (ok().with_n_group(4).with_num_experts_per_tok(3), "topk_group"),
        (ok().with_n_group(8).with_topk_group(4), "group_score"),
        (
            ok().with_num_experts_per_tok(1).with_second_expert_policy(SecondExpertPolicy::Random),
            "second_expert_policy",
        ),
        (ok().with_routed_scaling_factor(f64::NAN), "routed_scaling_factor"),
        (ok().with_noise_epsilon(-1.0), "noise_epsilon"),
        (ok().with_noise(RouterNoise::Gaussian).with_noise_epsilon(0.0), "noise_epsilon"),
        (ok().with_topk_order(TopkOrder::TopkThenScore).with_selection_bias(true), "selection_bias"),
        (ok().with_selection(Selection::Random), "num_experts_per_tok"),
        (ok().with_num_experts_per_tok(1).with_selection(Selection::Hash), "vocab_size"),
        (
            ok().with_num_experts_per_tok(1).with_selection(Selection::Random).with_router_bias(true),
            "router_bias",
        ),
    ];
    for (config, field) in bad {
        assert_eq!(config.try_init(&device).map(drop).unwrap_err().field, field, "{config:?}");
    }
    assert!(ok().with_n_group(8).with_topk_group(4).with_group_score(GroupScore::Max).check().is_ok());
    let choice =
        |config: ExpertChoiceRouterConfig| -> ConfigError { config.try_init(&device).map(drop).unwrap_err() };
    assert_eq!(choice(ExpertChoiceRouterConfig::new(0)).field, "hidden_size");
    for factor in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let config = ExpertChoiceRouterConfig::new(2).with_capacity_factor(factor);
        assert_eq!(choice(config).field, "capacity_factor");
    }
}

#[test]
fn switch_initialisation_is_truncated() {
    for device in devices() {
        device.seed(1);
        let config = RouterConfig::new(40)
            .with_num_experts(100)
            .with_initialisation(RouterInitialisation::TruncatedNormal);
        let Router::Learned(router) = config.init(&device) else { panic!("it is learned") };
        let (std, weight) = ((0.1f64 / 40.0).sqrt(), values(router.weight.val()));
        assert!(weight.iter().all(|weight| weight.abs() <= 2.0 * std * (1.0 + 1e-6)));
        let deviation = (weight.iter().map(|weight| weight * weight).sum::<f64>() / 4000.0).sqrt();
        // A normal truncated at two deviations has 0.88 of its deviation.
        assert!((deviation / std - 0.88).abs() < 0.03, "{deviation}");
    }
}
