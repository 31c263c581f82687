//! FPro: what the golden cases do not ask.
#![cfg(all(feature = "ndarray", feature = "flex"))]
#![allow(missing_docs)]

mod network;
mod parts;
mod training;

use burn::tensor::{Device, Distribution, Tensor};
use gatekit_fusion::fpro::FProConfig;

#[allow(deprecated)] // NdArray is one of the devices that are tested.
fn devices() -> [Device; 2] {
    [Device::flex(), Device::ndarray()]
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    tensor.into_data().iter::<f64>().collect()
}

fn noise<const D: usize>(shape: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::random(shape, Distribution::Uniform(0.0, 1.0), device)
}

#[track_caller]
fn assert_close(got: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(got.len(), expected.len());
    for (at, (got, expected)) in got.iter().zip(expected).enumerate() {
        let bound = tolerance * expected.abs().max(1.0);
        assert!((got - expected).abs() <= bound, "{at}: {got} instead of {expected}");
    }
}

fn small() -> FProConfig {
    FProConfig::new()
        .with_dim(4)
        .with_num_blocks([1, 1, 1])
        .with_num_refinement_blocks(1)
        .with_heads([1, 2, 2])
        .with_ffn_expansion_factor(1.5)
        .with_image_size(8)
        .with_window_size(2)
        .with_filter_groups(2)
}
