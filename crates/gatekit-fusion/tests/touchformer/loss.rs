//! The regularisation against its formula in float64 on the host.

use burn::tensor::{Int, Tensor};
use gatekit_fusion::touchformer::{TouchFormerLossConfig, cross_instance_regularization};

use super::{assert_close, devices, values, waves};

/// The formula, by hand.
fn by_hand(z: &[f64], labels: &[i64], temperature: f64) -> f64 {
    let (count, width) = (labels.len(), z.len() / labels.len());
    let unit: Vec<Vec<f64>> = z
        .chunks(width)
        .map(|row| {
            let length = row.iter().map(|x| x * x).sum::<f64>().sqrt().max(1e-12);
            row.iter().map(|x| x / length).collect()
        })
        .collect();
    let share = |i: usize| {
        let (mut alike, mut all) = (1e-8f64, 1e-8f64);
        for j in (0..count).filter(|&j| j != i) {
            let score = unit[i].iter().zip(&unit[j]).map(|(a, b)| a * b).sum::<f64>() / temperature;
            all += score.exp();
            if labels[i] == labels[j] {
                alike += score.exp();
            }
        }
        (alike / all).ln()
    };
    -(0..count).map(share).sum::<f64>() / count as f64
}

#[test]
fn the_regularisation_is_its_formula_at_every_temperature() {
    for device in devices() {
        let classes = [0i64, 1, 1, 2, 0, 0, 2];
        let labels = Tensor::<1, Int>::from_data(classes, &device);
        let z = waves([7, 3], 0.0, &device) * 4.0;
        let host = values(z.clone());
        for temperature in [5.0, 0.2, 0.02, 0.004] {
            let got = cross_instance_regularization(z.clone(), &labels, temperature).expect("a batch");
            assert_close(&values(got), &[by_hand(&host, &classes, temperature)], 2e-5);
        }
        // Lengths do not matter.
        let long = cross_instance_regularization(z.clone() * 30.0, &labels, 0.2).expect("a batch");
        assert_close(&values(long), &[by_hand(&host, &classes, 0.2)], 2e-5);
    }
}

#[test]
fn an_instance_alone_in_its_class_weighs_about_twenty() {
    for device in devices() {
        let classes = [0i64, 1];
        let labels = Tensor::<1, Int>::from_data(classes, &device);
        let z = Tensor::<2>::from_data([[1.0, 0.0], [0.0, 2.0]], &device);
        let got = values(cross_instance_regularization(z, &labels, 0.2).expect("a batch"))[0];
        // -log(1e-8 / (1 + 1e-8))
        assert!((got - 18.4207).abs() < 1e-3, "{got}");
        // Cold, and all alike: nothing overflows.
        let z = Tensor::<2>::ones([2, 2], &device);
        let got = values(
            cross_instance_regularization(z, &Tensor::from_data([3i64, 3], &device), 1e-4).expect("two"),
        );
        assert_close(&got, &[0.0], 1e-6);
    }
}

#[test]
fn gradients_draw_a_class_together_and_stay_finite() {
    for device in devices() {
        let autodiff = device.clone().autodiff();
        let labels = Tensor::<1, Int>::from_data([0i64, 0, 1, 1], &device);
        let mut z = Tensor::<2>::from_data([[1.0, 0.1], [0.2, 1.0], [0.9, 0.4], [-0.1, 0.8]], &device);
        let loss = |z: Tensor<2>| cross_instance_regularization(z, &labels, 0.2).expect("a batch");
        let start = values(loss(z.clone()))[0];
        for _ in 0..40 {
            let tracked = Tensor::<2>::from_data(z.into_data(), &autodiff).require_grad();
            let gradients = loss(tracked.clone()).backward();
            let gradient = tracked.grad(&gradients).expect("a gradient");
            z = tracked.inner() - gradient * 0.1;
        }
        let end = values(loss(z))[0];
        assert!(end < 0.2 * start, "{start} {end}");
        // An embedding without length.
        let tracked = Tensor::<2>::zeros([4, 2], &autodiff).require_grad();
        let gradients = loss(tracked.clone()).backward();
        assert!(values(tracked.grad(&gradients).expect("a gradient")).iter().all(|value| value.is_finite()));
    }
}

#[test]
fn the_loss_is_the_sum_of_its_parts() {
    let device = devices()[0].clone();
    let labels = Tensor::<1, Int>::from_data([0i64, 2, 2], &device);
    let loss = TouchFormerLossConfig::new().with_regularization_weight(0.5).try_init().expect("a loss");
    let losses =
        loss.forward(waves([3, 3], 0.0, &device), waves([3, 4], 1.0, &device), &labels).expect("valid");
    let [total, entropy, regularization] =
        [losses.total, losses.cross_entropy, losses.regularization].map(|part| values(part)[0]);
    assert!((total - entropy - 0.5 * regularization).abs() < 1e-6);
    assert!(entropy > 0.0 && regularization > 0.0);
}
