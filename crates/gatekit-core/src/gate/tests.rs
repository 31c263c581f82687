use burn::config::Config;
use burn::module::Param;
use burn::tensor::{Tensor, TensorData};

use super::*;
use crate::test_util::{assert_close, check_gradients, devices, float32, float64, ramp, values};
use crate::{ConfigError, ModuleConfig};

fn logistic(z: f64) -> f64 {
    1.0 / (1.0 + (-z).exp())
}

/// The error function: its series, and far out its limit.
fn erf(x: f64) -> f64 {
    if x.abs() > 6.0 {
        return x.signum();
    }
    // erf(x) = 2 / sqrt(pi) exp(-x^2) sum 2^n x^(2n+1) / (2n+1)!!, all terms of one sign.
    let mut term = x;
    let mut sum = x;
    for n in 1..200 {
        term *= 2.0 * x * x / (2 * n + 1) as f64;
        sum += term;
    }
    2.0 / std::f64::consts::PI.sqrt() * (-x * x).exp() * sum
}

fn by_hand(activation: GateActivation, z: f64) -> f64 {
    match activation {
        GateActivation::Sigmoid => logistic(z),
        GateActivation::HardSigmoid => (z / 6.0 + 0.5).clamp(0.0, 1.0),
        GateActivation::NonSparseSigmoid => 0.5 + 0.5 * logistic(z),
        GateActivation::Tanh => z.tanh(),
        GateActivation::Swish => z * logistic(z),
        GateActivation::Gelu => 0.5 * z * (1.0 + erf(z / 2f64.sqrt())),
        GateActivation::Relu => z.max(0.0),
        GateActivation::Identity => z,
        GateActivation::TemperedSigmoid(t) => logistic(z / t),
        GateActivation::TemperedTanh(t) => (z / t).tanh(),
        GateActivation::ScaledSigmoid(scale) => scale * logistic(z),
        GateActivation::LinearClipping(width) => (z / (2.0 * width) + 0.5).clamp(0.0, 1.0),
    }
}

fn all() -> Vec<GateActivation> {
    let numbered = [
        GateActivation::TemperedSigmoid(0.5),
        GateActivation::TemperedTanh(2.0),
        GateActivation::ScaledSigmoid(2.0),
        GateActivation::LinearClipping(4.5),
    ];
    GateActivation::PLAIN.into_iter().chain(numbered).collect()
}

#[test]
fn activations_match_their_equations() {
    let z = [-1000.0, -100.0, -4.0, -0.7, 0.0, 0.3, 2.0, 5.0, 100.0, 1000.0];
    for device in devices() {
        for activation in all() {
            let expected: Vec<f64> = z.iter().map(|z| by_hand(activation, *z)).collect();
            assert_close(&values(activation.apply(float32(&z, [10], &device))), &expected, 2e-6);
            assert_close(&values(activation.apply(float64(&z, [10], &device))), &expected, 1e-12);
        }
    }
}

#[test]
fn gradients_of_activations_match_finite_differences() {
    let device = devices().remove(0);
    for activation in all() {
        // Away from the corners of the hard sigmoid and of the rectifier.
        check_gradients(&[-100.0, -4.0, -0.7, 0.3, 2.0, 5.0, 100.0], [7], &device, |z| activation.apply(z));
    }
    check_gradients(&[0.0], [1], &device, sigmoid);
    check_gradients(&[0.0], [1], &device, |z| GateActivation::Swish.apply(z));
}

#[test]
fn names_are_read_back() {
    for activation in all() {
        let text = serde_roundtrip(activation);
        assert_eq!(text, activation);
        assert_eq!(GateActivation::parse(&activation.to_string()).unwrap(), activation);
    }
    assert_eq!(GateActivation::parse("SiLU").unwrap(), GateActivation::Swish);
    for bad in [
        "",
        "sigmoidal",
        "sigmoid/0",
        "tanh/-1",
        "sigmoid/inf",
        "relu/2",
        "sigmoid/x",
        "2*tanh",
        "-1*sigmoid",
        "*sigmoid",
    ] {
        assert_eq!(GateActivation::parse(bad).unwrap_err().field, "activation", "{bad}");
    }
    assert!(GateActivation::TemperedTanh(0.0).check("gate_fn").unwrap_err().to_string().contains("gate_fn"));
}

