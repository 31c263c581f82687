//! Half precision: every operation computes as in float32 and rounds its results once, to the type each is stored in.
//!
//! The inputs are exact in half precision, so the float32 run sees the same numbers and its results, rounded, must be
//! those of the half-precision run to the last bit.
#![cfg(feature = "flex")]
// Burn marks its `NdArray` backend as deprecated; this library supports it.
#![allow(missing_docs, deprecated)]

mod support;

use burn::tensor::{DType, Device, Gradients, Tensor, TensorData};
use gatekit_kernels::{
    conv::short_convolution,
    gate::{Activation, gated_product, log_sigmoid_scaled},
    norm::rms_norm,
    scan::{DecayKind, ScanSpec, StepSpec, WriteKind, matrix_scan, matrix_scan_step},
};
use support::Numbers;

/// The types of the main inputs, and of those that may stay in float32 beside them.
#[derive(Clone, Copy, Debug)]
struct Types {
    main: DType,
    other: DType,
}

/// Draws tensors whose numbers are exact in every type.
struct Inputs {
    numbers: Numbers,
    device: Device,
}

impl Inputs {
    fn new(device: &Device) -> Self {
        Self { numbers: Numbers(5), device: device.clone() }
    }

    /// Numbers between -1 and 1 with seven binary digits.
    fn tensor<const D: usize>(&mut self, dims: [usize; D], dtype: DType) -> Tensor<D> {
        let count = dims.iter().product();
        let values: Vec<f64> = self.numbers.many(count).iter().map(|x| (x * 64.0).round() / 64.0).collect();
        Tensor::from_data(TensorData::new(values, dims), (&self.device, dtype))
    }

    fn leaf<const D: usize>(&mut self, dims: [usize; D], dtype: DType) -> Tensor<D> {
        self.tensor(dims, dtype).require_grad()
    }
}

