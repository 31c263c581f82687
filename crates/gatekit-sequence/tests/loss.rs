//! The next-token loss.

mod support;

use burn::tensor::{Device, Int, Tensor, TensorData};
use gatekit_core::ModuleConfig;
use gatekit_sequence::lm::{CausalLm, Targets};
use support::*;

/// Logits `[2, 4, 37]` that are neither small nor equal.
fn logits(device: &Device) -> Tensor<3> {
    let mut state = 9;
    let values: Vec<f32> = (0..2 * 4 * 37).map(|_| 30.0 * noise(&mut state)).collect();
    Tensor::from_data(TensorData::new(values, [2, 4, 37]), device)
}

/// The same mean in float64, over the positions that count.
fn expected(logits: &[f32], labels: &[[i64; 4]; 2]) -> f64 {
    let (mut sum, mut count) = (0.0, 0.0);
    for (row, labels) in labels.iter().enumerate() {
        for time in 0..3 {
            let Ok(target) = usize::try_from(labels[time + 1]) else { continue };
            let start = (row * 4 + time) * 37;
            let scores: Vec<f64> = logits[start..start + 37].iter().map(|&x| f64::from(x)).collect();
            let top = scores.iter().copied().fold(f64::MIN, f64::max);
            let total: f64 = scores.iter().map(|score| (score - top).exp()).sum();
            sum += top + total.ln() - scores[target];
            count += 1.0;
        }
    }
    sum / count
}

const ALL: [[i64; 4]; 2] = [[3, 0, 36, 5], [1, 8, 8, 20]];
const SOME: [[i64; 4]; 2] = [[3, -100, 36, -100], [-100, 8, 8, 20]];

#[test]
fn it_is_the_mean_over_counted_positions() {
    for device in devices() {
        let model = plain().init(&device);
        let logits = logits(&device);
        for labels in [ALL, SOME] {
            let want = expected(&values(&logits), &labels);
            let got = model.loss(logits.clone(), Tensor::from_data(labels, &device)).unwrap();
            assert_eq!(got.dims(), [1]);
            assert_close(&values(&got), &[want as f32], 1e-6, "loss");
        }
    }
}

#[test]
fn its_gradient_is_softmax_minus_target() {
    let device = Device::flex().autodiff();
    let model = plain().init(&device);
    let logits = logits(&device).require_grad();
    let labels = Tensor::<2, Int>::from_data(SOME, &device);
    let gradients = model.loss(logits.clone(), labels).unwrap().backward();
    let got = values(&logits.grad(&gradients).unwrap());
    let scores = values(&logits);
    let counted = [(0, 1, 36), (1, 0, 8), (1, 1, 8), (1, 2, 20)];
    let mut want = vec![0.0; got.len()];
    for (row, time, target) in counted {
        let start = (row * 4 + time) * 37;
        let scores = &scores[start..start + 37];
        let top = scores.iter().copied().fold(f32::MIN, f32::max);
        let total: f64 = scores.iter().map(|score| f64::from(score - top).exp()).sum();
        for token in 0..37 {
            let probability = f64::from(scores[token] - top).exp() / total;
            let hit = if token == target { 1.0 } else { 0.0 };
            want[start + token] = ((probability - hit) / 4.0) as f32;
        }
    }
    assert_close(&got, &want, 1e-5, "gradient of the logits");
}

#[test]
fn large_logits_stay_finite() {
    let device = Device::flex();
    let model = plain().init(&device);
    let logits = logits(&device).mul_scalar(1e30);
    let loss = model.loss(logits, Tensor::from_data(ALL, &device)).unwrap();
    assert!(values(&loss)[0].is_finite());
}

#[test]
fn targets_can_be_made_from_host_data() {
    let device = Device::flex();
    let model = plain().init(&device);
    let targets = Targets::new(&TensorData::from(SOME), 37, &device).unwrap();
    assert_eq!(targets.count(), 4);
    let logits = logits(&device);
    assert_eq!(targets.negative_log_likelihood(logits.clone()).dims(), [4]);
    let want = model.loss(logits.clone(), Tensor::from_data(SOME, &device)).unwrap();
    assert_eq!(values(&targets.cross_entropy(logits)), values(&want));
}

#[test]
fn unusable_labels_are_errors() {
    let device = Device::flex();
    let model = plain().init(&device);
    let loss = |labels: [[i64; 4]; 2]| model.loss(logits(&device), Tensor::from_data(labels, &device));
    // The first label of a row has no position before it: it does not count.
    for labels in [[[-100; 4]; 2], [[5, -100, -100, -100]; 2]] {
        let error = loss(labels).unwrap_err();
        assert_eq!(error.field, "labels");
        assert!(error.got.contains("without one that counts"), "{error}");
    }
    for (label, got) in [(37, "37 at [1, 2]"), (-1, "-1 at [1, 2]")] {
        let mut labels = ALL;
        labels[1][2] = label;
        assert_eq!(loss(labels).unwrap_err().got, got);
    }
    assert!(Targets::new(&TensorData::from([1i64, 2]), 37, &device).is_err());
    assert!(Targets::new(&TensorData::from([[1i64], [2]]), 37, &device).is_err());
}

#[test]
#[should_panic(expected = "`logits` has [batch, time] = [2, 4], the labels [2, 3]")]
fn labels_of_another_shape_panic() {
    let device = Device::flex();
    let labels = Tensor::<2, Int>::from_data([[1, 2, 3], [4, 5, 6]], &device);
    let _ = plain().init(&device).loss(logits(&device), labels);
}