fn serde_roundtrip(activation: GateActivation) -> GateActivation {
    let config = OutputGateConfig::new(1, 1).with_activation(activation);
    let path = std::env::temp_dir().join(format!(
        "gatekit-gate-{}-{}.json",
        std::process::id(),
        activation.to_string().replace(['/', '*'], "-")
    ));
    config.save(&path).unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains(&format!("\"{activation}\"")), "{text}");
    let loaded = OutputGateConfig::load(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    loaded.activation
}

#[test]
fn hard_gates_are_exactly_zero_or_one_and_learn_as_sigmoids() {
    let z = ramp(101, 3.0);
    for device in devices() {
        let logits = float32(&z, [101], &device.clone().autodiff()).require_grad();
        let gate = hard_gate(logits.clone());
        let gradients = gate.clone().sum().backward();
        let expected: Vec<f64> = z.iter().map(|z| if *z > 0.0 { 1.0 } else { 0.0 }).collect();
        assert_eq!(values(gate), expected);
        let slopes: Vec<f64> = z.iter().map(|z| logistic(*z) * logistic(-z)).collect();
        assert_close(&values(logits.grad(&gradients).unwrap()), &slopes, 1e-6);

        let extreme = float32(&[-1e30, 1e30], [2], &device.autodiff()).require_grad();
        let gate = hard_gate(extreme.clone());
        let gradients = gate.clone().sum().backward();
        assert_eq!(values(gate), [0.0, 1.0]);
        assert_eq!(values(extreme.grad(&gradients).unwrap()), [0.0, 0.0]);
    }
}

#[test]
fn gumbel_sigmoid_opens_with_the_sigmoids_probability() {
    let device = devices().remove(0);
    // Evenly spread uniforms stand for the draw: the share of open gates is then exact to 1 / n.
    let n = 2000;
    let uniform: Vec<f64> = (0..n).map(|i| (i as f64 + 0.5) / n as f64).collect();
    for z in [-2.0, 0.0, 0.8] {
        let noise = logistic_noise(float64(&uniform, [n], &device));
        let gate = gumbel_sigmoid(Tensor::full_like(&noise, z), noise, 0.5, true);
        let gates = values(gate);
        assert!(gates.iter().all(|gate| *gate == 0.0 || *gate == 1.0));
        let share = gates.iter().sum::<f64>() / n as f64;
        assert!((share - logistic(z)).abs() < 2.0 / n as f64, "{share} at {z}");
    }
    let (z, noise) = (ramp(5, 2.0), ramp(5, 1.0));
    let soft: Vec<f64> = z.iter().zip(&noise).map(|(z, e)| logistic((z + e) / 0.7)).collect();
    let gate = gumbel_sigmoid(float64(&z, [5], &device), float64(&noise, [5], &device), 0.7, false);
    assert_close(&values(gate), &soft, 1e-12);
    let ends = values(logistic_noise(float32(&[0.0, 1.0], [2], &device)));
    assert!(ends.iter().all(|end| end.is_finite() && end.abs() > 15.0));
}

