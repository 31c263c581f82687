//! Hecto: choices, unlike experts, losses, usage, training.
#![cfg(all(feature = "ndarray", feature = "flex"))]
#![allow(missing_docs)]

mod input;

use burn::module::{Module, Param};
use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::{Bool, Device, Int, Tensor, TensorData};
use gatekit_core::ModuleConfig;
use gatekit_core::router::Phase;
use gatekit_experts::hecto::{
    Estimator, ExpertKind, ExpertUsage, GruConfig, HectoConfig, HectoHead, HectoLossConfig, HectoModelConfig,
    HectoTargets, HectoTask, SequenceExpert, Top1GateConfig,
};

#[allow(deprecated, reason = "NdArray is supported as long as Burn has it")]
fn devices() -> [Device; 2] {
    [Device::ndarray(), Device::flex()]
}

fn config() -> HectoConfig {
    HectoConfig::new().with_encoder_dim(6).with_input_dim(5).with_hidden_dim(4).with_num_outputs(3)
}

fn ramp(count: usize, amplitude: f64) -> Vec<f64> {
    (0..count).map(|i| amplitude * (1.7 * i as f64 * (1.0 + 0.01 * i as f64) + 0.3).sin()).collect()
}

fn float<const D: usize>(values: &[f64], shape: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape), device)
}

fn ints(values: &[i64], device: &Device) -> Tensor<1, Int> {
    Tensor::from_data(TensorData::new(values.to_vec(), [values.len()]), device)
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    tensor.into_data().iter::<f64>().collect()
}

/// True for the first tokens of every row.
fn mask(lengths: &[usize], time: usize, device: &Device) -> Tensor<2, Bool> {
    let flat: Vec<bool> = lengths.iter().flat_map(|length| (0..time).map(move |t| t < *length)).collect();
    Tensor::from_data(TensorData::new(flat, [lengths.len(), time]), device)
}

#[track_caller]
fn assert_close(got: &[f64], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len());
    for (place, (got, want)) in got.iter().zip(want).enumerate() {
        assert!((got - want).abs() <= tolerance * want.abs().max(1.0), "value {place}: {got}, not {want}");
    }
}

/// A head whose gate tells inputs apart.
fn lively(config: &HectoConfig, device: &Device) -> HectoHead {
    device.seed(11);
    let mut head = config.init(device).materialize();
    let experts = config.experts.len();
    head.gate.weight = Param::from_tensor(float(&ramp(experts * 5, 3.0), [experts, 5], device));
    head
}

/// Sizes, states and mask of seven sequences.
fn sequences(device: &Device) -> (Tensor<3>, Tensor<2, Bool>) {
    let lengths = [6, 1, 3, 6, 2, 5, 4];
    (float(&ramp(7 * 6 * 6, 1.2), [7, 6, 6], device), mask(&lengths, 6, device))
}

#[test]
fn the_chosen_expert_alone_runs_and_answers() {
    for device in devices() {
        for experts in [
            vec![ExpertKind::Ffnn, ExpertKind::Gru],
            vec![ExpertKind::Gru, ExpertKind::Ffnn, ExpertKind::Gru],
            vec![ExpertKind::Gru],
        ] {
            for estimator in [Estimator::StraightThrough, Estimator::Switch, Estimator::None] {
                let config = config().with_experts(experts.clone()).with_estimator(estimator);
                let head = lively(&config, &device);
                let (states, mask) = sequences(&device);
                let output = head.forward(states.clone(), mask.clone()).unwrap();
                let x = head.proj.forward(states);
                let answers: Vec<Vec<f64>> =
                    head.experts.iter().map(|e| values(e.forward(x.clone(), mask.clone()))).collect();
                let (choice, probs) =
                    (output.choice.into_data().iter::<i64>().collect::<Vec<_>>(), values(output.probs));
                let mut want = Vec::new();
                for (row, &expert) in choice.iter().enumerate() {
                    let probability = probs[row * experts.len() + expert as usize];
                    let scale = if estimator == Estimator::Switch { probability } else { 1.0 };
                    want.extend(answers[expert as usize][row * 3..][..3].iter().map(|value| scale * value));
                }
                assert_close(&values(output.y), &want, 1e-5);
                if experts.len() == 2 {
                    assert!(choice.contains(&0) && choice.contains(&1), "both are chosen: {choice:?}");
                }
            }
        }
    }
}

