//! THOR: experts and assignments, loss, model, decoding, training, bad input.
#![cfg(all(feature = "ndarray", feature = "flex"))]
#![allow(missing_docs)]

mod experts;
mod input;
mod loss;
mod model;
mod training;

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Device, Int, Tensor, TensorData};
use gatekit_core::ModuleConfig;
use gatekit_experts::thor::{
    ExpertAssignment, ExpertDraw, ExpertLevel, StochasticExpertsConfig, StochasticFfn, ThorConfig, ThorModel,
};

const LEVELS: [ExpertLevel; 3] = [ExpertLevel::Pass, ExpertLevel::Sentence, ExpertLevel::Token];

#[allow(deprecated)] // NdArray is deprecated upstream and supported here.
fn devices() -> [Device; 2] {
    [Device::ndarray(), Device::flex()]
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    tensor.into_data().iter::<f64>().collect()
}

fn wave<const D: usize>(shape: [usize; D], amplitude: f64, device: &Device) -> Tensor<D> {
    let values: Vec<f64> = (0..shape.iter().product::<usize>())
        .map(|i| amplitude * (1.7 * i as f64 + 0.3 + 0.05 * amplitude).sin())
        .collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}

fn ids(rows: &[&[i64]], device: &Device) -> Tensor<2, Int> {
    let values: Vec<i64> = rows.concat();
    Tensor::from_data(TensorData::new(values, [rows.len(), rows[0].len()]), device)
}

#[track_caller]
fn assert_close(got: &[f64], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len(), "number of values");
    for (index, (got, want)) in got.iter().zip(want).enumerate() {
        let error = (got - want).abs();
        assert!(error <= tolerance * want.abs().max(1.0), "value {index}: got {got}, want {want}");
    }
}

/// Biases start at 0 and norms at 1; this moves every parameter a little.
struct Enliven(f64);

impl ModuleMapper for Enliven {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        self.0 += 0.37;
        let phase = self.0;
        param.map(|value| {
            let shape = value.dims();
            let device = value.device();
            value + wave(shape, 0.2 + 0.01 * phase.sin(), &device)
        })
    }
}

fn enlivened<M: Module>(module: M) -> M {
    module.map(&mut Enliven(0.0))
}

fn ffn(experts: usize, device: &Device) -> StochasticFfn {
    enlivened(StochasticExpertsConfig::new(6, 9).with_num_experts(experts).init(device))
}

/// Two layers a side, of which the lower has 4 experts.
fn small() -> ThorConfig {
    ThorConfig::new(13)
        .with_embed_dim(8)
        .with_ffn_dim(12)
        .with_num_heads(2)
        .with_num_experts(4)
        .with_encoder_layers(2)
        .with_decoder_layers(3)
        .with_dropout(0.0)
}

fn lively(config: &ThorConfig, device: &Device) -> ThorModel {
    enlivened(config.init(device))
}

fn draw(level: ExpertLevel, seed: u64) -> ExpertDraw {
    ExpertDraw::new(4, level, seed).unwrap()
}
