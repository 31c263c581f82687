//! What most published decoders call the parts of the shared stack.

use gatekit_core::checkpoint::TensorLayout;

/// Adds the names of the Llama family to `layout`: `model.embed_tokens`, `self_attn`,
/// `input_layernorm`, `post_attention_layernorm`. Feed-forward layers stay `mlp`. Frequencies of
/// rotations, which older files hold, are passed over.
pub(crate) fn llama_names(layout: TensorLayout) -> TensorLayout {
    layout
        .with_prefix("model.embeddings.", "model.embed_tokens.")
        .with_prefix("model.layers.{}.attn_norm.", "model.layers.{}.input_layernorm.")
        .with_prefix("model.layers.{}.attn.", "model.layers.{}.self_attn.")
        .with_prefix("model.layers.{}.mlp_norm.", "model.layers.{}.post_attention_layernorm.")
        .with_ignored("model.layers.{}.self_attn.rotary_emb.inv_freq")
}

/// Passes over the layers that predict further tokens, which stand behind the last of the
/// `num_hidden_layers` and take no part in predicting the next one.
pub(crate) fn without_prediction_layers(
    layout: TensorLayout,
    num_hidden_layers: usize,
    num_nextn_predict_layers: usize,
) -> TensorLayout {
    (num_hidden_layers..num_hidden_layers + num_nextn_predict_layers)
        .fold(layout, |layout, index| layout.with_ignored(&format!("model.layers.{index}.")))
}
