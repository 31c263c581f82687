//! ImageBind-LLM: what the golden cases do not ask.
#![cfg(all(feature = "ndarray", feature = "flex"))]
#![allow(missing_docs)]

mod cache;
mod decoding;
mod input;
mod model;
mod training;

use burn::tensor::{Device, Int, Tensor, TensorData};
use gatekit_core::ModuleConfig;
use gatekit_core::gate::TanhGate;
use gatekit_fusion::imagebind_llm::{ImageBindLlm, ImageBindLlmConfig};

#[allow(deprecated)] // NdArray is one of the devices that are tested.
fn devices() -> [Device; 2] {
    [Device::flex(), Device::ndarray()]
}

/// Three layers of two heads, the last two injected.
fn config() -> ImageBindLlmConfig {
    ImageBindLlmConfig::new()
        .with_modality_dim(6)
        .with_d_model(8)
        .with_heads(2)
        .with_layers(3)
        .with_vocab(11)
        .with_ffn_hidden(12)
        .with_bind_hidden(Some(10))
        .with_query_layers(Some(2))
}

/// With gates that are open, each in its own way, and larger weights than at the start.
fn lively(config: &ImageBindLlmConfig, device: &Device) -> ImageBindLlm {
    device.seed(5);
    let mut model = config.init(device);
    let large = |weight: Tensor<2>| weight.mul_scalar(12.0);
    for (place, layer) in model.llama.layers.iter_mut().enumerate() {
        let maps = &mut layer.attention;
        for linear in [&mut maps.wq, &mut maps.wk, &mut maps.wv, &mut maps.wo] {
            linear.linear.weight = linear.linear.weight.clone().map(large);
        }
        if let Some(TanhGate { gate }) = &mut maps.gate {
            let logits = Tensor::<1>::from_data([0.4 + place as f64, -0.7], device);
            *gate = gate.clone().map(|_| logits);
        }
    }
    model.llama.output.weight = model.llama.output.weight.clone().map(large);
    model.llama.tok_embeddings.weight = model.llama.tok_embeddings.weight.clone().map(large);
    model
}

fn float<const D: usize>(values: &[f64], shape: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape), device)
}

/// Numbers between -1 and 1 without a pattern.
fn ramp<const D: usize>(shape: [usize; D], phase: f64, device: &Device) -> Tensor<D> {
    let count = shape.iter().product::<usize>();
    let values: Vec<f64> = (0..count).map(|i| (1.7 * i as f64 + phase).sin()).collect();
    float(&values, shape, device)
}

fn ids(rows: &[&[i64]], device: &Device) -> Tensor<2, Int> {
    Tensor::from_data(TensorData::new(rows.concat(), [rows.len(), rows[0].len()]), device)
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    tensor.into_data().iter::<f64>().collect()
}

#[track_caller]
fn assert_close<const D: usize>(got: Tensor<D>, want: Tensor<D>, tolerance: f64) {
    assert_eq!(got.dims(), want.dims());
    for (index, (got, want)) in values(got).into_iter().zip(values(want)).enumerate() {
        assert!((got - want).abs() <= tolerance * want.abs().max(1.0), "{index}: {got} instead of {want}");
    }
}
