//! What is refused.

use burn::tensor::Tensor;
use gatekit_core::checkpoint::config_from_json;
use gatekit_experts::jei_dnn::{
    AlternatingTrainer, ConformalThresholds, DynamicNetwork, ExitReport, ExitSamples, ModuleWeighting,
    SgdExitLearner, exit_gate_loss, inference_module_loss, warmup_loss,
};
use serde_json::json;

use super::*;

#[test]
fn unusable_configurations_name_the_field() {
    let device = Device::flex();
    let costs = |costs: &[f64]| JeiDnnConfig { cost_per_exit: costs.to_vec(), ..config() };
    for (field, config) in [
        ("cost_per_exit", costs(&[0.5, 1.0])),
        ("cost_per_exit", costs(&[0.25, 0.25, 0.75, 1.0])),
        ("cost_per_exit", costs(&[0.5, 0.25, 0.75, 1.0])),
        ("cost_per_exit", costs(&[0.0, 0.25, 0.75, 1.0])),
        ("cost_per_exit", costs(&[-0.1, 0.25, 0.75, 1.0])),
        ("cost_per_exit", costs(&[0.1, 0.25, 0.75, 0.9])),
        ("cost_per_exit", costs(&[0.1, f64::NAN, 0.75, 1.0])),
        ("num_exits", JeiDnnConfig { num_exits: 0, ..costs(&[1.0]) }),
        ("embed_dim", JeiDnnConfig { embed_dim: 0, ..config() }),
        ("num_classes", JeiDnnConfig { num_classes: 1, ..config() }),
        ("exit_threshold", config().with_exit_threshold(0.0)),
        ("exit_threshold", config().with_exit_threshold(1.5)),
        ("exit_threshold", config().with_exit_threshold(f64::NAN)),
        ("cost_tradeoff", config().with_cost_tradeoff(-1.0)),
        ("pos_weights", config().with_pos_weights(Some(vec![1.0]))),
        ("pos_weights", config().with_pos_weights(Some(vec![1.0, f64::INFINITY, 1.0]))),
        ("phase_batches", config().with_phase_batches(0)),
        ("warmup_patience", config().with_warmup_patience(0)),
        ("bins", config().with_bins(0)),
        ("learning_rate", config().with_learning_rate(0.0)),
        ("min_learning_rate", config().with_min_learning_rate(1.0)),
        ("momentum", config().with_momentum(1.0)),
        ("weight_decay", config().with_weight_decay(f64::NAN)),
    ] {
        assert_eq!(config.try_init(&device).expect_err(field).field, field);
        assert_eq!(AlternatingTrainer::new(&config).expect_err(field).field, field);
    }
    let error = config_from_json(&config(), &json!({ "gate_objective": "best" })).unwrap_err();
    assert_eq!(error.field, "gate_objective");
    let read = config_from_json(&config(), &json!({ "gate_objective": "zero_one", "strategy": "uniform" }));
    assert_eq!(read.unwrap().to_string().matches("zero_one").count(), 1);
    let error = DynamicNetwork::new(Counting::new(3), config().init(&device)).err().unwrap();
    assert_eq!(error.field, "num_exits");
}

#[test]
fn nan_names_its_exit() {
    use burn::module::Param;
    for device in devices() {
        for exit in 0..=EXITS {
            let mut exits = lively(&config(), &device);
            // Nobody leaves before the broken exit.
            for gate in &mut exits.gates {
                gate.linear.bias = Some(Param::from_tensor(float(&[-50.0], [1], &device)));
            }
            let broken = Param::from_tensor(Tensor::full([WIDTH, CLASSES], f64::NAN, &device));
            match exit {
                EXITS => exits.head.weight = broken,
                _ => exits.intermediate_heads[exit].weight = broken,
            }
            let name = format!("exit_logits[{exit}]");
            let output = exits.forward(Tensor::ones([2, 4, WIDTH], &device));
            assert_eq!(exits.decide(&output).unwrap_err().field, name);
            let error =
                exit_gate_loss(output.gate_logits, &output.exit_logits, &labels(&[0, 1], &device), &config());
            assert_eq!(error.unwrap_err().field, name);
            let network = DynamicNetwork::new(Counting::new(4), exits).unwrap();
            assert_eq!(network.infer(Tensor::ones([2, WIDTH], &device)).unwrap_err().field, name);
        }
    }
}

#[test]
fn labels_that_are_no_classes_are_refused() {
    for device in devices() {
        let exits = lively(&config(), &device);
        let features = Tensor::<3>::ones([2, 4, WIDTH], &device);
        let output = exits.forward(features.clone());
        let refused = |truth: &[i64]| {
            let truth = labels(truth, &device);
            let (gates, logits) = (output.gate_logits.clone(), &output.exit_logits);
            let probs = output.distribution.probs.clone();
            let weighting = ModuleWeighting::Rescaled;
            [
                exit_gate_loss(gates, logits, &truth, &config()).unwrap_err(),
                inference_module_loss(logits.clone(), probs, &truth, weighting).unwrap_err(),
                warmup_loss(logits.clone(), &truth).unwrap_err(),
                ExitReport::of(&exits, features.clone(), &truth).unwrap_err(),
            ]
        };
        for truth in [&[0, 3][..], &[-1, 0], &[0]] {
            assert!(refused(truth).iter().all(|error| error.field == "labels"), "{truth:?}");
        }
        assert!(refused(&[0, 3])[0].got.contains("3 at 1"));
    }
}

#[test]
fn nothing_to_learn_or_judge_from_is_refused() {
    for device in devices() {
        let exits = lively(&config(), &device);
        let none =
            ExitSamples { features: Tensor::zeros([0, 4, WIDTH], &device), labels: labels(&[], &device) };
        let error = ExitReport::of(&exits, none.features.clone(), &none.labels).unwrap_err();
        assert_eq!(error.field, "confidence");
        assert!(SgdExitLearner::new(exits.clone(), none.clone()).is_err());
        let output = exits.forward(none.features);
        assert_eq!(exits.decide(&output).unwrap().logits.dims(), [0, CLASSES]);
        assert!(warmup_loss(output.exit_logits.clone(), &none.labels).is_err());
        let gates = exit_gate_loss(output.gate_logits, &output.exit_logits, &none.labels, &config());
        assert_eq!(gates.unwrap_err().got, "an empty batch");

        let one =
            ExitReport::of(&exits, Tensor::ones([1, 4, WIDTH], &device), &labels(&[0], &device)).unwrap();
        assert_eq!(ConformalThresholds::fit(&one, 0.0).unwrap_err().field, "alpha");
        assert!(ConformalThresholds::fit(&one, 0.5).unwrap().by_exit.iter().all(Option::is_none));
    }
}

#[test]
#[should_panic(expected = "EarlyExits: `features` [1, 3, 4], need [batch, 4, 4]")]
fn a_missing_stage_panics() {
    lively(&config(), &Device::flex()).forward(Tensor::ones([1, 3, WIDTH], &Device::flex()));
}
