//! Gates: the portable form in float64 against plain Rust and central differences, the fused form
//! in float32 against the portable one.
#![cfg(feature = "ndarray")]
// Burn marks its `NdArray` backend as deprecated; this library supports it.
#![allow(missing_docs, deprecated)]

mod support;

use burn::tensor::{DType, Device};
use gatekit_kernels::gate::{Activation, gated_product, log_sigmoid_scaled};
use support::*;

const ACTIVATIONS: [Activation; 3] = [Activation::Sigmoid, Activation::Swish, Activation::Relu];

const EXTREMES: [f64; 14] =
    [-1e30, -1e4, -100.0, -88.5, -87.0, -20.0, -1e-3, 1e-30, 0.5, 20.0, 88.5, 100.0, 1e4, 1e30];

fn gate(activation: Activation, z: f64) -> f64 {
    match activation {
        Activation::Sigmoid => sigmoid(z),
        Activation::Swish => z * sigmoid(z),
        Activation::Relu => z.max(0.0),
    }
}

/// Result and gradients of `x` and the logits.
fn product([x, z, w]: [&[f64]; 3], activation: Activation, device: &Device, dtype: DType) -> [Vec<f64>; 3] {
    let device = device.clone().autodiff();
    let tensor = |values: &[f64]| tensor(values, [values.len()], &device, dtype);
    let (x, z) = (tensor(x).require_grad(), tensor(z).require_grad());
    let y = gated_product(x.clone(), z.clone(), activation);
    let gradients = (y.clone() * tensor(w)).sum().backward();
    [values(&y), gradient(&x, &gradients), gradient(&z, &gradients)]
}

#[test]
fn portable_products_match_plain_rust_and_differences() {
    let mut numbers = Numbers(5);
    // Up to 1e4: beyond, a difference of 1e-5 relative is no longer small.
    let mut z: Vec<f64> = EXTREMES.into_iter().filter(|z| z.abs() <= 1e4 && z.abs() > 1e-4).collect();
    z.extend(numbers.many(9).iter().map(|z| 4.0 * z));
    let (x, w) = (numbers.many(z.len()), numbers.many(z.len()));
    for device in devices() {
        for activation in ACTIVATIONS {
            let [y, dx, dz] = product([&x, &z, &w], activation, &device, DType::F64);
            for index in 0..z.len() {
                let naive = |inputs: &[Vec<f64>]| inputs[0][0] * gate(activation, inputs[1][0]);
                let inputs = [vec![x[index]], vec![z[index]]];
                // One element at a time: a sum over all would lose the small ones' digits.
                let want = differences(&inputs, |inputs| w[index] * naive(inputs));
                close("y", &[y[index]], &[naive(&inputs)], 1e-14);
                close("dx", &[dx[index]], &want[0], 1e-8);
                close("dz", &[dz[index]], &want[1], 1e-8);
            }
        }
    }
}

#[test]
fn fused_products_match_the_portable_form() {
    let mut numbers = Numbers(6);
    // Around the width of a vector, of a job, and where several threads work.
    for count in [1, 3, 16, 17, 1000, 8192, 8193, 70_001] {
        let (x, z, w) = (numbers.many(count), numbers.many(count), numbers.many(count));
        let z: Vec<f64> = z.iter().map(|z| 6.0 * z).collect();
        for device in devices() {
            for activation in ACTIVATIONS {
                let want = product([&x, &z, &w], activation, &device, DType::F64);
                let got = product([&x, &z, &w], activation, &device, DType::F32);
                for (name, (got, want)) in ["y", "dx", "dz"].iter().zip(got.iter().zip(&want)) {
                    close(&format!("{name} of {count}, {activation:?}"), got, want, 1e-6);
                }
            }
        }
    }
}

