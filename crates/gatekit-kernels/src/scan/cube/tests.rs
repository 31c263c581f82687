//! What the tests of the public scans rely on: that the test device has the kernels; and half precision.

use burn::{
    backend::ops::FloatTensorOps,
    tensor::{DType, TensorData},
};
use burn_cubecl::{
    CubeBackend, CubeDevice,
    kernel::cast,
    ops::{into_data_sync, numeric::zeros},
    tensor::CubeTensor,
};
use cubecl::ir::{
    ElemType, FloatKind,
    features::{MmaConfig, TypeUsage},
};

use super::{Blueprint, backward, blocks::UNITS, forward};
use crate::scan::{DecayKind, GradientOf, ScanArguments, ScanSpec, WriteKind};

fn blueprint(dtype: DType) -> Option<Blueprint> {
    Blueprint::new(&zeros(CubeDevice::default(), [1].into(), dtype))
}

/// Whether the device stores and converts this type.
fn supports(kind: FloatKind) -> bool {
    let usage = CubeDevice::default().client().properties().type_usage(ElemType::Float(kind));
    usage.contains(TypeUsage::Buffer) && usage.contains(TypeUsage::Conversion)
}

#[test]
fn the_default_device_has_kernels() {
    let blueprint = blueprint(DType::F32).expect("float32 kernels");
    assert_eq!(blueprint.operand, FloatKind::F32);
    assert_eq!(blueprint.planes, None, "float32 never goes through matrix units");
}

/// Reproducible numbers in `[-1, 1)`, multiples of 1/128 and so exact in half precision.
fn numbers(dims: [usize; 4], seed: usize, device: &CubeDevice) -> CubeTensor {
    let count = dims.iter().product::<usize>();
    let values: Vec<f32> =
        (0..count).map(|index| ((index * 97 + seed * 31) % 251) as f32 / 128.0 - 1.0).collect();
    let data = TensorData::new(values, dims);
    CubeBackend::float_from_data(data, device)
}

fn close(name: &str, got: CubeTensor, want: CubeTensor) {
    let values = |tensor: CubeTensor| -> Vec<f32> {
        into_data_sync(cast(tensor, DType::F32)).try_into_vec().expect("float32 values")
    };
    let (got, want) = (values(got), values(want));
    let typical = (want.iter().map(|x| x * x).sum::<f32>() / want.len() as f32).sqrt();
    for (index, (got, want)) in got.iter().zip(&want).enumerate() {
        // Half an ulp of a result rounded to 11 bits, and as much again for operands on matrix units.
        let bound = 2e-3 * (want.abs() + typical);
        assert!((got - want).abs() <= bound, "{name}[{index}]: {got}, not {want}");
    }
}

/// Float16 inputs give what float32 inputs of the same values do, rounded; final states stay in float32.
#[test]
fn half_precision_inputs() {
    assert_eq!(supports(FloatKind::F16), blueprint_of_f16().is_some(), "kernels wherever the type is");
    if !supports(FloatKind::F16) {
        return;
    }
    let device = CubeDevice::default();
    let (time, key_dim, value_dim) = (80, 20, 24);
    let arguments = |dtype: DType| {
        let input = |dim, seed| cast(numbers([1, time, 2, dim], seed, &device), dtype);
        let log_decay = numbers([1, time, 2, key_dim], 4, &device);
        ScanArguments::<CubeBackend> {
            q: input(key_dim, 1),
            k: input(key_dim, 2),
            v: input(value_dim, 3),
            // Mixed types are legal: log decays stay in float32.
            log_decay: CubeBackend::float_add_scalar(log_decay, (-1.0).into()),
            beta: cast(zeros(device.clone(), [1].into(), DType::F32), dtype),
            initial_state: numbers([1, 2, key_dim, value_dim], 5, &device),
        }
    };
    let spec = ScanSpec {
        scale: 0.25,
        decay: DecayKind::PerKey,
        write: WriteKind::Additive,
        has_initial_state: true,
        boundaries: None,
        chunk_size: 64,
        sub_chunk_size: 16,
        fused: true,
    };
    let run = |dtype: DType| {
        let (output, state) = forward(arguments(dtype), &spec);
        assert_eq!((output.dtype, state.dtype), (dtype, DType::F32));
        let gradient = cast(numbers([1, time, 2, value_dim], 6, &device), dtype);
        let gradients = backward(arguments(dtype), gradient, GradientOf::Output, &spec);
        assert_eq!((gradients.q.dtype, gradients.k.dtype, gradients.v.dtype), (dtype, dtype, dtype));
        assert_eq!((gradients.log_decay.dtype, gradients.initial_state.dtype), (DType::F32, DType::F32));
        [output, state, gradients.q, gradients.k, gradients.v, gradients.log_decay, gradients.initial_state]
    };
    let names = ["output", "final state", "dq", "dk", "dv", "dlog_decay", "dinitial"];
    for (name, (got, want)) in names.into_iter().zip(run(DType::F16).into_iter().zip(run(DType::F32))) {
        close(name, got, want);
    }
}

/// Whether the device lists matrix units with cubic fragments for half-precision operands and float32 sums.
fn lists_matrix_units(kind: FloatKind) -> bool {
    let client = CubeDevice::default().client();
    let fits = |config: &MmaConfig| {
        let types = [config.a_type, config.b_type, config.cd_type];
        let (m, n, k) = (config.m, config.n, config.k);
        types == [kind, kind, FloatKind::F32].map(ElemType::Float) && m == n && n == k && [8, 16].contains(&m)
    };
    client.features().matmul.cmma.iter().any(fits)
}

/// What the other tests of half precision then test.
#[test]
fn half_precision_takes_matrix_units() {
    let blueprint = blueprint_of_f16();
    let hardware = CubeDevice::default().client().properties().hardware.clone();
    if !lists_matrix_units(FloatKind::F16) || hardware.plane_size_min != hardware.plane_size_max {
        assert!(blueprint.is_none_or(|blueprint| blueprint.planes.is_none()), "{blueprint:?}");
        return;
    }
    let blueprint = blueprint.expect("kernels");
    let planes = blueprint.planes.expect("matrix units");
    assert_eq!(planes.count * hardware.plane_size_min as usize, UNITS);
    assert_eq!(blueprint.operand, FloatKind::F16);
}

/// Without making a tensor of a type that the device may not have.
fn blueprint_of_f16() -> Option<Blueprint> {
    let mut tensor = zeros(CubeDevice::default(), [1].into(), DType::F32);
    tensor.dtype = DType::F16;
    Blueprint::new(&tensor)
}