#[test]
fn training_answers_with_the_same_values() {
    for device in devices() {
        let head = lively(&config(), &device);
        let (states, mask) = sequences(&device);
        let evaluated = head.forward_with(states.clone(), mask.clone(), Phase::Inference).unwrap();
        let trained = head.forward_with(states, mask, Phase::Training).unwrap();
        assert_close(&values(trained.y), &values(evaluated.y), 1e-5);
        assert_eq!(values(trained.probs), values(evaluated.probs));
    }
}

#[test]
fn estimators_differ_in_what_reaches_the_gate() {
    for device in devices() {
        let device = device.autodiff();
        let reaches = |estimator| {
            let head = lively(&config().with_estimator(estimator), &device);
            let (states, mask) = sequences(&device);
            let gradients = head.forward(states, mask).unwrap().y.square().sum().backward();
            let gate = head.gate.weight.val().grad(&gradients).map(values).unwrap_or_default();
            gate.iter().any(|value| value.abs() > 1e-6)
        };
        assert!(reaches(Estimator::StraightThrough) && reaches(Estimator::Switch));
        assert!(!reaches(Estimator::None));
    }
}

#[test]
fn choices_are_one_hot_and_the_first_on_ties() {
    for device in devices() {
        let mut gate = Top1GateConfig::new(2).with_num_experts(3).init(&device);
        gate.weight = Param::from_tensor(Tensor::zeros([3, 2], &device));
        gate.bias = Param::from_tensor(float(&[1.0, 2.0, 2.0], [3], &device));
        for phase in [Phase::Training, Phase::Inference] {
            let chosen = gate.forward(Tensor::ones([2, 2], &device), phase);
            assert_eq!(values(chosen.combine), [0.0, 1.0, 0.0, 0.0, 1.0, 0.0]);
            assert_eq!(chosen.choice.into_data().iter::<i64>().collect::<Vec<_>>(), [1, 1]);
        }
        let sharper = |temperature: f64| {
            let mut gate = Top1GateConfig::new(2).with_temperature(temperature).init(&device);
            gate.weight = Param::from_tensor(float(&[1.0, 0.0, 0.0, 1.0], [2, 2], &device));
            gate.bias = Param::from_tensor(Tensor::zeros([2], &device));
            values(gate.forward(float(&[1.0, 0.0], [1, 2], &device), Phase::Inference).probs)[0]
        };
        let logistic = |z: f64| 1.0 / (1.0 + (-z).exp());
        assert_close(&[sharper(1.5), sharper(0.1)], &[logistic(1.0 / 1.5), logistic(10.0)], 1e-5);
    }
}

#[test]
fn the_last_state_is_that_of_the_last_token() {
    for device in devices() {
        let gru = GruConfig::new(3, 4).init(&device);
        let x = float(&ramp(2 * 5 * 3, 1.0), [2, 5, 3], &device);
        let padded = gru.forward(x.clone(), mask(&[3, 5], 5, &device));
        let cut = gru.forward(x.clone().narrow(1, 0, 3), mask(&[3, 3], 3, &device));
        assert_close(&values(padded.clone().narrow(0, 0, 1)), &values(cut.narrow(0, 0, 1)), 1e-6);
        // What stands in the padding does not matter.
        let other = x.clone().slice_assign([0..1, 3..5, 0..3], Tensor::full([1, 2, 3], 9.0, &device));
        let again = gru.forward(other, mask(&[3, 5], 5, &device));
        assert_eq!(values(again), values(padded));
        // A single step by hand, from the state 0.
        let weights: Vec<f64> = values(gru.weight_ih_l0.val());
        let (input, hidden) = (values(gru.bias_ih_l0.val()), values(gru.bias_hh_l0.val()));
        let sample = [0.5, -1.0, 2.0];
        let part = |row: usize| {
            sample.iter().enumerate().map(|(i, x)| weights[row * 3 + i] * x).sum::<f64>() + input[row]
        };
        let logistic = |z: f64| 1.0 / (1.0 + (-z).exp());
        let want: Vec<f64> = (0..4)
            .map(|unit| {
                let (r, z) =
                    (logistic(part(unit) + hidden[unit]), logistic(part(4 + unit) + hidden[4 + unit]));
                (1.0 - z) * (part(8 + unit) + r * hidden[8 + unit]).tanh()
            })
            .collect();
        let state = gru.forward(float(&sample, [1, 1, 3], &device), mask(&[1], 1, &device));
        assert_close(&values(state), &want, 1e-5);
    }
}

