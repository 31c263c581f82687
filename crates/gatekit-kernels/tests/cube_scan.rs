//! The scans' CubeCL kernels in float32 against the portable form in float64: outputs, final states, all gradients.
#![cfg(all(feature = "wgpu", feature = "ndarray"))]
// Burn marks its `NdArray` backend as deprecated; this library supports it.
#![allow(missing_docs, deprecated)]

mod support;

use std::sync::Arc;

use burn::tensor::{DType, Device, DeviceKind, Tensor};
use gatekit_kernels::scan::{DecayKind, ScanSpec, WriteKind, matrix_scan};
use support::*;

const DECAYS: [DecayKind; 3] = [DecayKind::None, DecayKind::PerHead, DecayKind::PerKey];

/// What the log decays of a case are like.
#[derive(Debug, Clone, Copy)]
enum Forgetting {
    /// Between -0.3 and 0.
    Mild,
    /// From -0.01 to -6.
    Mixed,
    /// Mild, with resets of minus infinity, -1e4 and -40 here and there.
    Resets,
}

#[derive(Debug, Clone)]
struct Case {
    /// Batch, time, heads, key_dim, value_dim.
    dims: [usize; 5],
    decay: DecayKind,
    write: WriteKind,
    boundaries: Option<Vec<usize>>,
    initial: bool,
    forgetting: Forgetting,
}

impl Case {
    fn new(dims: [usize; 5], decay: DecayKind) -> Self {
        Self {
            dims,
            decay,
            write: WriteKind::Additive,
            boundaries: None,
            initial: false,
            forgetting: Forgetting::Mild,
        }
    }

    /// q, k, v, log decay, beta, initial state, weights of the outputs and of the final states.
    fn inputs(&self) -> [(Vec<f64>, Vec<usize>); 8] {
        let [batch, time, heads, key_dim, value_dim] = self.dims;
        let mut numbers = Numbers(self.dims.iter().sum::<usize>() as u64 + 11);
        let states = self.boundaries.as_ref().map_or(batch, |boundaries| boundaries.len() - 1);
        let decay_dim = if self.decay == DecayKind::PerKey { key_dim } else { 1 };
        let state = vec![states, heads, key_dim, value_dim];
        let keys = vec![batch, time, heads, key_dim];
        let values = vec![batch, time, heads, value_dim];
        let decays = vec![batch, time, heads, decay_dim];
        let mut many = |dims: Vec<usize>, map: &dyn Fn(f64) -> f64| {
            let numbers = numbers.many(dims.iter().product()).into_iter();
            (numbers.map(|x| f64::from(map(x) as f32)).collect(), dims)
        };
        let decay = |x: f64| match self.forgetting {
            Forgetting::Mild => -0.15 * (x + 1.0),
            Forgetting::Mixed => -0.25 * (3.2 * x).exp(),
            Forgetting::Resets => match (x + 1.0) * 50.0 {
                x if x < 2.0 => f64::NEG_INFINITY,
                x if x < 4.0 => -1e4,
                x if x < 5.0 => -40.0,
                x => -0.003 * x,
            },
        };
        let width = (key_dim as f64).sqrt();
        [
            many(keys.clone(), &|x| x),
            many(keys, &|x| 2.0 * x / width),
            many(values.clone(), &|x| x),
            many(decays, &decay),
            many(vec![batch, time, heads, 1], &|x| 0.5 * (x + 1.0)),
            many(state.clone(), &|x| x),
            many(values, &|x| x),
            many(state, &|x| x),
        ]
    }

