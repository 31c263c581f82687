//! Gated associative memory: names, streaming, receptive field, padding, bad input.

mod equations;
mod input;
mod streaming;
#[path = "../support/streams.rs"]
mod streams;
#[path = "../support/mod.rs"]
mod support;

use burn::module::{Module, Param};
use burn::tensor::{Bool, Device, Int, Tensor, TensorData};
use gatekit_core::ModuleConfig;
use gatekit_sequence::checkpoint::{PretrainedConfig, named_gradients, named_parameters};
use gatekit_sequence::gated_associative_memory::{
    Fusion, GamBlock, GamBlockConfig, GamConfig, GamLm, GamMixer, GamMixerConfig, GamState,
};
use gatekit_sequence::generate::{GenerateConfig, GenerateError, generate};
use gatekit_sequence::lm::{CausalLm, StreamState, StreamingLm};
use gatekit_sequence::{load_pretrained, save_pretrained};
use proptest::prelude::*;
use serde_json::json;
use streams::{assert_streams, in_pieces};
use support::{assert_close, devices, enlivened, noise, tokens, values};

fn small() -> GamConfig {
    GamConfig::new(37, 12, 2).with_block_size(64).with_num_memory_slots(10).with_dropout(0.0)
}

/// Small models that together use every optional part.
fn models() -> Vec<GamConfig> {
    vec![
        small(),
        small().with_fusion(Fusion::Sum).with_conv_kernel_size(5),
        small().with_fusion(Fusion::Global),
        small().with_fusion(Fusion::Local).with_conv_kernel_size(2),
        // No history at all.
        GamConfig { num_layers: 1, ..small() }.with_conv_kernel_size(1).with_num_memory_slots(1),
    ]
}

fn lively(config: &GamConfig, device: &Device) -> GamLm {
    enlivened(config.init(device))
}

fn mixer(config: &GamMixerConfig, device: &Device) -> GamMixer {
    enlivened(config.init(device))
}

fn features(shape: [usize; 3], device: &Device) -> Tensor<3> {
    let mut state = 5;
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| noise(&mut state)).collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}