#[test]
fn products_are_finite_and_exact_at_extreme_logits() {
    let ones = [1.0; EXTREMES.len()];
    for device in devices() {
        for activation in ACTIVATIONS {
            for (dtype, tolerance) in [(DType::F32, 1e-6), (DType::F64, 1e-12)] {
                let [y, dx, dz] = product([&ones, &EXTREMES, &ones], activation, &device, dtype);
                for (index, z) in EXTREMES.into_iter().enumerate() {
                    let want = gate(activation, z);
                    for got in [y[index], dx[index]] {
                        assert!((got - want).abs() <= tolerance * want.abs() + 1e-36, "{got}, not {want}");
                    }
                    let slope = match activation {
                        Activation::Sigmoid => sigmoid(z) * sigmoid(-z),
                        Activation::Swish => sigmoid(z) * (1.0 + z * sigmoid(-z)),
                        Activation::Relu => f64::from(z > 0.0),
                    };
                    assert!((dz[index] - slope).abs() <= 2.0 * tolerance, "{}, not {slope}", dz[index]);
                }
            }
        }
    }
}

#[test]
fn the_rectifiers_slope_at_zero_is_zero() {
    for device in devices() {
        for dtype in [DType::F32, DType::F64] {
            let [y, dx, dz] = product([&[2.0], &[0.0], &[1.0]], Activation::Relu, &device, dtype);
            assert_eq!([y[0], dx[0], dz[0]], [0.0; 3]);
        }
    }
}

#[test]
fn views_are_read_in_their_own_order() {
    let mut numbers = Numbers(8);
    let (x, z) = (numbers.many(12), numbers.many(16));
    for device in devices() {
        let transposed = tensor(&x, [3, 4], &device, DType::F32).transpose();
        let logits = tensor(&z, [4, 4], &device, DType::F32).narrow(1, 1, 3);
        let y = gated_product(transposed, logits, Activation::Sigmoid);
        let want: Vec<f64> = (0..12)
            .map(|i| {
                let (row, column) = (i / 3, i % 3);
                x[column * 4 + row] * sigmoid(z[row * 4 + column + 1])
            })
            .collect();
        close("y", &values(&y), &want, 1e-6);
    }
}

#[test]
#[should_panic(expected = "shapes of `x` and `logits`")]
fn other_shapes_panic() {
    let device = Device::ndarray();
    let tensor = |count| tensor(&vec![0.0; count], [count], &device, DType::F32);
    gated_product(tensor(3), tensor(1), Activation::Sigmoid);
}

/// Result and gradient.
fn log_sigmoid(
    z: &[f64],
    w: &[f64],
    (normalizer, floor): (f64, Option<f64>),
    device: &Device,
    dtype: DType,
) -> [Vec<f64>; 2] {
    let device = device.clone().autodiff();
    let z = tensor(z, [z.len()], &device, dtype).require_grad();
    let y = log_sigmoid_scaled(z.clone(), normalizer, floor);
    let gradients = (y.clone() * tensor(w, [w.len()], &device, dtype)).sum().backward();
    [values(&y), gradient(&z, &gradients)]
}

#[test]
fn log_gates_are_accurate_on_both_sides() {
    let mut numbers = Numbers(9);
    for count in [1, 15, 33, 40_000] {
        let mut z: Vec<f64> = numbers.many(count).iter().map(|z| 8.0 * z).collect();
        z.extend(EXTREMES);
        z.push(0.0);
        let ones = vec![1.0; z.len()];
        for device in devices() {
            for (normalizer, floor) in [(1.0, None), (16.0, None), (3.0, Some(-1.5))] {
                for (dtype, tolerance) in [(DType::F32, 1e-6), (DType::F64, 1e-13)] {
                    let [y, dz] = log_sigmoid(&z, &ones, (normalizer, floor), &device, dtype);
                    for ((z, y), dz) in z.iter().zip(y).zip(dz) {
                        let free = (z.min(0.0) - (-z.abs()).exp().ln_1p()) / normalizer;
                        let want = floor.map_or(free, |floor| free.max(floor));
                        assert!(
                            (y - want).abs() <= tolerance * want.abs() + 1e-37,
                            "g({z}) = {y}, not {want}"
                        );
                        let slope = if want > free { 0.0 } else { sigmoid(-z) / normalizer };
                        assert!(
                            (dz - slope).abs() <= tolerance * slope + 1e-37,
                            "slope at {z}: {dz}, not {slope}"
                        );
                    }
                }
            }
        }
    }
}
