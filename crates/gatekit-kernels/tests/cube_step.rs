//! The step as a CubeCL kernel against the portable form in float64.
#![cfg(all(feature = "wgpu", feature = "ndarray"))]
// Burn marks its `NdArray` backend as deprecated; this library supports it.
#![allow(missing_docs, deprecated)]

mod support;

use burn::tensor::{DType, Device, DeviceKind, Tensor};
use gatekit_kernels::scan::{DecayKind, StepSpec, WriteKind, matrix_scan_step};
use support::{Numbers, close, tensor, values};

/// Inputs `q, k, v, log decay, beta, state`.
struct Case {
    dims: [usize; 4],
    spec: StepSpec,
    inputs: [Vec<f64>; 6],
}

impl Case {
    fn new(dims: [usize; 4], decay: DecayKind, write: WriteKind) -> Self {
        let [batch, heads, key_dim, value_dim] = dims;
        let (mut numbers, rows) = (Numbers(dims.iter().sum::<usize>() as u64), batch * heads);
        let decays = match decay {
            DecayKind::PerKey => key_dim,
            _ => 1,
        };
        let inputs = [
            numbers.many(rows * key_dim),
            numbers.many(rows * key_dim).into_iter().map(|x| x / (key_dim as f64).sqrt()).collect(),
            numbers.many(rows * value_dim),
            numbers.many(rows * decays).into_iter().map(|x| f64::from((-(3.0 * x).exp()) as f32)).collect(),
            numbers.many(rows).into_iter().map(|x| 0.5 * (x + 1.0)).collect(),
            numbers.many(rows * key_dim * value_dim),
        ]
        .map(|values: Vec<f64>| values.into_iter().map(|x| f64::from(x as f32)).collect());
        Self { dims, spec: StepSpec { scale: 0.7, decay, write, fused: true }, inputs }
    }

    /// Output and state.
    fn run(&self, device: &Device, dtype: DType) -> (Tensor<3>, Tensor<4>) {
        let [batch, heads, key_dim, value_dim] = self.dims;
        let [q, k, v, log_decay, beta, state] = &self.inputs;
        let decays = log_decay.len() / (batch * heads);
        let state_dtype = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
        matrix_scan_step(
            tensor(q, [batch, heads, key_dim], device, dtype),
            tensor(k, [batch, heads, key_dim], device, dtype),
            tensor(v, [batch, heads, value_dim], device, dtype),
            (self.spec.decay != DecayKind::None)
                .then(|| tensor(log_decay, [batch, heads, decays], device, state_dtype)),
            (self.spec.write == WriteKind::Delta).then(|| tensor(beta, [batch, heads], device, dtype)),
            tensor(state, [batch, heads, key_dim, value_dim], device, state_dtype),
            self.spec,
        )
    }

    #[track_caller]
    fn check(&self, dtype: DType, tolerance: f64) {
        let (output, state) = self.run(&gpu(), dtype);
        assert_eq!((output.dtype(), state.dtype()), (dtype, DType::F32));
        let (expected_output, expected_state) = self.run(&Device::ndarray(), DType::F64);
        close("output", &values(&output), &values(&expected_output), tolerance);
        close("state", &values(&state), &values(&expected_state), tolerance);
    }
}

fn gpu() -> Device {
    Device::wgpu(DeviceKind::DefaultDevice)
}

const DECAYS: [DecayKind; 3] = [DecayKind::None, DecayKind::PerHead, DecayKind::PerKey];
const WRITES: [WriteKind; 2] = [WriteKind::Additive, WriteKind::Delta];

#[test]
fn equals_the_portable_form() {
    for dims in
        [[2, 3, 64, 64], [1, 2, 128, 256], [1, 1, 256, 17], [3, 1, 17, 3], [1, 2, 3, 130], [1, 1, 1, 1]]
    {
        for decay in DECAYS {
            for write in WRITES {
                Case::new(dims, decay, write).check(DType::F32, 2e-6);
            }
        }
    }
}

#[test]
fn resets_and_extreme_strengths() {
    for decay in [DecayKind::PerHead, DecayKind::PerKey] {
        for write in WRITES {
            let mut case = Case::new([1, 4, 16, 8], decay, write);
            for (place, x) in case.inputs[3].iter_mut().enumerate() {
                *x = [f64::NEG_INFINITY, -1e4, 0.0, -1e-30][place % 4];
            }
            case.inputs[4] = vec![0.0, 1.0, 0.0, 1.0];
            case.check(DType::F32, 2e-6);
        }
    }
}

#[test]
fn half_precision_is_read_where_it_is_stored() {
    if !gpu().supports_dtype(DType::F16) {
        println!("this device has no float16");
        return;
    }
    for write in WRITES {
        let mut case = Case::new([2, 2, 64, 32], DecayKind::PerKey, write);
        for index in [0, 1, 2, 4] {
            // Exact in float16, so that only the output is rounded.
            case.inputs[index].iter_mut().for_each(|x| *x = (*x * 256.0).round() / 256.0);
        }
        case.check(DType::F16, 1e-3);
    }
}

/// The same numbers whether or not the state's memory may be written into, and no write into memory
/// that something else holds.
#[test]
fn a_shared_state_is_left_alone() {
    let device = gpu();
    let shared: Tensor<4> = tensor(&Numbers(1).many(2 * 8 * 12), [1, 2, 8, 12], &device, DType::F32);
    let before = values(&shared);
    let vector = |width, seed| -> Tensor<3> {
        tensor(&Numbers(seed).many(2 * width), [1, 2, width], &device, DType::F32)
    };
    let beta = || -> Tensor<2> { tensor(&[0.5, 0.25], [1, 2], &device, DType::F32) };
    let spec = StepSpec { scale: 1.0, decay: DecayKind::None, write: WriteKind::Delta, fused: true };
    let step =
        |state| matrix_scan_step(vector(8, 2), vector(8, 3), vector(12, 4), None, Some(beta()), state, spec);
    let (output, state) = step(shared.clone());
    assert_eq!(values(&shared), before);
    let (output_in_place, state_in_place) = step(shared);
    assert_eq!(values(&output), values(&output_in_place));
    assert_eq!(values(&state), values(&state_in_place));
}
