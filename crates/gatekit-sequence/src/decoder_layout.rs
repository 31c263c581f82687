//! What most published decoders call the parts of the shared stack and its configuration.

use gatekit_core::ConfigError;
use gatekit_core::checkpoint::TensorLayout;
use serde_json::Value;

/// More layers for further tokens than any model has.
const MAX_PREDICTION_LAYERS: usize = 64;

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

/// Refuses a number of such layers that no model has.
pub(crate) fn check_prediction_layers(num_nextn_predict_layers: usize) -> Result<(), ConfigError> {
    if num_nextn_predict_layers > MAX_PREDICTION_LAYERS {
        let need = format!("at most {MAX_PREDICTION_LAYERS}");
        return Err(ConfigError::new("num_nextn_predict_layers", num_nextn_predict_layers, need));
    }
    Ok(())
}

/// The base of the rotation where it is not at the top level; refuses rotations that are scaled.
pub(crate) fn rope_theta(json: &Value) -> Result<Option<Value>, ConfigError> {
    let mut theta = None;
    for field in ["rope_scaling", "rope_parameters"] {
        let parameters = &json[field];
        if parameters.is_null() {
            continue;
        }
        let Some(parameters) = parameters.as_object() else {
            return Err(ConfigError::new(field, parameters, "a JSON object, or null"));
        };
        for name in ["rope_type", "type"] {
            match parameters.get(name) {
                None | Some(Value::Null) => {}
                Some(kind) if kind == "default" => {}
                Some(kind) => {
                    return Err(ConfigError::new(format!("{field}.{name}"), kind, "default: no scaling"));
                }
            }
        }
        theta = parameters.get("rope_theta").filter(|value| !value.is_null()).cloned().or(theta);
    }
    Ok(theta)
}

/// The errors of softmax attention under the field names of the Llama family.
pub(crate) fn attention_field(error: ConfigError) -> ConfigError {
    let field = match error.field.as_str() {
        "num_heads" => "num_attention_heads",
        "num_kv_heads" => "num_key_value_heads",
        "window_size" => "sliding_window",
        "norm_eps" => "rms_norm_eps",
        field => field,
    };
    ConfigError { field: field.to_string(), ..error }
}
