//! What runs is what was chosen, and comes to the same as the dense form.

use burn::tensor::Tensor;
use gatekit_core::ModuleConfig;
use gatekit_core::dispatch::PrefixPlan;
use gatekit_core::router::Phase;
use gatekit_experts::acm::{
    Acm, AcmActivation, AcmBias, AcmBlockConfig, AcmConfig, AcmGateKind, AcmMode, ModelCost, linear_cost,
};

use super::{choice, close, devices, integers, lively, values, waves};

const BIASES: [AcmBias; 4] = [AcmBias::None, AcmBias::HiddenOnly, AcmBias::OutOnly, AcmBias::Both];

fn config(bias: AcmBias) -> AcmConfig {
    AcmConfig::new(6, 3).with_num_blocks(4).with_bias(bias)
}

#[test]
fn partial_sums_are_those_of_the_learners_one_by_one() {
    for device in devices() {
        for (bias, activation) in BIASES.into_iter().zip([
            AcmActivation::Gelu,
            AcmActivation::Relu,
            AcmActivation::Identity,
            AcmActivation::Gelu,
        ]) {
            let acm: Acm = lively(config(bias).with_activation(activation).init(&device));
            let x = waves([2, 5, 6], 0.3, &device);
            let h = acm.learners.forward(x.clone());
            assert_eq!(h.dims(), [2, 5, 5, 6]);
            for k in 0..=4 {
                let fixed = acm.forward(x.clone(), AcmMode::Fixed(k)).unwrap();
                let sum = h.clone().narrow(2, k, 1).squeeze_dim::<3>(2);
                close(&values(fixed.y), &values(sum), 1e-5);
                assert_eq!(integers(fixed.choice), [k as i64; 10]);
                let one_hot: Vec<f64> = (0..5).map(|class| f64::from(u8::from(class == k))).collect();
                assert_eq!(values(fixed.gate), one_hot.repeat(10));
            }
            let all = acm.forward(x.clone(), AcmMode::All).unwrap();
            close(&values(all.y), &values(h.narrow(2, 4, 1).squeeze_dim::<3>(2)), 1e-5);
        }
    }
}

#[test]
fn chosen_execution_is_the_sum_with_a_constant_gate() {
    let choices: [&[i64]; 5] =
        [&[0, 4, 2, 1, 3, 3, 0, 2], &[0; 8], &[4; 8], &[2, 2, 2, 2, 2, 2, 2, 0], &[1, 0, 0, 0, 0, 0, 0, 0]];
    for device in devices() {
        for (bias, detach) in BIASES.into_iter().flat_map(|bias| [(bias, false), (bias, true)]) {
            let autodiff = device.clone().autodiff();
            let acm: Acm = lively(config(bias).with_detach(detach).init(&autodiff));
            for chosen in choices {
                let run = |mixed: bool| {
                    let x = waves([2, 4, 6], 0.9, &autodiff).require_grad();
                    let given = acm.forward_given(x.clone(), choice(chosen, [2, 4], &autodiff)).unwrap();
                    let y = if mixed { acm.learners.forward_mixed(x.clone(), given.gate) } else { given.y };
                    let weights = waves([2, 4, 6], 2.0, &autodiff);
                    // Where no token has a learner, y may depend on nothing.
                    let loss = (y.clone() * weights).sum() + x.clone().sum().mul_scalar(0.0);
                    let gradients = loss.backward();
                    let of = |tensor: Option<Tensor<2>>| tensor.map(values);
                    let w1 = acm.learners.w1.val();
                    let w1 = of(w1.grad(&gradients)).unwrap_or_else(|| vec![0.0; 6 * 12]);
                    let w2 = of(acm.learners.w2.val().grad(&gradients)).unwrap_or_else(|| vec![0.0; 6 * 12]);
                    let b2 = acm.learners.b2.as_ref().and_then(|b2| b2.val().grad(&gradients));
                    let x = x.grad(&gradients).map_or_else(|| vec![0.0; 48], values);
                    (values(y), x, w1, w2, b2.map(values))
                };
                let (sparse, dense) = (run(false), run(true));
                close(&sparse.0, &dense.0, 1e-5);
                close(&sparse.1, &dense.1, 1e-5);
                close(&sparse.2, &dense.2, 1e-5);
                close(&sparse.3, &dense.3, 1e-5);
                match (sparse.4, dense.4) {
                    (Some(sparse), Some(dense)) => close(&sparse, &dense, 1e-5),
                    (sparse, dense) => assert_eq!(bias.out(), sparse.is_some() && dense.is_some()),
                }
            }
        }
    }
}

