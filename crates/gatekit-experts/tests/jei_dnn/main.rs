//! JEI-DNN: stopping for real, losses, training in turns, calibration, bad input.
#![cfg(all(feature = "ndarray", feature = "flex"))]
#![allow(missing_docs)]

mod input;
mod losses;
mod network;
mod training;

use std::sync::Mutex;

use burn::tensor::{Device, Int, Tensor, TensorData};
use gatekit_core::ModuleConfig;
use gatekit_experts::jei_dnn::{EarlyExits, JeiDnnConfig, StagedBackbone};

#[allow(deprecated, reason = "NdArray is supported as long as Burn has it")]
fn devices() -> [Device; 2] {
    [Device::ndarray(), Device::flex()]
}

const EXITS: usize = 3;
const WIDTH: usize = 4;
const CLASSES: usize = 3;

fn config() -> JeiDnnConfig {
    JeiDnnConfig::new(EXITS, WIDTH, CLASSES, vec![0.25, 0.5, 0.75, 1.0])
}

/// Numbers in (-amplitude, amplitude) without a pattern.
fn ramp(count: usize, amplitude: f64) -> Vec<f64> {
    (0..count).map(|i| amplitude * (1.7 * i as f64 * (1.0 + 0.01 * i as f64) + 0.3).sin()).collect()
}

fn float<const D: usize>(values: &[f64], shape: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape), device)
}

fn labels(values: &[i64], device: &Device) -> Tensor<1, Int> {
    Tensor::from_data(TensorData::new(values.to_vec(), [values.len()]), device)
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    tensor.into_data().iter::<f64>().collect()
}

#[track_caller]
fn assert_close(got: &[f64], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len());
    for (place, (got, want)) in got.iter().zip(want).enumerate() {
        assert!((got - want).abs() <= tolerance * want.abs().max(1.0), "value {place}: {got}, not {want}");
    }
}

/// Exits with heads and gates that differ, so that samples spread over them.
fn lively(config: &JeiDnnConfig, device: &Device) -> EarlyExits {
    use burn::module::Param;
    let mut exits = config.init(device);
    let (width, classes) = (config.embed_dim, config.num_classes);
    for (number, head) in exits.intermediate_heads.iter_mut().chain([&mut exits.head]).enumerate() {
        let weights = ramp((number + 1) * width * classes, 1.5).split_off(number * width * classes);
        head.weight = Param::from_tensor(float(&weights, [width, classes], device));
    }
    for (number, gate) in exits.gates.iter_mut().enumerate() {
        let weights = [1.2 - 0.3 * number as f64, -0.9, 1.0, -0.7];
        gate.linear.weight = Param::from_tensor(float(&weights, [4, 1], device));
        gate.linear.bias = Some(Param::from_tensor(float(&[-0.6 + 0.3 * number as f64], [1], device)));
    }
    exits
}

/// Rotates its features at every stage and remembers how many rows each stage computed.
struct Counting {
    stages: usize,
    rows: Mutex<Vec<usize>>,
}

impl Counting {
    fn new(stages: usize) -> Self {
        Self { stages, rows: Mutex::new(vec![0; stages]) }
    }
}

impl StagedBackbone for Counting {
    type Hidden = Tensor<2>;

    fn stages(&self) -> usize {
        self.stages
    }

    fn stage(&self, index: usize, x: Tensor<2>) -> Tensor<2> {
        let [rows, width] = x.dims();
        self.rows.lock().unwrap()[index] += rows;
        let rest = x.clone().narrow(1, 1, width - 1);
        Tensor::cat(vec![rest, x.narrow(1, 0, 1) * 1.3 + 0.1], 1)
    }

    fn readout(&self, _index: usize, x: &Tensor<2>) -> Tensor<2> {
        x.clone().tanh()
    }

    fn cost(&self, index: usize) -> f64 {
        if index == 0 { 3.0 } else { 1.0 }
    }
}
