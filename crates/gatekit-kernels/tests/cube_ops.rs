//! The CubeCL kernels of the elementwise and per-channel operations in float32 and, where the
//! device stores it, float16, against the portable forms in float64.
#![cfg(all(feature = "wgpu", feature = "ndarray"))]
// Burn marks its `NdArray` backend as deprecated; this library supports it.
#![allow(missing_docs, deprecated)]

mod support;

use burn::tensor::{DType, Device, DeviceKind};
use gatekit_kernels::gate::{Activation, gated_product, log_sigmoid_scaled};
use support::*;

/// Results and gradients by name.
type Results = Vec<(&'static str, Vec<f64>)>;

fn gpu() -> Device {
    Device::wgpu(DeviceKind::DefaultDevice)
}

/// Compares what `run` returns with the portable form in float64.
#[track_caller]
fn check(what: &str, tolerance: f64, run: impl Fn(&Device, DType) -> Results) {
    let want = run(&Device::ndarray(), DType::F64);
    let got = run(&gpu(), DType::F32);
    assert_eq!(got.len(), want.len());
    for ((name, got), (_, want)) in got.iter().zip(&want) {
        close(&format!("{name} of {what}"), got, want, tolerance);
    }
}

const ACTIVATIONS: [Activation; 3] = [Activation::Sigmoid, Activation::Swish, Activation::Relu];

const EXTREMES: [f64; 14] =
    [-1e30, -1e4, -100.0, -88.5, -87.0, -20.0, -1e-3, 1e-30, 0.5, 20.0, 88.5, 100.0, 1e4, 1e30];

fn product([x, z, w]: [&[f64]; 3], activation: Activation, device: &Device, dtype: DType) -> Results {
    let device = device.clone().autodiff();
    let tensor = |values: &[f64]| tensor(values, [values.len()], &device, dtype);
    let (x, z) = (tensor(x).require_grad(), tensor(z).require_grad());
    let y = gated_product(x.clone(), z.clone(), activation);
    let gradients = (y.clone() * tensor(w)).sum().backward();
    vec![("y", values(&y)), ("x", gradient(&x, &gradients)), ("logits", gradient(&z, &gradients))]
}

#[test]
fn gated_products_match_the_portable_form() {
    let mut numbers = Numbers(6);
    for count in [1, 3, 16, 1001, 4096] {
        let (x, z, w) = (numbers.many(count), numbers.many(count), numbers.many(count));
        let z: Vec<f64> = z.iter().map(|z| 6.0 * z).collect();
        for activation in ACTIVATIONS {
            let what = format!("a product of {count}, {activation:?}");
            check(&what, 1e-6, |device, dtype| product([&x, &z, &w], activation, device, dtype));
        }
    }
    let ones = [1.0; EXTREMES.len()];
    for activation in ACTIVATIONS {
        check("extreme logits", 1e-6, |device, dtype| {
            product([&ones, &EXTREMES, &ones], activation, device, dtype)
        });
    }
}

#[test]
fn log_sigmoids_match_the_portable_form() {
    let mut numbers = Numbers(7);
    let mut z: Vec<f64> = numbers.many(501).iter().map(|z| 20.0 * z).collect();
    z.extend(EXTREMES);
    let w = numbers.many(z.len());
    for (normalizer, floor) in [(1.0, None), (16.0, None), (0.5, Some(-5.0)), (1.0, Some(-1e-3))] {
        check(&format!("a log-sigmoid over {normalizer}"), 2e-6, |device, dtype| {
            let device = device.clone().autodiff();
            let logits = tensor(&z, [z.len()], &device, dtype).require_grad();
            let gate = log_sigmoid_scaled(logits.clone(), normalizer, floor);
            let gradients = (gate.clone() * tensor(&w, [w.len()], &device, dtype)).sum().backward();
            vec![("gate", values(&gate)), ("logits", gradient(&logits, &gradients))]
        });
    }
}
