//! Irregular records: what the golden cases do not ask.
#![cfg(all(feature = "ndarray", feature = "flex"))]
#![allow(missing_docs)]

mod embedding;
mod fusion;
mod grid;
mod input;
mod training;

use burn::tensor::{Bool, Device, Tensor, TensorData};
use gatekit_core::ModuleConfig;
use gatekit_fusion::irregular_ehr::{
    BagOfWords, BagOfWordsConfig, IrregularEhrConfig, Note, Stay, StayLoader,
};

#[allow(deprecated)] // NdArray is one of the devices that are tested.
pub fn devices() -> [Device; 2] {
    [Device::flex(), Device::ndarray()]
}

pub fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    tensor.into_data().iter::<f64>().collect()
}

pub fn tensor<const D: usize>(values: &[f64], shape: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape), device)
}

pub fn mask<const D: usize>(values: &[bool], shape: [usize; D], device: &Device) -> Tensor<D, Bool> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape), device)
}

pub fn ramp(count: usize, amplitude: f64) -> Vec<f64> {
    (0..count).map(|i| amplitude * (1.7 * i as f64 + 0.3).sin()).collect()
}

#[track_caller]
pub fn assert_close(got: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(got.len(), expected.len(), "number of values");
    for (index, (got, expected)) in got.iter().zip(expected).enumerate() {
        assert!((got - expected).abs() <= tolerance, "value {index}: got {got}, expected {expected}");
    }
}

/// Two channels, six hours, one layer; nothing is dropped.
pub fn small() -> IrregularEhrConfig {
    IrregularEhrConfig::new()
        .with_d_in(2)
        .with_grid(6)
        .with_embed_time(8)
        .with_time_heads(2)
        .with_d_model(8)
        .with_heads(2)
        .with_cross_layers(1)
        .with_note_dim(4)
        .with_dropout(0.0)
}

pub fn words(device: &Device) -> BagOfWords {
    let vocabulary = ["calm", "stable", "worse", "grave"].map(String::from).to_vec();
    BagOfWordsConfig::new(vocabulary, 4).init(device)
}

pub fn loader(config: &IrregularEhrConfig) -> StayLoader {
    StayLoader::new(config).expect("a loader")
}

/// A stay of three rows and two notes; its label is whether `severity` is above 0.
pub fn stay(patient: u64, severity: f64) -> Stay {
    let shift = (patient % 7) as f64 / 10.0;
    let word = if severity > 0.0 { "grave, worse" } else { "calm; STABLE" };
    Stay {
        patient,
        hours: vec![0.5 + shift, 2.0 + shift, 4.5],
        values: vec![0.1, f32::NAN, severity as f32, 0.3, f32::NAN, severity as f32],
        mask: vec![true, false, true, true, false, true],
        notes: vec![
            Note { hour: 1.0, text: "unremarkable".into() },
            Note { hour: 3.0 + shift, text: word.into() },
        ],
        labels: vec![u8::from(severity > 0.0)],
    }
}

pub fn panic_of(run: impl FnOnce()) -> String {
    let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).expect_err("it panics");
    panic
        .downcast_ref::<String>()
        .cloned()
        .unwrap_or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string).expect("a text"))
}