#[test]
fn one_expert_is_certain_and_costs_nothing() {
    for device in devices() {
        let head = lively(&config().with_experts(vec![ExpertKind::Ffnn]), &device);
        let (states, mask) = sequences(&device);
        let output = head.forward(states, mask).unwrap();
        assert_eq!(values(output.probs.clone()), [1.0; 7]);
        let targets = HectoTargets::Labels(ints(&[0, 1, 2, 0, 1, 2, 0], &device));
        let losses =
            HectoLossConfig::new().try_init(3).unwrap().forward(output.y, output.probs, &targets).unwrap();
        assert!(values(losses.entropy)[0].abs() < 1e-6 && values(losses.diversity)[0].abs() < 1e-6);
    }
}

#[test]
fn usage_counts_classes_and_experts() {
    for device in devices() {
        let probs = float(&[0.9, 0.1, 0.2, 0.8, 0.6, 0.4, 0.5, 0.5], [4, 2], &device);
        let usage =
            ExpertUsage::of(&probs, &ints(&[0, 1, 0, 0], &device), &ints(&[0, 0, 2, 2], &device), 3).unwrap();
        assert_eq!(usage.counts, [2, 0, 2]);
        assert_close(&usage.shares[0], &[0.5, 0.5], 1e-9);
        assert!(usage.shares[1].iter().all(|share| share.is_nan()));
        assert_close(&usage.shares[2], &[1.0, 0.0], 1e-9);
        assert_close(&usage.probabilities[0], &[0.55, 0.45], 1e-6);
        assert_close(&usage.total, &[0.75, 0.25], 1e-9);
        assert_close(&usage.entropies[3..], &[2f64.ln()], 1e-6);
        assert!(usage.mean_entropy() < 2f64.ln());
    }
}

#[test]
fn the_model_reads_its_padding_nowhere() {
    for device in devices() {
        device.seed(5);
        let head = config().with_encoder_dim(8);
        let model = HectoModelConfig::new(12, head).with_num_heads(2).with_max_length(7).init(&device);
        let ids = |fill: i64| {
            let row = [1, 5, 3, fill, fill, fill];
            Tensor::<1, Int>::from_data(TensorData::from(row), &device).unsqueeze_dim::<2>(0)
        };
        let lengths = mask(&[3], 6, &device);
        let first = model.forward(ids(0), lengths.clone()).unwrap();
        let second = model.forward(ids(11), lengths).unwrap();
        assert_close(&values(first.y.clone()), &values(second.y), 1e-5);
        let cut = model.forward(ids(0).narrow(1, 0, 3), mask(&[3], 3, &device)).unwrap();
        assert_close(&values(cut.y), &values(first.y), 1e-5);
    }
}

#[test]
fn training_lowers_the_loss() {
    for device in devices() {
        device.seed(2);
        let device = device.autodiff();
        for task in [HectoTask::Classification, HectoTask::Regression] {
            let outputs = if task == HectoTask::Regression { 1 } else { 3 };
            let mut head = config().with_num_outputs(outputs).init(&device);
            let loss = HectoLossConfig::new().with_task(task).try_init(outputs).unwrap();
            let (states, mask) = sequences(&device);
            let targets = match task {
                HectoTask::Classification => HectoTargets::Labels(ints(&[0, 1, 2, 0, 1, 2, 0], &device)),
                HectoTask::Regression => HectoTargets::Values(float(&ramp(7, 1.0), [7], &device)),
            };
            let mut optimizer = AdamWConfig::new().init();
            let mut history = Vec::new();
            for _ in 0..60 {
                let output = head.forward(states.clone(), mask.clone()).unwrap();
                let losses = loss.forward(output.y, output.probs, &targets).unwrap();
                history.push(losses.task.into_scalar::<f64>());
                let gradients = GradientsParams::from_grads(losses.total.backward(), &head);
                head = optimizer.step(0.02, head, gradients);
            }
            assert!(history[59] < 0.3 * history[0], "{task:?}: {} to {}", history[0], history[59]);
        }
    }
}
