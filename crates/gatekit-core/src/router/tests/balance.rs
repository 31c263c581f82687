//! What keeps experts evenly used.

use super::*;

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
