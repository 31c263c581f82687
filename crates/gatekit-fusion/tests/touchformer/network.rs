//! The network at its edges: missing sensors, padding, closed gates, single steps.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};
use gatekit_core::ModuleConfig;
use gatekit_core::cross_modal::ModalityMask;
use gatekit_fusion::touchformer::{
    CrossModalEncoderConfig, ModalityGatingConfig, Source, TouchFormer, TouchFormerOutput, Weighting,
};

use super::{assert_close, devices, mask, small, values, waves};

const STEPS: [usize; 3] = [4, 1, 6];

fn inputs(batch: usize, device: &Device) -> Vec<Tensor<3>> {
    [(3, 0.0), (2, 1.0), (5, 2.0)]
        .iter()
        .zip(STEPS)
        .map(|(&(width, phase), steps)| waves([batch, steps, width], phase, device))
        .collect()
}

/// Logits, embedding, gates and weights.
fn all(output: TouchFormerOutput) -> Vec<f64> {
    let parts = [output.logits, output.embedding, output.weights.gates, output.weights.weights];
    parts.into_iter().flat_map(values).collect()
}

fn model(device: &Device) -> TouchFormer {
    device.seed(5);
    small().init(device).materialize()
}

/// Sensor 0 is missing in the first instance, sensors 1 and 2 in the second.
fn some_missing(device: &Device) -> ModalityMask {
    let present = [vec![true, false, false], vec![false, true, true], vec![false; 3]];
    ModalityMask::full(3, &STEPS, device).without(&present).expect("a sensor is left everywhere")
}

#[test]
fn features_of_a_missing_sensor_do_not_matter_even_if_they_are_nan() {
    for device in devices() {
        let model = model(&device);
        let mask = some_missing(&device);
        let x = inputs(3, &device);
        let want = all(model.forward(&x, &mask));
        assert!(want.iter().all(|value| value.is_finite()));
        let nan = |x: &Tensor<3>, row: usize| {
            let [_, steps, width] = x.dims();
            let nan = Tensor::<3>::full([1, steps, width], f64::NAN, &x.device());
            x.clone().slice_assign([row..row + 1, 0..steps, 0..width], nan)
        };
        let hidden = [nan(&x[0], 0), nan(&x[1], 1), nan(&x[2], 1)];
        assert_eq!(all(model.forward(&hidden, &mask)), want);
    }
}

#[test]
fn features_of_a_missing_sensor_take_no_gradient() {
    for device in devices() {
        let autodiff = device.clone().autodiff();
        let model = model(&device).train();
        let nan = Tensor::<3>::full([2, 4, 3], f64::NAN, &autodiff).require_grad();
        let mut x: Vec<Tensor<3>> = inputs(2, &autodiff).into_iter().map(Tensor::require_grad).collect();
        x[0] = nan;
        let mask = ModalityMask::full(2, &STEPS, &device)
            .without(&[vec![true, false, false], vec![true, false, false]]);
        let output = model.forward(&x, &mask.expect("two sensors are left"));
        let gradients = (output.logits.square().sum() + output.embedding.sum()).backward();
        let of_missing = x[0].grad(&gradients).map_or(vec![0.0], values);
        assert!(of_missing.iter().all(|gradient| *gradient == 0.0), "{of_missing:?}");
        let of_present = values(x[2].grad(&gradients).expect("present"));
        assert!(of_present.iter().all(|gradient| gradient.is_finite()));
        assert!(of_present.iter().any(|gradient| *gradient != 0.0));
        let proj = values(model.proj2.weight.grad(&gradients).expect("the head is trained"));
        assert!(proj.iter().all(|gradient| gradient.is_finite()));
    }
}

#[test]
fn padding_and_company_change_nothing() {
    for device in devices() {
        let model = model(&device);
        let x = inputs(2, &device);
        let alone: Vec<Tensor<3>> = x.iter().map(|x| x.clone().narrow(0, 0, 1)).collect();
        let want = model.forward(&alone, &ModalityMask::full(1, &STEPS, &device));
        // The first sequence of sensor 2 lasts 6 steps, and then padding of NaN; the second lacks sensors.
        let padded = Tensor::cat(vec![x[2].clone(), Tensor::full([2, 3, 5], f64::NAN, &device)], 1);
        let long: [&[bool]; 2] = [&[true, true, true, true, true, true, false, false, false]; 2];
        let steps = vec![
            mask(&[&[true; 4], &[true; 4]], &device),
            mask(&[&[true], &[true]], &device),
            mask(&long, &device),
        ];
        let present = mask(&[&[true, true, true], &[true, false, false]], &device);
        let both = ModalityMask::new(present, steps).expect("well formed");
        let got = model.forward(&[x[0].clone(), x[1].clone(), padded], &both);
        assert_close(&values(got.logits.narrow(0, 0, 1)), &values(want.logits), 1e-5);
        assert_close(&values(got.weights.weights.narrow(0, 0, 1)), &values(want.weights.weights), 1e-5);
    }
}

