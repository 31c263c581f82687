//! Routers beyond the golden cases: edges and draws.

mod bad_input;
mod balance;
mod prune;

use burn::tensor::{Bool, DType, Int, Tensor, TensorData};

use super::*;
use crate::config::ModuleConfig;
use crate::error::ConfigError;
use crate::test_util::{assert_close, devices, float32, ramp, values};
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
