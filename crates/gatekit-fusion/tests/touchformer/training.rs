//! Training: what it lowers, keeps and slows down.

use burn::tensor::{Device, Int, Tensor, TensorData};
use gatekit_core::ModuleConfig;
use gatekit_core::cross_modal::ModalityMask;
use gatekit_fusion::touchformer::{
    Evaluation, TouchBatch, TouchFormerConfig, TouchFormerTrainer, TouchFormerTrainingConfig, macro_f1,
};

use super::{devices, small, values};

/// Two materials, told apart by the first sensor alone.
fn batch(device: &Device) -> TouchBatch {
    let count = 16;
    let label = |i: usize| (i % 2) as i64;
    let level = |i: usize| if i % 2 == 0 { 1.0 } else { -1.0 };
    let wave = |i: usize, t: usize, c: usize| (1.3 * i as f64 + 0.7 * t as f64 + 2.1 * c as f64).sin();
    let tensor = |of: &dyn Fn(usize, usize, usize) -> f64| {
        let data: Vec<f64> = (0..count)
            .flat_map(|i| (0..5).flat_map(move |t| (0..3).map(move |c| (i, t, c))))
            .map(|(i, t, c)| of(i, t, c))
            .collect();
        Tensor::<3>::from_data(TensorData::new(data, [count, 5, 3]), device)
    };
    TouchBatch {
        inputs: vec![tensor(&|i, t, c| level(i) + wave(i, t, c)), tensor(&wave)],
        mask: ModalityMask::full(count, &[5, 5], device),
        labels: Tensor::<1, Int>::from_data(
            TensorData::new((0..count).map(label).collect::<Vec<_>>(), [count]),
            device,
        ),
    }
}

fn config() -> TouchFormerConfig {
    TouchFormerConfig { input_dims: vec![3, 3], output_dim: 2, ..small() }
}

#[test]
fn training_lowers_the_loss_and_tells_the_materials_apart() {
    for device in devices() {
        device.seed(2);
        let batch = batch(&device);
        let settings = TouchFormerTrainingConfig::new().with_learning_rate(5e-3);
        let loss = config().loss().expect("a loss");
        let mut trainer = TouchFormerTrainer::new(config().init(&device), loss, &settings).expect("settings");
        let first = trainer.step(&batch).expect("a batch");
        for _ in 0..40 {
            trainer.step(&batch).expect("a batch");
        }
        let report = trainer.end_epoch(std::slice::from_ref(&batch)).expect("instances");
        let last = trainer.step(&batch).expect("a batch");
        assert!(last < 0.5 * first, "{first} {last}");
        assert_eq!(report.validation.accuracy, 1.0);
        assert!(report.best && report.loss < first);
        assert_eq!(report.validation.predictions[..4], [0, 1, 0, 1]);
        assert!(report.validation.mean_gates.iter().all(|gate| (0.0..=1.0).contains(gate)));
        let again = Evaluation::of(&trainer.best(), &[batch]).expect("instances");
        assert_eq!(again, report.validation, "the best model is the one that was judged");
        assert!(!trainer.best().out_layer.weight.val().device().is_autodiff());
    }
}

#[test]
fn the_rate_falls_when_the_validation_loss_stalls() {
    let device = devices()[0].clone();
    let settings = TouchFormerTrainingConfig::new().with_patience(2).with_decay(0.5).with_learning_rate(0.01);
    let loss = config().loss().expect("a loss");
    let mut trainer = TouchFormerTrainer::new(config().init(&device), loss, &settings).expect("settings");
    let batch = [batch(&device)];
    // Without a step the validation loss stays what it is.
    let rates: Vec<f64> =
        (0..6).map(|_| trainer.end_epoch(&batch).expect("instances").learning_rate).collect();
    assert_eq!(rates, [0.01, 0.01, 0.005, 0.005, 0.0025, 0.0025]);
    let report = trainer.end_epoch(&batch).expect("instances");
    assert!(!report.best && report.loss.is_nan());
}

#[test]
fn a_loss_that_is_not_finite_leaves_the_model_alone() {
    let device = devices()[0].clone();
    let loss = config().loss().expect("a loss");
    let settings = TouchFormerTrainingConfig::new();
    let mut trainer = TouchFormerTrainer::new(config().init(&device), loss, &settings).expect("settings");
    let before = values(trainer.model().out_layer.weight.val());
    let mut broken = batch(&device);
    broken.inputs[0] = Tensor::full([16, 5, 3], f64::NAN, &device);
    assert!(trainer.step(&broken).expect("labels are classes").is_nan());
    assert_eq!(values(trainer.model().out_layer.weight.val()), before);
}

#[test]
fn macro_f1_is_the_mean_over_the_classes_that_occur() {
    // Class 0: 2 of 2 labels hit, 3 predictions: 0.8; class 1: 1 of 2 and 1: 2/3; class 3: predicted, never right.
    assert!((macro_f1(&[0, 0, 1, 1], &[0, 0, 0, 1]) - (0.8 + 2.0 / 3.0) / 2.0).abs() < 1e-12);
    assert!((macro_f1(&[0, 1], &[0, 3]) - 1.0 / 3.0).abs() < 1e-12);
    assert_eq!(macro_f1(&[], &[]), 0.0);
    assert_eq!(macro_f1(&[5, 5], &[5, 5]), 1.0);
}