/// A model whose gates see nothing but their biases, one a sensor.
fn biased(biases: [f64; 3], device: &Device) -> TouchFormer {
    device.seed(5);
    let mut model = small().with_gate_shared(false).init(device).materialize();
    let gates = model.mag.as_mut().expect("gates");
    for (network, bias) in gates.networks.iter_mut().zip(biases) {
        network.fc2.weight = Param::from_tensor(network.fc2.weight.val().zeros_like());
        network.fc2.bias = Some(Param::from_tensor(Tensor::full([1], bias, device)));
    }
    model
}

#[test]
fn open_and_closed_gates_keep_and_drop() {
    for device in devices() {
        let run = |biases| {
            biased(biases, &device).forward(&inputs(2, &device), &ModalityMask::full(2, &STEPS, &device))
        };
        let output = run([200.0, -200.0, 200.0]);
        assert_eq!(values(output.weights.gates), [1.0, 0.0, 1.0, 1.0, 0.0, 1.0]);
        assert_close(&values(output.weights.weights), &[0.5, 0.0, 0.5, 0.5, 0.0, 0.5], 1e-6);
        // The part of a dropped sensor is empty.
        assert!(values(output.embedding.narrow(1, 6, 6)).iter().all(|part| *part == 0.0));
        // All below the threshold: the largest alone.
        let output = run([-3.0, -2.0, -2.5]);
        assert_eq!(values(output.weights.weights), [0.0, 1.0, 0.0, 0.0, 1.0, 0.0]);
        assert!(values(output.logits).iter().all(|logit| logit.is_finite()));
        // Between kept sensors the factor stays below e.
        let weights = values(run([-0.8, 200.0, 0.0]).weights.weights);
        assert!(weights[1] / weights[0] < std::f64::consts::E && weights[1] > weights[0]);
    }
}

#[test]
fn encoders_of_a_dropped_sensor_do_not_run_at_inference_and_their_result_is_the_same() {
    for device in devices() {
        let whole = biased([1.0, -3.0, 1.0], &device);
        let mut broken = whole.clone();
        let nan =
            |weight: &Param<Tensor<2>>| Param::from_tensor(weight.val().zeros_like() * f64::NAN + f64::NAN);
        for target in [0, 2] {
            let encoder = broken.trans[target][1].as_mut().expect("not the diagonal");
            encoder.layers[0].fc1.weight = nan(&encoder.layers[0].fc1.weight);
        }
        broken.mem[1].layers[0].fc1.weight = nan(&broken.mem[1].layers[0].fc1.weight);
        let mask = ModalityMask::full(2, &STEPS, &device);
        let x = inputs(2, &device);
        let want = all(whole.forward(&x, &mask));
        assert_eq!(all(broken.forward(&x, &mask)), want);
        // With autodiff all encoders run.
        let autodiff: Vec<Tensor<3>> = x.into_iter().map(Tensor::autodiff).collect();
        assert_close(&all(whole.train().forward(&autodiff, &mask)), &want, 1e-5);
        assert!(all(broken.train().forward(&autodiff, &mask)).iter().any(|value| value.is_nan()));
    }
}

#[test]
fn equal_weights_are_shares_of_those_present() {
    for device in devices() {
        let model = small().with_weighting(Weighting::Equal).init(&device);
        assert!(model.mag.is_none());
        let output = model.forward(&inputs(3, &device), &some_missing(&device));
        let third = 1.0 / 3.0;
        let want = [0.0, 0.5, 0.5, 1.0, 0.0, 0.0, third, third, third];
        assert_close(&values(output.weights.weights), &want, 1e-6);
    }
}

