//! The loss beyond its golden cases.

use gatekit_experts::thor::ConsistencyLoss;

use super::*;

fn loss() -> ConsistencyLoss {
    ConsistencyLoss::new()
}

#[test]
fn equal_predictions_cost_no_consistency_and_alpha_weighs_it() {
    for device in devices() {
        let target = ids(&[&[0, 3, 1], &[2, 1, 1]], &device);
        let a = || wave([2, 3, 5], 2.0, &device);
        let same = loss().forward([a(), a()], &target).unwrap();
        assert_eq!(same.sample_size, 3);
        assert_eq!(values(same.consistency), [0.0]);
        let cross = values(same.cross_entropy);
        assert_eq!(cross[0], cross[1]);
        assert_close(&values(same.loss), &[cross[0] + cross[1]], 1e-6);

        let b = || wave([2, 3, 5], -1.0, &device);
        let part = |alpha| loss().with_consistency_alpha(alpha).forward([a(), b()], &target).unwrap();
        let (none, five) = (part(0.0), part(5.0));
        let consistency = values(five.consistency)[0];
        assert!(consistency > 0.1);
        assert_close(&values(five.loss), &[values(none.loss)[0] + 5.0 * consistency], 1e-5);
    }
}

#[test]
fn a_batch_of_padding_costs_nothing() {
    for device in devices() {
        let logits = || wave([2, 2, 5], 1.0, &device);
        let parts = loss().forward([logits(), logits()], &ids(&[&[1, 1], &[1, 1]], &device)).unwrap();
        assert_eq!(parts.sample_size, 0);
        let all = [values(parts.loss), values(parts.cross_entropy), values(parts.consistency)].concat();
        assert_eq!(all, [0.0; 4]);
    }
}

#[test]
fn padding_may_hold_anything() {
    for device in devices() {
        let device = device.autodiff();
        let tensor = |values: [f64; 6]| {
            Tensor::<3>::from_data(TensorData::new(values.to_vec(), [1, 2, 3]), &device).require_grad()
        };
        let a = tensor([1.0, 2.0, 3.0, f64::NAN, f64::INFINITY, 0.0]);
        let b = tensor([0.0, 2.0, 1.0, 1e30, -1e30, 0.0]);
        // Padding need be no token of the vocabulary.
        let config = loss().with_padding_idx(-100);
        let parts = config.forward([a.clone(), b.clone()], &ids(&[&[2, -100]], &device)).unwrap();
        assert!(values(parts.loss.clone())[0].is_finite());
        let gradients = parts.loss.backward();
        for leaf in [a, b] {
            let gradient = values(leaf.grad(&gradients).unwrap());
            assert!(gradient[..3].iter().all(|value| value.is_finite() && *value != 0.0), "{gradient:?}");
            assert_eq!(gradient[3..], [0.0; 3]);
        }
    }
}

#[test]
fn predictions_far_apart_stay_finite() {
    for device in devices() {
        let device = device.autodiff();
        let a = Tensor::<3>::from_data([[[2000.0, 0.0, -2000.0]]], &device).require_grad();
        let b = Tensor::<3>::from_data([[[-2000.0, 0.0, 2000.0]]], &device).require_grad();
        let target = ids(&[&[0]], &device);
        let parts = loss().with_label_smoothing(0.0).forward([a.clone(), b.clone()], &target).unwrap();
        assert_close(&values(parts.consistency), &[4000.0], 1e-5);
        assert_close(&values(parts.cross_entropy), &[0.0, 4000.0], 1e-5);
        let gradients = parts.loss.backward();
        for leaf in [a, b] {
            assert!(values(leaf.grad(&gradients).unwrap()).iter().all(|value| value.is_finite()));
        }
    }
}

#[test]
fn one_token_alone_cannot_be_smoothed() {
    let device = Device::flex();
    let logits = || Tensor::<3>::zeros([1, 2, 1], &device);
    let target = ids(&[&[0, 0]], &device);
    let error = loss().forward([logits(), logits()], &target).unwrap_err();
    assert!(error.to_string().contains("1 tokens"), "{error}");
    let plain = loss().with_label_smoothing(0.0).forward([logits(), logits()], &target).unwrap();
    assert_eq!(values(plain.loss), [0.0]);
}

#[test]
fn targets_that_are_no_tokens_are_named() {
    let device = Device::flex();
    let logits = || Tensor::<3>::zeros([2, 2, 5], &device);
    for (bad, place) in [(5, "5 at [1, 0]"), (-1, "-1 at [1, 0]")] {
        let error = loss().forward([logits(), logits()], &ids(&[&[0, 1], &[bad, 2]], &device)).unwrap_err();
        assert_eq!(error.field, "target");
        assert!(error.to_string().contains(place), "{error}");
    }
    assert_eq!(loss().with_label_smoothing(-0.1).check().unwrap_err().field, "label_smoothing");
    assert_eq!(loss().with_consistency_alpha(f64::NAN).check().unwrap_err().field, "consistency_alpha");
}
