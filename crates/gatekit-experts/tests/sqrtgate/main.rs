//! SqrtGate: the layer, steps on the sphere, every parameter's optimiser, rates, bad input.
#![cfg(all(feature = "ndarray", feature = "flex"))]
#![allow(missing_docs)]

mod input;
mod layer;
mod optimizer;
mod rates;
mod sphere;

use burn::module::{Module, Param};
use burn::nn::{Embedding, EmbeddingConfig, Linear, LinearConfig};
use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor, TensorData};
use gatekit_core::ModuleConfig;
use gatekit_core::norm::{RmsNorm, RmsNormConfig};
use gatekit_experts::sqrtgate::{SqrtGateConfig, SqrtGateMoe};

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

#[track_caller]
fn assert_close(got: &[f64], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len(), "number of values");
    for (index, (got, want)) in got.iter().zip(want).enumerate() {
        let error = (got - want).abs();
        assert!(error <= tolerance * want.abs().max(1.0), "value {index}: got {got}, want {want}");
    }
}

fn rms<const D: usize>(x: &Tensor<D>) -> f64 {
    x.clone().square().mean().sqrt().into_scalar::<f64>()
}

/// A small model with every kind of parameter.
#[derive(Module, Debug)]
struct Model {
    embed: Embedding,
    norm: RmsNorm,
    moe: SqrtGateMoe,
    head: Linear,
}

impl Model {
    fn new(device: &Device) -> Self {
        device.seed(5);
        let config = SqrtGateConfig::new(6).with_intermediate_size(Some(8)).with_sparsity(2).with_top_k(2);
        let model = Self {
            embed: EmbeddingConfig::new(7, 6).init(device),
            norm: RmsNormConfig::new(6).init(device),
            moe: config.init(device),
            head: LinearConfig::new(6, 7).with_bias(false).init(device),
        };
        model.materialize().train()
    }

    /// What it should fit, and its balancing loss.
    fn fit(&self) -> (Tensor<1>, Tensor<1>) {
        let device = self.norm.weight.val().device();
        let ids = Tensor::from_data([[0, 3, 5, 1, 2, 6], [4, 0, 2, 2, 1, 5]], &device);
        let output = self.moe.forward(self.norm.forward(self.embed.forward(ids)));
        (self.head.forward(output.y).square().mean(), output.aux_loss)
    }

    fn gradients(&self) -> GradientsParams {
        let (loss, balance) = self.fit();
        GradientsParams::from_grads((loss + balance).backward(), self)
    }
}