#[test]
fn tokens_one_by_one_come_to_the_same() {
    for device in devices() {
        let acm: Acm = lively(config(AcmBias::HiddenOnly).init(&device));
        let depths = [3, 0, 4, 1, 2, 2, 0];
        let x = waves([1, 7, 6], 0.2, &device);
        let plan = PrefixPlan::new(&depths, 4).unwrap();
        // Learner i as the difference of two partial sums, on one token alone.
        let of = |token: usize, k: usize| {
            let x = x.clone().narrow(1, token, 1);
            values(acm.learners.forward_first(x, k).unwrap())
        };
        let y: Vec<f64> = (depths.iter().enumerate())
            .flat_map(|(token, depth)| {
                let terms = (0..*depth).map(|i| {
                    let pairs = of(token, i + 1).into_iter().zip(of(token, i));
                    pairs.map(|(with, without)| with - without).collect::<Vec<_>>()
                });
                terms.fold(vec![0.0; 6], |sum, term| sum.iter().zip(term).map(|(a, b)| a + b).collect())
            })
            .collect();
        close(&values(acm.learners.forward_chosen(x, &plan)), &y, 1e-5);
    }
}

#[test]
fn gated_evaluation_is_what_the_gate_says() {
    for device in devices() {
        for min_choice in [0, 1, 4] {
            let acm: Acm = lively(config(AcmBias::Both).with_min_choice(min_choice).init(&device));
            let x = waves([3, 5, 6], 1.1, &device);
            let out = acm.forward(x.clone(), AcmMode::Gated).unwrap();
            let said = acm.gate_of(x.clone(), None, Phase::Inference).unwrap();
            let choices = integers(said.choice.clone());
            assert_eq!(integers(out.choice), choices);
            assert!(choices.iter().all(|choice| (min_choice as i64..=4).contains(choice)), "{choices:?}");
            let given = acm.forward_given(x.clone(), said.choice).unwrap();
            assert_eq!(values(out.y), values(given.y.clone()));
            assert_eq!(values(out.gate), values(given.gate));
            let h = values(acm.learners.forward(x));
            let row = |token: usize, k: usize| h[(token * 5 + k) * 6..][..6].to_vec();
            let expected: Vec<f64> =
                choices.iter().enumerate().flat_map(|(token, k)| row(token, *k as usize)).collect();
            close(&values(given.y), &expected, 1e-5);
        }
    }
}

#[test]
fn training_draws_noise_and_reaches_the_gate() {
    for device in devices() {
        for (task_gradient, kind) in
            [(true, AcmGateKind::Gumbel), (false, AcmGateKind::Gumbel), (true, AcmGateKind::Soft)]
        {
            device.seed(3);
            let autodiff = device.clone().autodiff();
            let config = config(AcmBias::HiddenOnly).with_task_gradient(task_gradient).with_gate_kind(kind);
            let acm: Acm = lively(config.init(&autodiff));
            let x = waves([4, 16, 6], 0.4, &autodiff);
            let first = acm.forward(x.clone(), AcmMode::Gated).unwrap();
            let second = acm.forward(x, AcmMode::Gated).unwrap();
            let differ = integers(first.choice) != integers(second.choice.clone());
            assert_eq!(differ, kind == AcmGateKind::Gumbel, "noise is drawn anew");
            let sums = values(second.gate.clone().sum_dim(2));
            close(&sums, &[1.0; 64], 1e-5);
            let hard = values(second.gate).iter().all(|z| *z == 0.0 || *z == 1.0);
            assert_eq!(hard, kind == AcmGateKind::Gumbel);
            let gradients = second.y.powi_scalar(2).sum().backward();
            let gate = acm.gating_network.as_ref().unwrap();
            let reached = gate.net[0]
                .weight
                .val()
                .grad(&gradients)
                .is_some_and(|g| values(g).iter().any(|g| *g != 0.0));
            assert_eq!(reached, task_gradient);
        }
    }
}

#[test]
fn gates_without_hardening_mix_in_training() {
    for device in devices() {
        let acm: Acm = lively(config(AcmBias::Both).with_gs_hard(false).init(&device));
        let x = waves([1, 6, 6], 0.8, &device);
        let noise = waves([1, 6, 5], 0.1, &device);
        let out = acm.forward_with(x.clone(), AcmMode::Gated, Some(noise), Phase::Training).unwrap();
        let mixed = acm.learners.forward(x) * out.gate.unsqueeze_dim::<4>(3);
        close(&values(out.y), &values(mixed.sum_dim(2).squeeze_dim::<3>(2)), 1e-5);
    }
}

