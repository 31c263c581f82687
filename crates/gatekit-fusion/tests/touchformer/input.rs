//! Bad input, line by line.

use std::panic::{AssertUnwindSafe, catch_unwind};

use burn::tensor::{Device, Int, Tensor};
use gatekit_core::cross_modal::{ModalityMask, ModalityMaskError};
use gatekit_core::{ConfigError, ModuleConfig};
use gatekit_fusion::touchformer::{
    CrossModalEncoderConfig, Evaluation, ModalityDropout, ModalityGatingConfig, SensorNoise,
    TouchFormerConfig, TouchFormerLossConfig, TouchFormerTrainer, TouchFormerTrainingConfig, WhiteNoise,
    cross_instance_regularization,
};
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::{devices, mask, small, waves};

fn device() -> Device {
    devices()[0].clone()
}

fn field<T>(result: Result<T, ConfigError>) -> String {
    result.err().expect("refused").field
}

fn text(run: impl FnOnce()) -> String {
    let panic = catch_unwind(AssertUnwindSafe(run)).expect_err("panics");
    *panic.downcast::<String>().expect("a message")
}

#[test]
fn configurations_name_the_field() {
    let device = device();
    let refused = |config: TouchFormerConfig| field(config.try_init(&device));
    assert_eq!(refused(TouchFormerConfig::new(vec![4], 2)), "input_dims");
    assert_eq!(refused(TouchFormerConfig::new(vec![4, 0], 2)), "input_dims[1]");
    assert_eq!(refused(TouchFormerConfig::new(vec![4, 4], 0)), "output_dim");
    assert_eq!(refused(small().with_dim(3).with_num_heads(1)), "dim");
    assert_eq!(refused(small().with_dim(usize::MAX)), "dim");
    assert_eq!(refused(small().with_num_heads(4)), "num_heads");
    assert_eq!(refused(small().with_num_heads(0)), "num_heads");
    assert_eq!(refused(small().with_kernel_sizes(Some(vec![1, 2, 1]))), "kernel_sizes");
    assert_eq!(refused(small().with_kernel_sizes(Some(vec![1, 0, 1]))), "kernel_sizes");
    assert_eq!(refused(small().with_kernel_sizes(Some(vec![1, 1]))), "kernel_sizes");
    assert_eq!(refused(small().with_layers(0)), "layers");
    assert_eq!(refused(small().with_memory_layers(0)), "memory_layers");
    assert_eq!(refused(small().with_gate_hidden(Some(0))), "gate_hidden");
    for threshold in [-0.1, 1.0, f64::NAN] {
        assert_eq!(refused(small().with_gate_threshold(threshold)), "gate_threshold");
    }
    for temperature in [0.0, -1.0, f64::INFINITY, f64::NAN] {
        assert_eq!(refused(small().with_temperature(temperature)), "temperature");
        assert_eq!(
            field(TouchFormerLossConfig::new().with_temperature(temperature).try_init()),
            "temperature"
        );
    }
    assert_eq!(refused(small().with_regularization_weight(-1.0)), "regularization_weight");
    assert_eq!(refused(small().with_attn_dropout(1.0)), "attn_dropout");
    assert_eq!(refused(small().with_relu_dropout(-0.1)), "relu_dropout");
    assert_eq!(refused(small().with_res_dropout(1.5)), "res_dropout");
    assert_eq!(refused(small().with_embed_dropout(1.0)), "embed_dropout");
    assert_eq!(refused(small().with_out_dropout(f64::NAN)), "out_dropout");
    assert_eq!(field(ModalityGatingConfig::new(4, 1).try_init(&device)), "num_modalities");
    assert_eq!(field(ModalityGatingConfig::new(0, 2).try_init(&device)), "dim");
    assert_eq!(field(CrossModalEncoderConfig::new(6).try_init(&device)), "num_heads");
}

