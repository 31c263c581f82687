//! What is refused.

use gatekit_core::checkpoint::config_from_json;
use gatekit_experts::hecto::check_mask;
use serde_json::json;

use super::*;

#[test]
fn unusable_configurations_name_the_field() {
    let device = Device::flex();
    for (field, config) in [
        ("experts", config().with_experts(vec![])),
        ("temperature", config().with_temperature(0.0)),
        ("temperature", config().with_temperature(-1.5)),
        ("temperature", config().with_temperature(f64::NAN)),
        ("encoder_dim", config().with_encoder_dim(0)),
        ("input_dim", config().with_input_dim(0)),
        ("hidden_dim", config().with_hidden_dim(0)),
        ("num_outputs", config().with_num_outputs(0)),
    ] {
        assert_eq!(config.try_init(&device).expect_err(field).field, field);
    }
    let error = config_from_json(&config(), &json!({ "experts": ["ffnn", "lstm"] })).unwrap_err();
    assert!(error.field == "experts" && error.need.contains("lstm"), "{error}");
    assert_eq!(ExpertKind::parse("cnn").unwrap_err().field, "experts");
    let read = config_from_json(&config(), &json!({ "experts": ["gru"], "estimator": "switch" })).unwrap();
    assert_eq!((read.experts, read.estimator), (vec![ExpertKind::Gru], Estimator::Switch));

    let loss = |config: HectoLossConfig, outputs| config.try_init(outputs).expect_err("refused").field;
    assert_eq!(loss(HectoLossConfig::new().with_task(HectoTask::Regression), 2), "num_outputs");
    assert_eq!(loss(HectoLossConfig::new().with_entropy_weight(-0.1), 2), "entropy_weight");
    assert_eq!(loss(HectoLossConfig::new().with_diversity_weight(f64::INFINITY), 2), "diversity_weight");

    let model = |change: fn(HectoModelConfig) -> HectoModelConfig| {
        change(HectoModelConfig::new(12, config())).try_init(&device).expect_err("refused").field
    };
    assert_eq!(model(|config| config.with_num_heads(4)), "num_heads");
    assert_eq!(model(|config| config.with_num_heads(2).with_dropout(1.0)), "dropout");
    assert_eq!(model(|config| HectoModelConfig { vocab_size: 0, ..config }), "vocab_size");
    assert_eq!(
        model(|config| HectoModelConfig { head: super::config().with_temperature(0.0), ..config }),
        "head.temperature"
    );
}

#[test]
fn masks_that_start_nowhere_are_refused() {
    for device in devices() {
        let head = lively(&config(), &device);
        let states = float(&ramp(2 * 3 * 6, 1.0), [2, 3, 6], &device);
        for (row, got) in [
            ([false, false, false], "row 1 without a token"),
            ([false, true, true], "row 1 with position 0 false"),
            ([true, false, true], "row 1 with a false before a true"),
        ] {
            let mask = Tensor::<2, Bool>::from_data([[true, true, false], row], &device);
            assert_eq!(check_mask(&mask).unwrap_err().got, got);
            let error = head.forward(states.clone(), mask).unwrap_err();
            assert_eq!((error.field.as_str(), error.got.as_str()), ("mask", got));
        }
    }
}

#[test]
fn states_that_are_no_numbers_are_refused() {
    for device in devices() {
        let head = lively(&config(), &device);
        let mut states = ramp(2 * 3 * 6, 1.0);
        states[20] = f64::NAN;
        let error = head.forward(float(&states, [2, 3, 6], &device), mask(&[3, 3], 3, &device)).unwrap_err();
        assert_eq!((error.field.as_str(), error.got.as_str()), ("states", "NaN"));
    }
}

#[test]
fn targets_of_another_task_or_class_are_refused() {
    for device in devices() {
        let refused = |task, outputs: usize, targets: HectoTargets| {
            let loss = HectoLossConfig::new().with_task(task).try_init(outputs).unwrap();
            let y = Tensor::zeros([2, outputs], &device);
            loss.forward(y, Tensor::full([2, 2], 0.5, &device), &targets).unwrap_err()
        };
        let labels = |values: &[i64]| HectoTargets::Labels(ints(values, &device));
        assert_eq!(refused(HectoTask::Classification, 3, labels(&[0, 3])).got, "3 at 1");
        assert_eq!(refused(HectoTask::Classification, 3, labels(&[0])).field, "labels");
        let numbers = HectoTargets::Values(Tensor::zeros([2], &device));
        assert_eq!(refused(HectoTask::Classification, 3, numbers).field, "targets");
        assert_eq!(refused(HectoTask::Regression, 1, labels(&[0, 0])).field, "targets");
        let short = HectoTargets::Values(Tensor::zeros([1], &device));
        assert_eq!(refused(HectoTask::Regression, 1, short).got, "1 numbers");
        let usage = |choice: &[i64], truth: &[i64]| {
            let probs = Tensor::full([2, 2], 0.5, &device);
            ExpertUsage::of(&probs, &ints(choice, &device), &ints(truth, &device), 3).unwrap_err().field
        };
        assert_eq!(usage(&[0, 2], &[0, 1]), "choice");
        assert_eq!(usage(&[0, 1], &[0, 3]), "labels");
    }
}

#[test]
fn token_ids_are_checked() {
    for device in devices() {
        let head = config().with_encoder_dim(8);
        let model = HectoModelConfig::new(12, head).with_num_heads(2).with_max_length(4).init(&device);
        let refused = |ids: &[i64]| {
            let ids = ints(ids, &device).unsqueeze_dim::<2>(0);
            let time = ids.dims()[1];
            model.forward(ids, mask(&[time], time, &device)).unwrap_err().got
        };
        assert_eq!(refused(&[1, 12]), "token 12");
        assert_eq!(refused(&[1, -1]), "token -1");
        assert_eq!(refused(&[1; 5]), "5 tokens");
    }
}

#[test]
fn an_empty_batch_has_empty_outputs() {
    for device in devices() {
        let head = lively(&config(), &device);
        let output = head.forward(Tensor::zeros([0, 3, 6], &device), mask(&[], 3, &device)).unwrap();
        assert_eq!((output.y.dims(), output.probs.dims(), output.choice.dims()), ([0, 3], [0, 2], [0]));
        let loss = HectoLossConfig::new().try_init(3).unwrap();
        let targets = HectoTargets::Labels(ints(&[], &device));
        assert_eq!(loss.forward(output.y, output.probs, &targets).unwrap_err().got, "an empty batch");
    }
}

#[test]
#[should_panic(expected = "HectoHead: `states` [1, 3, 5] with `mask` [1, 3]")]
fn states_of_another_width_panic() {
    let device = Device::flex();
    let head = lively(&config(), &device);
    let _ = head.forward(Tensor::ones([1, 3, 5], &device), mask(&[3], 3, &device));
}
