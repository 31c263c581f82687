//! MixER: experts and gate against plain forms, solvers, refits, training, adaptation, bad input.
#![cfg(all(feature = "ndarray", feature = "flex"))]
#![allow(missing_docs)]

mod fields;
mod gate;
mod input;
mod solvers;
mod training;

use burn::module::Module;
use burn::tensor::{Device, Distribution, Tensor, TensorData};
use gatekit_core::ModuleConfig;
use gatekit_experts::mixer_experts::{MetaLearner, MixerExpert, MixerField, MixerFieldConfig};

#[allow(deprecated, reason = "NdArray is supported as long as Burn has it")]
pub fn devices() -> [Device; 2] {
    [Device::ndarray(), Device::flex()]
}

pub fn values<const D: usize>(tensor: &Tensor<D>) -> Vec<f64> {
    tensor.to_data().iter::<f64>().collect()
}

#[track_caller]
pub fn close(got: &[f64], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len());
    for (got, want) in got.iter().zip(want) {
        assert!((got - want).abs() <= tolerance * want.abs().max(1.0), "{got}, want {want}");
    }
}

pub fn tensor<const D: usize>(values: &[f64], shape: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape), device)
}

pub fn drawn<const D: usize>(shape: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::random(shape, Distribution::Normal(0.0, 1.0), device)
}

pub fn small(experts: usize, meta_learner: MetaLearner) -> MixerFieldConfig {
    MixerFieldConfig::new(experts, 2 * experts).with_width(5).with_meta_learner(meta_learner)
}

/// A field with shifts that are not 0.
pub fn lively(config: &MixerFieldConfig, device: &Device) -> MixerField<MixerExpert> {
    device.seed(3);
    let mut field = config.init(device).materialize();
    for (index, expert) in field.experts.iter_mut().enumerate() {
        let shift = match expert {
            MixerExpert::Geps(expert) => &mut expert.ctx_shift,
            MixerExpert::Coda(expert) => &mut expert.ctx_shift,
        };
        *shift = shift.take().map(|shift| shift.map(|shift| shift.add_scalar(0.1 * (index as f64 + 1.0))));
    }
    field
}