#[test]
fn trainings_and_augmentations_name_the_field() {
    let device = device();
    let settings = TouchFormerTrainingConfig::new();
    let refused = |settings: TouchFormerTrainingConfig| {
        let loss = small().loss().expect("a loss");
        field(TouchFormerTrainer::new(small().init(&device), loss, &settings))
    };
    assert_eq!(refused(settings.clone().with_learning_rate(0.0)), "learning_rate");
    assert_eq!(refused(settings.clone().with_decay(1.5)), "decay");
    assert_eq!(refused(settings.with_patience(0)), "patience");
    let (full, mut random) = (ModalityMask::full(2, &[2, 2], &device), StdRng::seed_from_u64(1));
    let x = || vec![waves([2, 2, 3], 0.0, &device), waves([2, 2, 3], 1.0, &device)];
    let dropout = ModalityDropout::new().with_probability(1.5);
    assert_eq!(field(dropout.apply(&full, &mut random)), "probability");
    let mut noise = |noise: SensorNoise| field(noise.apply(x(), &full, &mut random));
    assert_eq!(noise(SensorNoise::new().with_probability(f64::NAN)), "probability");
    assert_eq!(noise(SensorNoise::new().with_low(-1.0)), "low");
    assert_eq!(noise(SensorNoise::new().with_high(4.0)), "high");
    assert_eq!(field(WhiteNoise::new().with_snr_db(f64::INFINITY).apply(x(), &full)), "snr_db");
}

#[test]
fn numbers_and_shapes_that_do_not_fit_panic_with_their_names() {
    let device = device();
    let model = small().init(&device);
    let x = || {
        vec![waves([2, 4, 3], 0.0, &device), waves([2, 1, 2], 1.0, &device), waves([2, 6, 5], 2.0, &device)]
    };
    let full = |steps: &[usize]| ModalityMask::full(2, steps, &device);
    let said = text(|| drop(model.forward(&x()[..2], &full(&[4, 1]))));
    assert!(said.contains("2 `inputs`, need 3"), "{said}");
    let said = text(|| drop(model.forward(&x(), &full(&[4, 1]))));
    assert!(said.contains("3 sequences, but `mask` has `present` [2, 2]"), "{said}");
    let said = text(|| drop(model.forward(&x(), &full(&[4, 1, 5]))));
    assert!(said.contains("sequence 2 [2, 6, 5]") && said.contains("[2, 5]"), "{said}");
    let mut wide = x();
    wide[1] = waves([2, 1, 3], 1.0, &device);
    let said = text(|| drop(model.forward(&wide, &full(&[4, 1, 6]))));
    assert!(said.contains("`inputs[1]` [2, 1, 3]") && said.contains("need 2"), "{said}");
}

#[test]
fn masks_name_the_instance_and_the_sensor() {
    let device = device();
    let new = |present: &[&[bool]], steps: [&[bool]; 2]| {
        let steps = steps.map(|row| mask(&[&[true, true], row], &device)).to_vec();
        ModalityMask::new(mask(present, &device), steps).expect_err("refused")
    };
    let both: [&[bool]; 2] = [&[true, true], &[true, true]];
    let error = new(&[&[true, false], &[false, false]], both);
    assert_eq!(error, ModalityMaskError::NoModality { instance: 1 });
    let error = new(&both, [&[true, false], &[false, false]]);
    assert_eq!(error, ModalityMaskError::NoStep { instance: 1, modality: 1 });
    let error = new(&both, [&[false, true], &[true, true]]);
    assert_eq!(error, ModalityMaskError::Hole { instance: 1, modality: 0, step: 0 });
}

#[test]
fn labels_and_batches_are_checked() {
    let device = device();
    let loss = TouchFormerLossConfig::new().try_init().expect("a loss");
    let refused = |batch: usize, labels: &[i64]| {
        let labels = Tensor::<1, Int>::from_data(labels, &device);
        let (logits, embedding) = (waves([batch, 3], 0.0, &device), waves([batch, 4], 1.0, &device));
        loss.forward(logits, embedding, &labels).expect_err("refused")
    };
    assert_eq!((refused(2, &[0, 3]).field.as_str(), refused(2, &[0, 3]).got.as_str()), ("labels", "3 at 1"));
    assert_eq!(refused(2, &[-1, 0]).got, "-1 at 0");
    assert_eq!(refused(2, &[0]).got, "1 labels");
    assert_eq!(refused(1, &[0]).got, "a batch of 1");
    let labels = Tensor::<1, Int>::from_data([0i64, 1, 0], &device);
    let error =
        cross_instance_regularization(waves([2, 4], 0.0, &device), &labels, 0.2).expect_err("refused");
    assert_eq!(error.field, "labels");
    let said = text(|| drop(loss.forward(waves([2, 3], 0.0, &device), waves([3, 4], 0.0, &device), &labels)));
    assert!(said.contains("`embedding` [3, 4]") && said.contains("`logits` [2, 3]"), "{said}");
    assert_eq!(Evaluation::of(&small().init(&device), &[]).expect_err("refused").field, "batches");
}
