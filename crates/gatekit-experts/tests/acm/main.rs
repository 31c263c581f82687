//! Adaptive computation modules beyond the golden cases.
#![cfg(all(feature = "ndarray", feature = "flex"))]
#![allow(missing_docs)]

mod bad_input;
mod execution;
mod losses;
mod phases;

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Device, Int, Tensor, TensorData};

/// The devices that every test runs on.
#[allow(deprecated, reason = "NdArray is supported as long as Burn has it")]
pub fn devices() -> [Device; 2] {
    [Device::ndarray(), Device::flex()]
}

pub fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    tensor.into_data().iter::<f64>().collect()
}

pub fn integers<const D: usize>(tensor: Tensor<D, Int>) -> Vec<i64> {
    tensor.into_data().iter::<i64>().collect()
}

/// Numbers without a pattern that a layer could hide in.
pub fn waves<const D: usize>(shape: [usize; D], phase: f64, device: &Device) -> Tensor<D> {
    let count = shape.iter().product::<usize>();
    let values: Vec<f64> = (0..count).map(|i| (1.7 * i as f64 + phase).sin()).collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}

pub fn choice<const D: usize>(values: &[i64], shape: [usize; D], device: &Device) -> Tensor<D, Int> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape), device)
}

#[track_caller]
pub fn close(got: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(got.len(), expected.len(), "number of values");
    for (index, (got, expected)) in got.iter().zip(expected).enumerate() {
        let error = (got - expected).abs();
        assert!(
            error <= tolerance * expected.abs().max(1.0),
            "value {index}: got {got}, expected {expected}"
        );
    }
}

/// Every float parameter a wave of its own, so that biases matter and nothing is symmetric.
pub fn lively<M: Module>(model: M) -> M {
    struct Waves(f64);
    impl ModuleMapper for Waves {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            self.0 += 0.7;
            param.map(|tensor| {
                let new = waves(tensor.dims(), self.0, &tensor.device()).mul_scalar(0.6);
                if tensor.is_require_grad() { new.require_grad() } else { new }
            })
        }
    }
    model.map(&mut Waves(0.0))
}