/// Results by name, with the type each must have.
type Results = Vec<(&'static str, TensorData, DType)>;

/// The gradients of a result weighted with numbers that are exact in every type.
fn backward<const D: usize>(result: &Tensor<D>, inputs: &mut Inputs) -> Gradients {
    let weights = inputs.tensor(result.dims(), result.dtype());
    (result.clone() * weights).sum().backward()
}

fn gradient<const D: usize>(
    name: &'static str,
    x: &Tensor<D>,
    gradients: &Gradients,
) -> (&'static str, TensorData, DType) {
    (name, x.grad(gradients).expect("a gradient of every argument").into_data(), x.dtype())
}

/// Runs with all inputs in half precision, with the others in float32, and all in float32.
fn check(operation: impl Fn(&Device, Types) -> Results) {
    let device = Device::flex().autodiff();
    let wide = operation(&device, Types { main: DType::F32, other: DType::F32 });
    for main in [DType::BF16, DType::F16] {
        for other in [main, DType::F32] {
            let types = Types { main, other };
            let results = operation(&device, types);
            assert_eq!(results.len(), wide.len());
            for ((name, got, dtype), (_, want, _)) in results.into_iter().zip(&wide) {
                assert_eq!(got.dtype(), dtype, "{name}, {types:?}");
                assert!(want.iter::<f64>().any(|x| x != 0.0), "{name} is all zeros");
                assert_eq!(got, want.clone().convert_dtype(dtype), "{name}, {types:?}");
            }
        }
    }
}

fn scan(decay: DecayKind, write: WriteKind, fused: bool, of_state: bool) {
    check(|device, types| {
        let mut inputs = Inputs::new(device);
        let (dims, states) = ([2, 37, 2, 5], [2, 2, 5, 6]);
        let q = inputs.leaf(dims, types.main);
        let k = (inputs.tensor::<4>(dims, types.main) * 0.5).detach().require_grad();
        let v = inputs.leaf([2, 37, 2, 6], types.main);
        let decay_dims = [2, 37, 2, if decay == DecayKind::PerHead { 1 } else { 5 }];
        let log_decay = (decay != DecayKind::None)
            .then(|| inputs.tensor::<4>(decay_dims, types.other).abs().neg().detach().require_grad());
        let beta = (write == WriteKind::Delta)
            .then(|| inputs.tensor::<3>([2, 37, 2], types.other).abs().detach().require_grad());
        let initial = inputs.leaf(states, types.other);
        let spec = ScanSpec {
            scale: 0.5,
            decay,
            write,
            has_initial_state: true,
            boundaries: None,
            chunk_size: 16,
            sub_chunk_size: 4,
            fused,
        };
        let (output, state) = matrix_scan(
            q.clone(),
            k.clone(),
            v.clone(),
            log_decay.clone(),
            beta.clone(),
            Some(initial.clone()),
            spec,
        );
        let gradients = if of_state { backward(&state, &mut inputs) } else { backward(&output, &mut inputs) };
        let mut results = vec![
            ("output", output.into_data(), types.main),
            ("state", state.into_data(), DType::F32),
            gradient("k", &k, &gradients),
            gradient("v", &v, &gradients),
            gradient("initial state", &initial, &gradients),
        ];
        if !of_state {
            results.push(gradient("q", &q, &gradients));
        }
        results.extend(log_decay.map(|x| gradient("log decay", &x, &gradients)));
        results.extend(beta.map(|x| gradient("beta", &x, &gradients)));
        results
    });
}

#[test]
fn scans() {
    for decay in [DecayKind::None, DecayKind::PerHead, DecayKind::PerKey] {
        for write in [WriteKind::Additive, WriteKind::Delta] {
            for fused in [true, false] {
                scan(decay, write, fused, false);
                scan(decay, write, fused, true);
            }
        }
    }
}

#[test]
fn steps() {
    for (decay, write) in [(DecayKind::PerKey, WriteKind::Additive), (DecayKind::PerHead, WriteKind::Delta)] {
        for fused in [true, false] {
            check(|device, types| {
                // A step is differentiated by Burn: the fused kernel runs where nothing is.
                let mut inputs = Inputs::new(&device.clone().inner());
                let dims = [2, 3, 5];
                let (q, k) = (inputs.tensor(dims, types.main), inputs.tensor(dims, types.main));
                let v = inputs.tensor([2, 3, 6], types.main);
                let decay_dims = [2, 3, if decay == DecayKind::PerHead { 1 } else { 5 }];
                let log_decay = inputs.tensor::<3>(decay_dims, types.other).abs().neg();
                let beta = inputs.tensor::<2>([2, 3], types.other).abs();
                let state = inputs.tensor([2, 3, 5, 6], types.other);
                let beta = (write == WriteKind::Delta).then_some(beta);
                let spec = StepSpec { scale: 0.5, decay, write, fused };
                let (output, state) = matrix_scan_step(q, k, v, Some(log_decay), beta, state, spec);
                vec![("output", output.into_data(), types.main), ("state", state.into_data(), DType::F32)]
            });
        }
    }
}

#[test]
fn gates() {
    for activation in [Activation::Sigmoid, Activation::Swish, Activation::Relu] {
        check(|device, types| {
            let mut inputs = Inputs::new(device);
            let x = inputs.leaf([7, 19], types.main);
            let logits = inputs.leaf([7, 19], types.other);
            let y = gated_product(x.clone(), logits.clone(), activation);
            let gradients = backward(&y, &mut inputs);
            vec![
                ("y", y.into_data(), types.main),
                gradient("x", &x, &gradients),
                gradient("logits", &logits, &gradients),
            ]
        });
    }
    for floor in [None, Some(-0.06)] {
        check(|device, types| {
            let mut inputs = Inputs::new(device);
            let logits = inputs.leaf([7, 19], types.main);
            let y = log_sigmoid_scaled(logits.clone(), 16.0, floor);
            let gradients = backward(&y, &mut inputs);
            vec![("y", y.into_data(), types.main), gradient("logits", &logits, &gradients)]
        });
    }
}

#[test]
fn norms() {
    for gate in [None, Some(Activation::Swish)] {
        check(|device, types| {
            let mut inputs = Inputs::new(device);
            let x = inputs.leaf([3, 5, 24], types.main);
            let weight = inputs.leaf([24], types.other);
            let logits = inputs.leaf([3, 5, 24], types.other);
            let given = gate.map(|activation| (logits.clone(), activation));
            let y = rms_norm(x.clone(), weight.clone(), 1e-3, given);
            let gradients = backward(&y, &mut inputs);
            let mut results = vec![
                ("y", y.into_data(), types.main),
                gradient("x", &x, &gradients),
                gradient("weight", &weight, &gradients),
            ];
            results.extend(gate.map(|_| gradient("logits", &logits, &gradients)));
            results
        });
    }
}

#[test]
fn convolutions() {
    for silu in [false, true] {
        check(|device, types| {
            let mut inputs = Inputs::new(device);
            let x = inputs.leaf([2, 9, 6], types.main);
            let weight = inputs.leaf([6, 4], types.other);
            let bias = inputs.leaf([6], types.other);
            let state = inputs.leaf([2, 3, 6], types.other);
            let y = short_convolution(
                x.clone(),
                weight.clone(),
                Some(bias.clone()),
                Some(state.clone()),
                None,
                silu,
            );
            let gradients = backward(&y, &mut inputs);
            vec![
                ("y", y.into_data(), types.main),
                gradient("x", &x, &gradients),
                gradient("weight", &weight, &gradients),
                gradient("bias", &bias, &gradients),
                gradient("state", &state, &gradients),
            ]
        });
    }
}

#[test]
#[should_panic(expected = "rms_norm computes in F32 for inputs in BF16, another tensor is in F64")]
fn wider_tensors_than_the_sums_are_refused() {
    let device = Device::flex();
    let mut inputs = Inputs::new(&device);
    let _ = rms_norm(inputs.tensor([2, 4], DType::BF16), inputs.tensor([4], DType::F64), 1e-5, None);
}
