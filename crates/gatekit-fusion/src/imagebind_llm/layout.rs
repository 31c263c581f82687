//! The names of the published checkpoint.

use gatekit_core::checkpoint::{NamedTensors, TensorLayout};

use super::config::ImageBindLlmConfig;

/// Names of a bind network whose tensors begin with `prefix`; the published ones have none.
pub(super) fn of_bind_network(layout: TensorLayout, prefix: &str, blocks: usize) -> TensorLayout {
    let layout = layout.with_prefix(&format!("{prefix}proj."), "image_bind_proj.");
    // Published blocks count from 1.
    (0..blocks).fold(layout, |layout, block| {
        let parts = [
            ("norm.", "norm"),
            ("feed_forward.gate_proj.", "f1"),
            ("feed_forward.down_proj.", "f2"),
            ("feed_forward.up_proj.", "f3"),
        ];
        parts.into_iter().fold(layout, |layout, (module, published)| {
            let published = format!("image_bind_{published}_{}.", block + 1);
            layout.with_prefix(&format!("{prefix}blocks.{block}.{module}"), &published)
        })
    })
}

/// Names of an attention whose tensors begin with `prefix`, published and here.
pub(super) fn of_attention(layout: TensorLayout, prefix: &str) -> TensorLayout {
    let layout = of_projections(layout, prefix, &["wq", "wk", "wv", "wo"]);
    let gate = format!("{prefix}gate");
    layout.with_prefix(&format!("{gate}.gate"), &gate).with_shape(&gate, &[1, 0, 1, 1])
}

fn of_projections(layout: TensorLayout, prefix: &str, names: &[&str]) -> TensorLayout {
    names.iter().fold(layout, |layout, name| {
        layout
            .with_prefix(&format!("{prefix}{name}.linear."), &format!("{prefix}{name}."))
            .with_prefix(&format!("{prefix}{name}.delta.l1."), &format!("{prefix}lora_{name}_l1."))
            .with_prefix(&format!("{prefix}{name}.delta.l2."), &format!("{prefix}lora_{name}_l2."))
    })
}

/// Names of the whole model. Passed over are the encoder (it is any [`Embedder`](super::Embedder) here), LLaMA's table
/// of frequencies, and the gates of layers without injection, which the release has in every layer.
pub(super) fn of_model(config: &ImageBindLlmConfig) -> TensorLayout {
    let layout = of_bind_network(TensorLayout::default(), "bind.", config.bind_blocks);
    let layout = of_attention(layout, "llama.layers.{}.attention.");
    let layout = of_projections(layout, "llama.layers.{}.feed_forward.", &["w1", "w2", "w3"]);
    let plain = config.layers.saturating_sub(config.injected_layers());
    (0..plain)
        .fold(layout, |layout, layer| layout.with_ignored(&format!("llama.layers.{layer}.attention.gate")))
        .with_ignored("image_bind.")
        .with_ignored("llama.rope.")
}

/// A whole checkpoint from LLaMA's weights under their own names (`layers.0.attention.wq.weight`) and the released
/// adapter's (`llama.layers.0.attention.gate`, `prefix_query.weight`), which take precedence.
pub fn merge_published(llama: NamedTensors, adapter: NamedTensors) -> NamedTensors {
    let llama = llama.into_iter().map(|(name, data)| (format!("llama.{name}"), data));
    llama.chain(adapter).collect()
}
