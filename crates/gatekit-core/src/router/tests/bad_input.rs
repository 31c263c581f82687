//! What routers refuse, and the least they accept.

use super::*;

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