    /// Output, final state, and the gradients of q, k, v, log decay and initial state.
    fn run(&self, device: &Device, dtype: DType, fused: bool) -> Vec<(&'static str, Vec<f64>)> {
        let device = device.clone().autodiff();
        let inputs = self.inputs();
        let [q, k, v, log_decay, beta, initial, w_output, w_state] =
            inputs.map(|(values, dims)| tensor::<4>(&values, dims.try_into().unwrap(), &device, dtype));
        let [q, k, v, log_decay, beta, initial] =
            [q, k, v, log_decay, beta, initial].map(Tensor::require_grad);
        let spec = ScanSpec {
            scale: 0.6,
            decay: self.decay,
            write: self.write,
            has_initial_state: self.initial,
            boundaries: self.boundaries.as_deref().map(Arc::from),
            chunk_size: 64,
            sub_chunk_size: 16,
            fused,
        };
        let delta = self.write == WriteKind::Delta;
        let (output, state) = matrix_scan(
            q.clone(),
            k.clone(),
            v.clone(),
            spec.has_decay().then(|| log_decay.clone()),
            delta.then(|| beta.clone().squeeze_dim(3)),
            self.initial.then(|| initial.clone()),
            spec.clone(),
        );
        let gradients = ((output.clone() * w_output).sum() + (state.clone() * w_state).sum()).backward();
        let mut results = vec![("output", values(&output)), ("final state", values(&state))];
        let mut add = |name, x: &Tensor<4>| results.push((name, gradient(x, &gradients)));
        add("dq", &q);
        add("dk", &k);
        add("dv", &v);
        if spec.has_decay() {
            add("dlog_decay", &log_decay);
        }
        if delta {
            add("dbeta", &beta);
        }
        if self.initial {
            add("dinitial", &initial);
        }
        results
    }

    fn check(&self) {
        let want = self.run(&Device::ndarray(), DType::F64, false);
        let got = self.run(&wgpu(), DType::F32, true);
        for ((name, want), (_, got)) in want.iter().zip(&got) {
            assert!(got.iter().all(|x| x.is_finite()), "{self:?}: {name}: not finite");
            // Sums of up to some thousand float32 products each rounded to 6e-8.
            let error = relative_error(got, want);
            assert!(error < 2e-5, "{self:?}: {name}: relative error {error}");
        }
    }
}

fn wgpu() -> Device {
    Device::wgpu(DeviceKind::DefaultDevice)
}

/// The largest difference, relative to the value's own size and the array's typical size.
fn relative_error(got: &[f64], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let typical = (want.iter().map(|x| x * x).sum::<f64>() / want.len() as f64).sqrt().max(1e-6);
    let errors = got.iter().zip(want).map(|(got, want)| (got - want).abs() / (want.abs() + typical));
    errors.fold(0.0, f64::max)
}

#[test]
fn lengths() {
    for time in [1, 15, 64, 65, 200] {
        for decay in DECAYS {
            Case { initial: time != 64, ..Case::new([2, time, 2, 16, 16], decay) }.check();
        }
    }
}

#[test]
fn head_sizes() {
    // Sizes that are multiples of 4 and others are different kernels, which software Vulkan takes seconds to compile:
    // their mixtures with one decay only.
    let sizes = [(1, 1), (3, 17), (17, 3), (64, 64), (128, 64), (64, 128), (256, 64), (64, 256)];
    for (key_dim, value_dim) in sizes {
        for decay in DECAYS {
            Case { initial: true, ..Case::new([1, 80, 2, key_dim, value_dim], decay) }.check();
        }
    }
    for (key_dim, value_dim) in [(17, 64), (128, 3)] {
        Case { initial: true, ..Case::new([1, 80, 2, key_dim, value_dim], DecayKind::PerKey) }.check();
    }
}

#[test]
fn packed_sequences() {
    for decay in DECAYS {
        for initial in [false, true] {
            let boundaries = Some(vec![0, 1, 64, 65, 193, 200]);
            Case { boundaries, initial, ..Case::new([1, 200, 2, 24, 40], decay) }.check();
        }
    }
}

#[test]
fn strong_decays_and_resets() {
    for forgetting in [Forgetting::Mixed, Forgetting::Resets] {
        for decay in [DecayKind::PerHead, DecayKind::PerKey] {
            for (key_dim, value_dim) in [(16, 16), (40, 72)] {
                let case = Case::new([1, 150, 2, key_dim, value_dim], decay);
                Case { forgetting, initial: true, ..case }.check();
            }
        }
    }
}