#[test]
fn extremes_are_exact() {
    for device in devices() {
        // One learner, one channel, one token; no token at all.
        let acm: Acm = lively(AcmConfig::new(1, 1).with_num_blocks(1).with_gate_depth(1).init(&device));
        let x = waves([1, 1, 1], 0.5, &device);
        assert_eq!(acm.forward(x.clone(), AcmMode::Gated).unwrap().y.dims(), [1, 1, 1]);
        assert_eq!(values(acm.forward(x, AcmMode::Fixed(0)).unwrap().y), [0.0]);
        for shape in [[0, 3, 1], [2, 0, 1]] {
            let none = Tensor::<3>::zeros(shape, &device);
            for mode in [AcmMode::All, AcmMode::Fixed(0), AcmMode::Gated] {
                let out = acm.forward(none.clone(), mode).unwrap();
                assert_eq!((out.y.dims(), out.choice.dims()), (shape, [shape[0], shape[1]]));
                assert_eq!(out.gate.dims(), [shape[0], shape[1], 2]);
            }
            assert_eq!(acm.learners.forward(none.clone()).dims(), [shape[0], shape[1], 2, 1]);
            let training = acm.forward(Tensor::zeros(shape, &device.clone().autodiff()), AcmMode::Fixed(1));
            assert_eq!(training.unwrap().y.dims(), shape);
        }
    }
}

#[test]
fn blocks_run_their_modules() {
    for device in devices() {
        let config = AcmBlockConfig::new(8, 2, 4).with_num_blocks(3).with_num_heads(2);
        let block = lively(config.init(&device));
        let x = waves([2, 5, 8], 0.6, &device);
        let out = block.forward(x.clone(), AcmMode::Gated).unwrap();
        let choices = integers(out.choices.clone());
        assert!(choices.chunks_exact(5).all(|row| row[..4].iter().all(|choice| *choice >= 1)), "{choices:?}");
        let given = block.forward_given(x.clone(), out.choices).unwrap();
        close(&values(given.y), &values(out.y), 1e-5);
        let all = block.forward(x.clone(), AcmMode::All).unwrap();
        let fixed = block.forward(x.clone(), AcmMode::Fixed(3)).unwrap();
        assert_eq!(values(all.y), values(fixed.y));
        // Without learners the MLP adds nothing, and the projections must have one.
        let ones = choice(&[1, 1, 1, 1, 0].repeat(10), [2, 5, 5], &device);
        assert!(block.forward_given(x.clone(), ones).is_ok());
        let wrong = choice(&[1; 40], [2, 5, 4], &device);
        assert_eq!(block.forward_given(x, wrong).unwrap_err().field, "choices");
    }
}

#[test]
fn costs_are_counted() {
    let device = &devices()[1];
    let acm: Acm = AcmConfig::mlp(64, 256, 4).init(device);
    let cost = acm.cost();
    assert_eq!(acm.learners.block_dim(), 64);
    assert_eq!(cost.learner, 2.0 * (64.0 * 64.0 + 64.0 + 64.0 * 64.0));
    assert_eq!(cost.gate, 2.0 * (64.0 * 16.0 + 16.0 + 16.0 * 16.0 + 16.0 + 16.0 * 5.0 + 5.0));
    // As much as the MLP but for its output bias.
    assert_eq!(4.0 * cost.learner, linear_cost([64, 256], true) + linear_cost([256, 64], false));
    let projection: Acm = AcmConfig::projection(64, 4).init(device);
    assert_eq!((projection.learners.block_dim(), projection.cost().gate), (8, cost.gate - 2.0 * 17.0));
    let share = 4.0 * projection.cost().learner / linear_cost([64, 64], true);
    assert!((share - 1.0).abs() < 0.01, "{share}");

    let model = ModelCost { rest: 1000.0, tokens: 10, modules: vec![cost, projection.cost()] };
    let expected = 1000.0 + 10.0 * (cost.gate + 1.5 * cost.learner + projection.cost().of_token(2.0));
    assert!((model.total(&[1.5, 2.0]).unwrap() - expected).abs() < 1e-6);
    assert_eq!(model.full(), 1000.0 + 40.0 * (cost.learner + projection.cost().learner));
    assert_eq!(model.learner_costs(), [cost.learner, projection.cost().learner]);
    assert_eq!(model.total(&[1.0]).unwrap_err().field, "mean_choices");
    assert!(model.total(&[1.0, 4.5]).is_err() && model.total(&[f64::NAN, 1.0]).is_err());
}
