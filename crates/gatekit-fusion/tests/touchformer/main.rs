//! TouchFormer: what the golden cases do not ask.
#![cfg(all(feature = "ndarray", feature = "flex"))]
#![allow(missing_docs)]

mod augment;
mod input;
mod loss;
mod network;
mod training;

use burn::tensor::{Bool, Device, Tensor, TensorData};
use gatekit_fusion::touchformer::TouchFormerConfig;

#[allow(deprecated)] // NdArray is one of the devices that are tested.
fn devices() -> [Device; 2] {
    [Device::flex(), Device::ndarray()]
}

/// Three sensors of unlike width, no dropout.
fn small() -> TouchFormerConfig {
    TouchFormerConfig::new(vec![3, 2, 5], 4)
        .with_dim(6)
        .with_num_heads(2)
        .with_layers(1)
        .with_memory_layers(1)
        .with_attn_dropout(0.0)
        .with_relu_dropout(0.0)
        .with_res_dropout(0.0)
        .with_embed_dropout(0.0)
        .with_out_dropout(0.0)
}

/// Numbers in (-1, 1) without a pattern.
fn waves<const D: usize>(shape: [usize; D], phase: f64, device: &Device) -> Tensor<D> {
    let count: usize = shape.iter().product();
    let values: Vec<f64> = (0..count).map(|i| (1.7 * i as f64 + 0.3 + phase).sin()).collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}

fn mask(rows: &[&[bool]], device: &Device) -> Tensor<2, Bool> {
    Tensor::from_data(TensorData::new(rows.concat(), [rows.len(), rows[0].len()]), device)
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    tensor.into_data().iter::<f64>().collect()
}

#[track_caller]
fn assert_close(got: &[f64], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len());
    for (index, (got, want)) in got.iter().zip(want).enumerate() {
        assert!((got - want).abs() <= tolerance * want.abs().max(1.0), "{index}: got {got}, want {want}");
    }
}
