//! Two views: what the golden cases do not ask.
#![cfg(all(feature = "ndarray", feature = "flex"))]
#![allow(missing_docs)]

mod detector;
mod fusion;
mod rates;
mod spectral;

use std::f64::consts::TAU;

use burn::tensor::{Device, Tensor, TensorData};
use gatekit_fusion::two_views::{SpectralConfig, SpectralKind};

#[allow(deprecated)] // NdArray is one of the devices that are tested.
pub(crate) fn devices() -> [Device; 2] {
    [Device::flex(), Device::ndarray()]
}

pub(crate) fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    tensor.into_data().iter::<f64>().collect()
}

pub(crate) fn tensor<const D: usize>(values: &[f64], shape: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape), device)
}

/// Numbers without a pattern that a layer could hide in.
pub(crate) fn ramp<const D: usize>(shape: [usize; D], scale: f64, device: &Device) -> Tensor<D> {
    let count = shape.iter().product();
    let numbers: Vec<f64> = (0..count).map(|i| scale * (1.7 * i as f64 + 0.3).sin()).collect();
    tensor(&numbers, shape, device)
}

#[track_caller]
pub(crate) fn assert_close(got: &[f64], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len(), "number of values");
    for (place, (got, want)) in got.iter().zip(want).enumerate() {
        let error = (got - want).abs();
        assert!(error <= tolerance * want.abs().max(1.0), "value {place}: got {got}, want {want}");
    }
}

pub(crate) fn wave(length: usize) -> Vec<f64> {
    let sample = |n: usize| {
        let t = n as f64 / 16000.0;
        0.4 * (TAU * 440.0 * t).sin()
            + 0.1 * (TAU * 3100.0 * t + 1.0).sin()
            + 0.01 * (n as f64 * n as f64).sin()
    };
    (0..length).map(sample).collect()
}

pub(crate) fn small(kind: SpectralKind) -> SpectralConfig {
    SpectralConfig::new()
        .with_kind(kind)
        .with_n_fft(32)
        .with_filters(Some(9))
        .with_coefficients(5)
        .with_f_min(500.0)
        .with_bins_per_octave(3)
        .with_resample_points(7)
}
