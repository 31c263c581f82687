//! The delta rule's CubeCL kernels against the portable form in float64: outputs, final states and
//! all gradients.
#![cfg(all(feature = "wgpu", feature = "ndarray"))]
// Burn marks its `NdArray` backend as deprecated; this library supports it.
#![allow(missing_docs, deprecated)]

mod support;

use std::sync::Arc;

use burn::tensor::{DType, Device, DeviceKind, Tensor};
use gatekit_kernels::scan::{DecayKind, ScanSpec, WriteKind, matrix_scan};
use support::{Numbers, close, gradient, tensor, values};

const NAMES: [&str; 6] = ["q", "k", "v", "log decay", "beta", "initial state"];

/// How a case is made.
#[derive(Clone, Copy)]
struct Shape {
    /// Batch, time, heads, key_dim, value_dim.
    dims: [usize; 5],
    decay: DecayKind,
    boundaries: Option<&'static [usize]>,
    initial: bool,
}

/// A case and what it is to give.
struct Case {
    shape: Shape,
    /// In the order of [`NAMES`].
    inputs: [Vec<f64>; 6],
    weights: [Vec<f64>; 2],
}

impl Case {
    fn new(shape: Shape) -> Self {
        let [batch, time, heads, key_dim, value_dim] = shape.dims;
        let mut numbers = Numbers(shape.dims.iter().sum::<usize>() as u64);
        let steps = batch * time * heads;
        let states = shape.boundaries.map_or(batch, |boundaries| boundaries.len() - 1);
        let state = states * heads * key_dim * value_dim;
        let mut many = |count: usize, map: &dyn Fn(f64) -> f64| -> Vec<f64> {
            numbers.many(count).into_iter().map(|x| f64::from(map(x) as f32)).collect()
        };
        let mut k = many(steps * key_dim, &|x| x);
        // The rule is made for keys of length 1.
        for row in k.chunks_exact_mut(key_dim) {
            let length = row.iter().map(|x| x * x).sum::<f64>().sqrt();
            row.iter_mut().for_each(|x| *x = f64::from((*x / length) as f32));
        }
        let decays = if shape.decay == DecayKind::PerKey { key_dim } else { 1 };
        let inputs = [
            many(steps * key_dim, &|x| x),
            k,
            many(steps * value_dim, &|x| x),
            // From slow decay to near-resets.
            many(steps * decays, &|x| -(5.0 * x - 2.0).exp()),
            many(steps, &|x| 0.5 * (x + 1.0)),
            many(state, &|x| x),
        ];
        let weights = [many(steps * value_dim, &|x| x), many(state, &|x| x)];
        Self { shape, inputs, weights }
    }

    fn states(&self) -> usize {
        self.shape.boundaries.map_or(self.shape.dims[0], |boundaries| boundaries.len() - 1)
    }

    /// Output, final state and gradients.
    fn run(&self, device: Device, dtype: DType, fused: bool) -> Vec<Vec<f64>> {
        let Shape { dims: [batch, time, heads, key_dim, value_dim], decay, boundaries, initial } = self.shape;
        let device = device.autodiff();
        let wide = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
        let decays = if decay == DecayKind::PerKey { key_dim } else { 1 };
        let state = [self.states(), heads, key_dim, value_dim];
        let input = |index: usize, dims, dtype| -> Tensor<4> {
            tensor(&self.inputs[index], dims, &device, dtype).require_grad()
        };
        let tensors = [
            Some(input(0, [batch, time, heads, key_dim], dtype)),
            Some(input(1, [batch, time, heads, key_dim], dtype)),
            Some(input(2, [batch, time, heads, value_dim], dtype)),
            (decay != DecayKind::None).then(|| input(3, [batch, time, heads, decays], wide)),
            Some(input(4, [batch, time, heads, 1], dtype)),
            initial.then(|| input(5, state, wide)),
        ];
        let [q, k, v, log_decay, beta, initial_state] = tensors.clone();
        let (output, last) = matrix_scan(
            q.unwrap(),
            k.unwrap(),
            v.unwrap(),
            log_decay,
            beta.map(|beta| beta.squeeze_dim(3)),
            initial_state,
            ScanSpec {
                scale: 0.6,
                decay,
                write: WriteKind::Delta,
                has_initial_state: initial,
                boundaries: boundaries.map(Arc::from),
                chunk_size: 64,
                sub_chunk_size: 16,
                fused,
            },
        );
        assert_eq!((output.dtype(), last.dtype()), (dtype, wide));
        let mut results = vec![values(&output), values(&last)];
        let output_weights = tensor(&self.weights[0], output.dims(), &device, dtype);
        let state_weights = tensor(&self.weights[1], last.dims(), &device, wide);
        let loss = (output * output_weights).cast(wide).sum() + (last * state_weights).sum();
        let gradients = loss.backward();
        results.extend(tensors.iter().map(|x| x.as_ref().map_or(vec![], |x| gradient(x, &gradients))));
        results
    }

