//! The norm: the portable form in float64 against plain Rust and central differences, the fused
//! form in float32 against the portable one.
#![cfg(feature = "ndarray")]
// Burn marks its `NdArray` backend as deprecated; this library supports it.
#![allow(missing_docs, deprecated)]

mod support;

use burn::tensor::{DType, Device};
use gatekit_kernels::{gate::Activation, norm::rms_norm};
use support::*;

const GATES: [Option<Activation>; 4] =
    [None, Some(Activation::Sigmoid), Some(Activation::Swish), Some(Activation::Relu)];

const EPS: f64 = 1e-3;

struct Case {
    rows: usize,
    dim: usize,
    gate: Option<Activation>,
    /// x, weight, logits.
    inputs: Vec<Vec<f64>>,
    /// Gradient of the result.
    w: Vec<f64>,
}

impl Case {
    fn new(rows: usize, dim: usize, gate: Option<Activation>) -> Self {
        let mut numbers = Numbers((31 * rows + dim) as u64);
        let logits = if gate.is_some() { rows * dim } else { 0 };
        let inputs = vec![
            numbers.many(rows * dim),
            numbers.many(dim),
            numbers.many(logits).iter().map(|z| 4.0 * z).collect(),
        ];
        Self { rows, dim, gate, inputs, w: numbers.many(rows * dim) }
    }

    fn naive(&self, inputs: &[Vec<f64>]) -> Vec<f64> {
        let [x, weight, logits] = inputs else { unreachable!() };
        let mut y = Vec::new();
        for (row, x) in x.chunks(self.dim).enumerate() {
            let inverse = 1.0 / (dot(x, x) / self.dim as f64 + EPS).sqrt();
            for (column, (x, weight)) in x.iter().zip(weight).enumerate() {
                let gate = self.gate.map_or(1.0, |gate| {
                    let z = logits[row * self.dim + column];
                    match gate {
                        Activation::Sigmoid => sigmoid(z),
                        Activation::Swish => z * sigmoid(z),
                        Activation::Relu => z.max(0.0),
                    }
                });
                y.push(x * inverse * weight * gate);
            }
        }
        y
    }

    /// Result and gradients, those of the logits last if there are any.
    fn run(&self, device: &Device, dtype: DType) -> Vec<Vec<f64>> {
        let device = device.clone().autodiff();
        let dims = [1, self.rows, self.dim];
        let x = tensor(&self.inputs[0], dims, &device, dtype).require_grad();
        let weight = tensor(&self.inputs[1], [self.dim], &device, dtype).require_grad();
        let gate = self
            .gate
            .map(|activation| (tensor(&self.inputs[2], dims, &device, dtype).require_grad(), activation));
        let y = rms_norm(x.clone(), weight.clone(), EPS, gate.clone());
        let gradients = (y.clone() * tensor(&self.w, dims, &device, dtype)).sum().backward();
        let mut all = vec![values(&y), gradient(&x, &gradients), gradient(&weight, &gradients)];
        all.extend(gate.map(|(logits, _)| gradient(&logits, &gradients)));
        all
    }
}

#[test]
fn portable_norms_match_plain_rust_and_differences() {
    for gate in GATES {
        for (rows, dim) in [(1, 1), (4, 1), (3, 5), (2, 16)] {
            let case = Case::new(rows, dim, gate);
            let want = differences(&case.inputs, |inputs| dot(&case.naive(inputs), &case.w));
            for device in devices() {
                let got = case.run(&device, DType::F64);
                close("y", &got[0], &case.naive(&case.inputs), 1e-13);
                for (index, got) in got[1..].iter().enumerate() {
                    close(["dx", "dweight", "dlogits"][index], got, &want[index], 1e-7);
                }
            }
        }
    }
}

#[test]
fn fused_norms_match_the_portable_form() {
    for gate in GATES {
        // One channel, around the width of a vector, wide rows, one row, several jobs and threads.
        for (rows, dim) in
            [(1, 1), (9000, 1), (5, 3), (7, 15), (7, 17), (1, 64), (700, 64), (40, 1023), (3, 20_000)]
        {
            let case = Case::new(rows, dim, gate);
            for device in devices() {
                let want = case.run(&device, DType::F64);
                let got = case.run(&device, DType::F32);
                for (index, (got, want)) in got.iter().zip(&want).enumerate() {
                    let name = ["y", "dx", "dweight", "dlogits"][index];
                    close(&format!("{name} of {rows} x {dim}, {gate:?}"), got, want, 1e-5);
                }
            }
        }
    }
}

#[test]
fn extreme_logits_and_zero_rows_stay_finite() {
    for gate in GATES.into_iter().flatten() {
        let mut case = Case::new(3, 4, Some(gate));
        case.inputs[0][4..8].fill(0.0);
        case.inputs[2] = vec![-1e4, 1e4, -100.0, 100.0, 1e4, -1e4, 100.0, -100.0, 0.5, -1e30, 88.0, -88.0];
        for device in devices() {
            let want = case.run(&device, DType::F64);
            let got = case.run(&device, DType::F32);
            close("y", &want[0], &case.naive(&case.inputs), 1e-13);
            for (got, want) in got.iter().zip(&want) {
                close("float32", got, want, 1e-5);
            }
        }
    }
}

#[test]
#[cfg(feature = "flex")]
fn sums_do_not_depend_on_the_number_of_threads() {
    let case = Case::new(999, 77, Some(Activation::Swish));
    let on = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| case.run(&Device::flex(), DType::F32))
    };
    assert_eq!(on(1), on(3));
}

#[test]
#[should_panic(expected = "channels of `weight` and `x`")]
fn another_width_panics() {
    let device = Device::ndarray();
    let x = tensor(&[0.0; 6], [2, 3], &device, DType::F32);
    rms_norm(x, tensor(&[0.0; 2], [2], &device, DType::F32), EPS, None);
}