#[test]
fn gates_are_applied_by_their_equations() {
    let (a, b, z) = (ramp(6, 1.0), ramp(6, 2.0), ramp(6, 3.0));
    for device in devices() {
        let tensor = |values: &[f64]| float32(values, [2, 3], &device);
        let each =
            |f: &dyn Fn(f64, f64, f64) -> f64| -> Vec<f64> { (0..6).map(|i| f(a[i], b[i], z[i])).collect() };
        let swish = GateActivation::Swish;
        assert_close(
            &values(output_gate(tensor(&a), tensor(&z), swish)),
            &each(&|a, _, z| a * z * logistic(z)),
            1e-6,
        );
        assert_close(
            &values(convex_mix(sigmoid(tensor(&z)), tensor(&a), tensor(&b))),
            &each(&|a, b, z| logistic(z) * a + (1.0 - logistic(z)) * b),
            1e-6,
        );
        assert_close(
            &values(highway(tensor(&a), tensor(&b), tensor(&z))),
            &each(&|a, b, z| logistic(z) * b + (1.0 - logistic(z)) * a),
            1e-6,
        );
        assert_close(
            &values(gated_residual(tensor(&a), tensor(&b), tensor(&z), GateActivation::Tanh)),
            &each(&|a, b, z| a + z.tanh() * b),
            1e-6,
        );
        let bound = float32(&[0.2, 0.0, 0.9], [1, 3], &device);
        let bounded: Vec<f64> =
            (0..6).map(|i| [0.2, 0.0, 0.9][i % 3] + [0.8, 1.0, 0.1][i % 3] * logistic(z[i])).collect();
        assert_close(&values(lower_bounded_gate(tensor(&z), bound)), &bounded, 1e-6);
        // A head's gate reaches all its channels.
        let head = float32(&[0.0, 3.0], [2, 1], &device);
        let headwise: Vec<f64> = (0..6).map(|i| a[i] * logistic([0.0, 3.0][i / 3])).collect();
        assert_close(&values(output_gate(tensor(&a), head, GateActivation::Sigmoid)), &headwise, 1e-6);
    }
}

#[test]
fn closed_and_open_gates_are_exact_and_have_finite_gradients() {
    for device in devices() {
        let device = device.autodiff();
        let x = float32(&[0.1, -0.3], [2], &device).require_grad();
        let y = float32(&[0.7, 1.9], [2], &device);
        let logits = float32(&[-1e4, 1e4], [2], &device).require_grad();
        let out = highway(x.clone(), y.clone(), logits.clone());
        let gradients = out.clone().sum().backward();
        assert_eq!(values(out), values(float32(&[0.1, 1.9], [2], &device)));
        assert_eq!(values(x.grad(&gradients).unwrap()), [1.0, 0.0]);
        assert_eq!(values(logits.grad(&gradients).unwrap()), [0.0, 0.0]);

        let mixed = convex_mix(float32(&[0.0, 1.0], [2], &device), y.clone(), x.clone());
        assert_eq!(values(mixed), values(float32(&[0.1, 1.9], [2], &device)));
        for activation in all() {
            let logits = float32(&[-1e4, 1e4], [2], &device).require_grad();
            let gradients = output_gate(y.clone(), logits.clone(), activation).sum().backward();
            let slopes = values(logits.grad(&gradients).unwrap());
            assert!(slopes.iter().all(|slope| slope.is_finite()), "{activation}: {slopes:?}");
        }
    }
}

#[test]
fn zero_initialised_gate_is_silent_but_learns() {
    for device in devices() {
        let device = device.autodiff();
        let (x, update) = (ramp(6, 1.0), ramp(6, 2.0));
        let (x_tensor, update_tensor) = (float32(&x, [2, 3], &device), float32(&update, [2, 3], &device));
        let scalar = TanhGateConfig::new().init(&device);
        let out = scalar.residual(x_tensor.clone(), update_tensor.clone());
        assert_eq!(values(out.clone()), values(x_tensor));
        let gradients = out.sum().backward();
        let slope = values(scalar.gate.val().grad(&gradients).unwrap());
        assert_close(&slope, &[update.iter().sum()], 1e-6);

        let mut channels = TanhGateConfig::new().with_channels(Some(3)).init(&device);
        channels.gate = Param::from_data(TensorData::from([0.5f32, -1.0, 2.0]), &device);
        let expected: Vec<f64> = (0..6).map(|i| update[i] * [0.5f64, -1.0, 2.0][i % 3].tanh()).collect();
        assert_close(&values(channels.forward(update_tensor)), &expected, 1e-6);
    }
}