#[test]
fn single_steps_wide_kernels_and_odd_widths_are_legal() {
    for device in devices() {
        let config =
            small().with_dim(5).with_num_heads(5).with_kernel_sizes(Some(vec![3, 5, 1])).with_attn_mask(true);
        let model = config.init(&device);
        let x: Vec<Tensor<3>> = inputs(1, &device).into_iter().map(|x| x.narrow(1, 0, 1)).collect();
        let output = model.forward(&x, &ModalityMask::full(1, &[1, 1, 1], &device));
        assert_eq!(output.embedding.dims(), [1, 15]);
        let length: f64 = values(output.embedding).iter().map(|part| part * part).sum();
        assert!((length - 1.0).abs() < 1e-5, "{length}");
        assert!(values(output.logits).iter().all(|logit| logit.is_finite()));
    }
}

#[test]
fn a_masked_encoder_does_not_look_ahead() {
    for device in devices() {
        let encoder = CrossModalEncoderConfig::new(4).with_layers(2).with_attn_mask(true).init(&device);
        let x = waves([1, 5, 4], 0.0, &device);
        let changed = x.clone().slice_assign([0..1, 3..5, 0..4], waves([1, 2, 4], 9.0, &device));
        let first = |x: Tensor<3>| values(encoder.forward(x, None, None).narrow(1, 0, 3));
        assert_close(&first(changed.clone()), &first(x.clone()), 1e-6);
        // Of 7 keys the first of 5 queries sees 3.
        let source = |features: Tensor<3>| Some(Source { features, mask: None });
        let keys = waves([1, 7, 4], 3.0, &device);
        let other = keys.clone().slice_assign([0..1, 3..7, 0..4], waves([1, 4, 4], 8.0, &device));
        let query = |keys| values(encoder.forward(x.clone(), None, source(keys)).narrow(1, 0, 1));
        assert_close(&query(other), &query(keys.clone()), 1e-6);
        let open = CrossModalEncoderConfig::new(4).with_layers(2).init(&device);
        let apart = |x: Tensor<3>| values(open.forward(x, None, None).narrow(1, 0, 3));
        assert!(apart(changed).iter().zip(apart(x)).any(|(a, b)| (a - b).abs() > 1e-3));
    }
}

#[test]
fn a_source_without_a_step_adds_nothing() {
    for device in devices() {
        let mut encoder = CrossModalEncoderConfig::new(4).with_layers(1).init(&device).materialize();
        // A bias that would show.
        encoder.layers[0].self_attn.out_proj.bias = Some(Param::from_tensor(Tensor::full([4], 7.0, &device)));
        let x = waves([2, 3, 4], 0.0, &device);
        let none = mask(&[&[false, false], &[true, true]], &device);
        let read = |phase| {
            let source = Source { features: waves([2, 2, 4], phase, &device), mask: Some(none.clone()) };
            encoder.forward(x.clone(), None, Some(source))
        };
        let (a, b) = (values(read(1.0)), values(read(4.0)));
        assert_eq!(a[..12], b[..12], "the first instance reads nothing");
        assert!(a[12..].iter().zip(&b[12..]).any(|(a, b)| (a - b).abs() > 1e-4));
        // Without the attention the layer is its feed-forward part.
        encoder.layers[0].self_attn.out_proj.bias = Some(Param::from_tensor(Tensor::zeros([4], &device)));
        let weight = encoder.layers[0].self_attn.out_proj.weight.val().zeros_like();
        encoder.layers[0].self_attn.out_proj.weight = Param::from_tensor(weight);
        assert_close(&values(encoder.forward(x.clone(), None, None))[..12], &a[..12], 1e-6);
    }
}

#[test]
fn gating_alone_weighs_sequences() {
    for device in devices() {
        let gating = ModalityGatingConfig::new(4, 2).with_gate_hidden(Some(3)).init(&device);
        let x = [waves([1, 3, 4], 0.0, &device), waves([1, 2, 4], 1.0, &device)];
        let (y, weights) = gating.forward(&x, &ModalityMask::full(1, &[3, 2], &device));
        let alpha = values(weights.weights);
        for (m, (y, x)) in y.into_iter().zip(x).enumerate() {
            assert_close(&values(y), &values(x * alpha[m]), 1e-6);
        }
        let gates = values(weights.gates);
        assert!(gates.iter().all(|gate| (0.3..1.0).contains(gate)), "gates start open: {gates:?}");
    }
}
