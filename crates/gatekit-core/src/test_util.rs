//! What the unit tests share: devices, values made by formula, and gradients by finite differences.

use burn::tensor::{DType, Device, Tensor, TensorData};

/// The CPU devices that are compiled in.
#[allow(deprecated)] // NdArray is deprecated upstream and supported here.
pub(crate) fn devices() -> Vec<Device> {
    let devices = vec![
        #[cfg(feature = "ndarray")]
        Device::ndarray(),
        #[cfg(feature = "flex")]
        Device::flex(),
    ];
    assert!(!devices.is_empty(), "tests need the feature `ndarray` or `flex`");
    devices
}

/// All elements, in row-major order.
pub(crate) fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    tensor.into_data().iter::<f64>().collect()
}

/// A float32 tensor.
pub(crate) fn float32<const D: usize>(values: &[f64], shape: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape), (device, DType::F32))
}

/// A float64 tensor.
pub(crate) fn float64<const D: usize>(values: &[f64], shape: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape), (device, DType::F64))
}

/// `count` numbers between `-amplitude` and `amplitude`, without a pattern a layer could hide in.
pub(crate) fn ramp(count: usize, amplitude: f64) -> Vec<f64> {
    (0..count).map(|i| amplitude * (1.7 * i as f64 + 0.3 + 0.05 * amplitude).sin()).collect()
}

/// Asserts `|got - expected| <= tolerance * max(1, |expected|)` everywhere.
#[track_caller]
pub(crate) fn assert_close(got: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(got.len(), expected.len(), "number of values");
    for (index, (got, expected)) in got.iter().zip(expected).enumerate() {
        let error = (got - expected).abs();
        assert!(
            error <= tolerance * expected.abs().max(1.0),
            "value {index}: got {got}, expected {expected}"
        );
    }
}

/// Compares autodiff with central differences of `sum(function(x))`, in float64.
#[track_caller]
pub(crate) fn check_gradients<const D: usize, const E: usize>(
    x: &[f64],
    shape: [usize; D],
    device: &Device,
    function: impl Fn(Tensor<D>) -> Tensor<E>,
) {
    let input = float64(x, shape, &device.clone().autodiff()).require_grad();
    let gradients = function(input.clone()).sum().backward();
    let got = values(input.grad(&gradients).expect("the output depends on the input"));
    let at = |index: usize, offset: f64| {
        let mut moved = x.to_vec();
        moved[index] += offset;
        values(function(float64(&moved, shape, device)).sum())[0]
    };
    let expected: Vec<f64> = (0..x.len())
        .map(|index| {
            let step = 1e-5 * x[index].abs().max(1.0);
            (at(index, step) - at(index, -step)) / (2.0 * step)
        })
        .collect();
    assert_close(&got, &expected, 1e-7);
}

#[test]
#[cfg(feature = "flex")]
fn half_precision_is_tested_somewhere() {
    assert!(devices().iter().any(|device| device.supports_dtype(DType::F16)));
}
