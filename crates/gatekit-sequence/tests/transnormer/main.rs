//! TransNormerLLM: names, streaming, padding, extremes, bad input.

mod equations;
mod input;
mod streaming;
#[path = "../support/streams.rs"]
mod streams;
#[path = "../support/mod.rs"]
mod support;

use burn::module::Module;
use burn::tensor::{Bool, Device, Int, Tensor, TensorData};
use gatekit_core::ModuleConfig;
use gatekit_core::scan::ScanForm;
use gatekit_sequence::checkpoint::{PretrainedConfig, named_gradients, named_parameters};
use gatekit_sequence::lm::{CausalLm, StreamState, StreamingLm};
use gatekit_sequence::transnormer::{
    DecaySchedule, NormLinearAttention, NormLinearAttentionConfig, NormLinearAttentionState,
    TransNormerConfig, TransNormerLayerConfig, TransNormerLlm, TransNormerState, slope_rates,
};
use gatekit_sequence::{load_pretrained, save_pretrained};
use proptest::prelude::*;
use serde_json::{Value, json};
use streams::{assert_streams, in_pieces};
use support::{assert_close, devices, enlivened, noise, tokens, values};

fn small() -> TransNormerConfig {
    TransNormerConfig::new(37, 16, 2).with_num_heads(2).with_glu_dim(24)
}

/// Small models that together use every optional part.
fn models() -> Vec<TransNormerConfig> {
    vec![
        small(),
        // A number of heads that is no power of two, and positions in every layer.
        TransNormerConfig::new(37, 12, 3)
            .with_num_heads(3)
            .with_hidden_dim(Some(24))
            .with_glu_dim(20)
            .with_bias(true)
            .with_linear_use_lrpe_list(Some(vec![1, 1, 1]))
            .with_linear_act_fun("1+elu".into())
            .with_block_size(4),
        small()
            .with_decay_schedule(DecaySchedule::Linear)
            .with_linear_use_lrpe_list(Some(vec![0, 0]))
            .with_linear_act_fun("elu".into())
            .with_no_scale_embedding(true),
        small()
            .with_decay_schedule(DecaySchedule::None)
            .with_use_output_gate(false)
            .with_linear_act_fun("none".into()),
        TransNormerConfig::new(37, 8, 1).with_num_heads(1).with_glu_dim(8).with_linear_act_fun("relu".into()),
    ]
}

fn lively(config: &TransNormerConfig, device: &Device) -> TransNormerLlm {
    enlivened(config.init(device))
}

fn mixer_config(slopes: &[f64]) -> NormLinearAttentionConfig {
    NormLinearAttentionConfig::new(8, 8, slopes.len(), slopes.to_vec())
}

fn mixer(config: &NormLinearAttentionConfig, device: &Device) -> NormLinearAttention {
    enlivened(config.init(device))
}

fn features(shape: [usize; 3], device: &Device) -> Tensor<3> {
    let mut state = 5;
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| noise(&mut state)).collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}

fn mask<const T: usize>(rows: &[[bool; T]], device: &Device) -> Tensor<2, Bool> {
    Tensor::from_data(TensorData::new(rows.concat(), [rows.len(), T]), device)
}

/// The `config.json` of the smallest released model, shortened to three layers.
fn published() -> Value {
    json!({
        "architectures": ["TransnormerForCausalLM"], "model_type": "transnormer", "vocab_size": 64000,
        "decoder_embed_dim": 1024, "decoder_layers": 3, "decoder_attention_heads": 8, "hidden_dim": 1024,
        "linear_use_lrpe_list": [1, 0, 0], "linear_act_fun": "silu", "glu_dim": 2816, "bias": false,
        "no_scale_embedding": false, "norm_type": "simplermsnorm", "init_std": 0.02, "use_cache": true,
    })
}