#[test]
fn tanh_gates_may_stand_along_any_axis() {
    for device in devices() {
        let x = ramp(12, 2.0);
        let mut heads = TanhGateConfig::new().with_channels(Some(3)).with_start(0.25).init(&device);
        assert_eq!(values(heads.gate.val()), [0.25; 3]);
        heads.gate = Param::from_data(TensorData::from([0.5f32, 0.0, -2.0]), &device);
        let gated = heads.forward_along(float32(&x, [2, 1, 3, 2], &device), 2);
        let expected: Vec<f64> = (0..12).map(|i| x[i] * [0.5f64, 0.0, -2.0][i / 2 % 3].tanh()).collect();
        assert_close(&values(gated), &expected, 1e-6);
    }
}

#[test]
#[should_panic(expected = "`gate` [1, 1, 3, 1] does not broadcast onto `x` [2, 1, 4, 2]")]
fn another_number_of_heads_panics() {
    let device = devices().remove(0);
    let heads = TanhGateConfig::new().with_channels(Some(3)).init(&device);
    let _ = heads.forward_along(Tensor::<4>::ones([2, 1, 4, 2], &device), 2);
}

#[test]
fn modules_gate_by_a_projection() {
    for device in devices() {
        let gate = OutputGateConfig::new(2, 3).with_bias(true).init(&device);
        let (x, input) = (float32(&ramp(6, 1.0), [2, 3], &device), float32(&ramp(4, 2.0), [2, 2], &device));
        let expected = x.clone() * gate.gate(input.clone());
        assert_close(&values(gate.forward(x, input)), &values(expected), 1e-6);

        // All weights zero: the transform gate is sigmoid of the bias alone.
        let mut layer = HighwayConfig::new(3).init(&device);
        layer.gate_proj.weight = Param::from_tensor(Tensor::zeros([3, 3], &device));
        let (a, b) = (ramp(6, 1.0), ramp(6, 2.0));
        let t = logistic(-1.0);
        let expected: Vec<f64> = a.iter().zip(&b).map(|(a, b)| t * b + (1.0 - t) * a).collect();
        let got = layer.forward(float32(&a, [2, 3], &device), float32(&b, [2, 3], &device));
        assert_close(&values(got), &expected, 1e-6);
    }
}

#[test]
fn refuses_bad_configurations() {
    let device = devices().remove(0);
    let field = |result: Result<_, ConfigError>| result.map(|_: ()| ()).unwrap_err().field;
    assert_eq!(field(OutputGateConfig::new(0, 1).try_init(&device).map(drop)), "input_size");
    assert_eq!(field(OutputGateConfig::new(1, 0).try_init(&device).map(drop)), "gated_size");
    assert_eq!(field(HighwayConfig::new(0).try_init(&device).map(drop)), "hidden_size");
    let infinite = HighwayConfig::new(1).with_bias_init(f64::INFINITY);
    assert_eq!(field(infinite.try_init(&device).map(drop)), "bias_init");
    let none = TanhGateConfig::new().with_channels(Some(0));
    assert_eq!(field(none.try_init(&device).map(drop)), "channels");
    assert_eq!(field(TanhGateConfig::new().with_start(f64::NAN).try_init(&device).map(drop)), "start");
    let frozen = OutputGateConfig::new(1, 1).with_activation(GateActivation::TemperedSigmoid(f64::NAN));
    assert_eq!(field(frozen.try_init(&device).map(drop)), "activation");
}

#[test]
#[should_panic(expected = "`logits` [2, 2] does not broadcast onto `x` [2, 3]")]
fn shapes_are_checked() {
    let device = devices().remove(0);
    let (x, logits) = (Tensor::<2>::zeros([2, 3], &device), Tensor::zeros([2, 2], &device));
    output_gate(x, logits, GateActivation::Sigmoid);
}