    #[track_caller]
    fn check(&self, dtype: DType, tolerance: f64) {
        let got = self.run(gpu(), dtype, true);
        let want = self.run(Device::ndarray(), DType::F64, false);
        let names = ["output", "final state"].into_iter().chain(NAMES);
        for (name, (got, want)) in names.zip(got.iter().zip(&want)) {
            let Shape { dims, decay, .. } = self.shape;
            close(&format!("{name} of {dims:?}, {decay:?}"), got, want, tolerance);
        }
    }
}

fn gpu() -> Device {
    Device::wgpu(DeviceKind::DefaultDevice)
}

const DECAYS: [DecayKind; 3] = [DecayKind::None, DecayKind::PerHead, DecayKind::PerKey];

#[test]
fn every_length() {
    for time in [1, 15, 64, 65, 200] {
        for decay in DECAYS {
            let shape = Shape { dims: [2, time, 2, 17, 3], decay, boundaries: None, initial: time % 2 == 1 };
            Case::new(shape).check(DType::F32, 2e-5);
        }
    }
}

#[test]
fn every_head_size() {
    for (key_dim, value_dim) in [(1, 1), (3, 17), (64, 64), (128, 64), (64, 128), (256, 32), (17, 256)] {
        for decay in DECAYS {
            let shape =
                Shape { dims: [1, 70, 1, key_dim, value_dim], decay, boundaries: None, initial: true };
            Case::new(shape).check(DType::F32, 2e-5);
        }
    }
}

#[test]
fn packed_sequences() {
    for decay in DECAYS {
        for initial in [false, true] {
            let boundaries: Option<&[usize]> = Some(&[0, 1, 66, 90, 218]);
            let shape = Shape { dims: [1, 218, 2, 8, 12], decay, boundaries, initial };
            Case::new(shape).check(DType::F32, 2e-5);
        }
    }
}

#[test]
fn resets_and_extreme_strengths() {
    for decay in [DecayKind::PerHead, DecayKind::PerKey] {
        let shape = Shape { dims: [1, 130, 2, 16, 8], decay, boundaries: None, initial: true };
        let mut case = Case::new(shape);
        let kinds = [f64::NEG_INFINITY, -1e4, 0.0, -1e-30, -0.01, -0.5, -2.0];
        for (place, x) in case.inputs[3].iter_mut().enumerate() {
            // Resets are rare, else there is nothing to reset.
            *x = if place % 11 == 0 { kinds[place / 11 % 2] } else { kinds[2 + place % 5] };
        }
        for (place, x) in case.inputs[4].iter_mut().enumerate() {
            *x = [0.0, 1.0, 1.0, 0.5][place % 4];
        }
        case.check(DType::F32, 2e-5);
    }
}

#[test]
fn half_precision() {
    if !gpu().supports_dtype(DType::F16) {
        println!("this device has no float16");
        return;
    }
    for decay in DECAYS {
        let shape = Shape { dims: [1, 100, 2, 32, 16], decay, boundaries: None, initial: true };
        let mut case = Case::new(shape);
        for index in [0, 1, 2, 4] {
            // Exact in float16, so that only results are rounded, and on matrix units what is computed on the way.
            case.inputs[index].iter_mut().for_each(|x| *x = (*x * 512.0).round() / 512.0);
        }
        case.weights[0].iter_mut().for_each(|x| *x = (*x * 512.0).round() / 512.0);
        // Without matrix units 3e-3 would do: a gradient is the sum of two that are rounded to float16, each to 5e-4 of a
        // value that may be larger. With them, the operands of each of a chain of products are rounded as well.
        case.check(DType::F16, 1e-2);
    }
}
