//! MoVE: layers, text model, image model, optimiser.

mod image;
mod layers;
mod refused;
#[path = "../support/mod.rs"]
mod support;
mod text;
mod training;

use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData};
use gatekit_core::ModuleConfig;
use gatekit_sequence::mixture_of_value_embeddings::*;
use support::*;

/// A small text model: width 16, 4 heads.
fn small() -> MoveTextConfig {
    MoveTextConfig::new(37, 3, 4, 16)
}

fn latent() -> MoveTextConfig {
    small().with_mla_d_c(Some(8)).with_mla_d_c1(Some(6)).with_mla_d_rope(Some(2))
}

/// Text models that together use every part.
fn texts() -> Vec<MoveTextConfig> {
    let (none, every) = (ValueMemory::None, |every| ValueMemory::LayerWise { every });
    let slots = |slots| ValueMemory::Global { slots };
    vec![
        small(),
        small().with_memory(slots(3)).with_n_kv_head(Some(2)).with_window_size(3),
        small().with_memory(slots(1)).with_gate_standard(Some(false)).with_head_dim(Some(6)),
        small().with_memory(every(2)).with_logit_softcap(0.0),
        small().with_memory(every(1)).with_gate_standard(Some(true)),
        small().with_memory(none).with_window_size(1),
        latent(),
        latent().with_num_latent_groups(Some(1)).with_latent_target(LatentTarget::V).with_window_size(4),
        latent().with_memory(every(2)).with_num_latent_groups(Some(8)),
        latent().with_memory(none).with_latent_target(LatentTarget::V),
    ]
}

fn lively_text(config: &MoveTextConfig, device: &Device) -> MoveTextModel {
    enlivened(config.init(device))
}

/// A small image model: grid of 4, 5 classes, no dropout.
fn picture() -> MoveImageConfig {
    MoveImageConfig::new(11, 2, 4, 16)
        .with_num_classes(5)
        .with_grid_size(4)
        .with_ffn_dim(Some(24))
        .with_dropout(0.0)
}

fn pictures() -> Vec<MoveImageConfig> {
    vec![
        picture(),
        picture().with_memory(ValueMemory::Global { slots: 3 }).with_n_kv_head(Some(2)),
        picture().with_memory(ValueMemory::LayerWise { every: 2 }),
        picture().with_memory(ValueMemory::None).with_head_dim(Some(8)),
    ]
}

/// A tensor of values in (-1, 1).
fn noisy<const D: usize>(shape: [usize; D], seed: u64, device: &Device) -> Tensor<D> {
    let mut state = seed;
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| noise(&mut state)).collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}

fn parameters<M: Module>(module: &M) -> usize {
    module.num_params()
}
