//! The published `config.json` and the names of the published tensors.

use gatekit_core::ConfigError;
use gatekit_core::checkpoint::{
    PretrainedConfig, TensorLayout, check_architecture, config_from_json, require,
};
use serde_json::{Value, json};

use crate::decoder_layout::llama_names;

use super::config::{Qwen3NextConfig, Qwen3NextLayer};

const MODEL_TYPE: &str = "qwen3_next";
const ARCHITECTURE: &str = "Qwen3NextForCausalLM";

/// What the transformers library takes where a configuration says nothing.
fn defaults() -> Qwen3NextConfig {
    Qwen3NextConfig::new(151_936, 2048, 48).with_rope_theta(10_000.0).with_intermediate_size(5632)
}

impl PretrainedConfig for Qwen3NextConfig {
    /// Reads the `config.json` of a released model, with the rotation's parameters in
    /// `rope_parameters` or beside the other fields. Refused are scaled rotations, quantised weights
    /// and other activations than SiLU.
    fn from_published(json: &Value) -> Result<Self, ConfigError> {
        check_architecture(json, MODEL_TYPE, ARCHITECTURE)?;
        require(json, "hidden_act", &["silu".into(), "swish".into()])?;
        require(json, "quantization_config", &[])?;
        let mut flat = json.clone();
        for field in ["rope_parameters", "rope_scaling"] {
            let rope = &json[field];
            for kind in ["rope_type", "type"] {
                require(rope, kind, &["default".into()]).map_err(|error| error.within(field))?;
            }
            for field in ["rope_theta", "partial_rotary_factor"] {
                if !rope[field].is_null() {
                    flat[field] = rope[field].clone();
                }
            }
        }
        config_from_json(&defaults(), &flat)
    }

    fn to_published(&self) -> Value {
        let mut json = serde_json::to_value(self).unwrap_or_default();
        if let Ok(layers) = self.layers() {
            json["layer_types"] = json!(layers);
        }
        let rope = ["rope_theta", "partial_rotary_factor"].map(|field| (field, json[field].take()));
        json["rope_parameters"] = json!({"rope_type": "default"});
        for (field, value) in rope {
            json["rope_parameters"][field] = value;
        }
        if let Some(fields) = json.as_object_mut() {
            fields.retain(|_, value| !value.is_null());
        }
        json["model_type"] = json!(MODEL_TYPE);
        json["architectures"] = json!([ARCHITECTURE]);
        json["hidden_act"] = json!("silu");
        json
    }

    fn layout(&self) -> TensorLayout {
        let layout = self.experts().tensor_layout(TensorLayout::default(), "model.layers.{}.mlp.");
        let layers = self.layers().unwrap_or_default();
        let linear = layers.iter().enumerate().filter(|(_, kind)| **kind == Qwen3NextLayer::LinearAttention);
        let layout = linear.fold(layout, |layout, (index, _)| {
            let of_layer = |name| format!("model.layers.{index}.{name}.");
            layout.with_prefix(&of_layer("attn"), &of_layer("linear_attn"))
        });
        // Released models carry heads along that predict further tokens.
        let layout = llama_names(layout).with_ignored("mtp.");
        match self.tie_word_embeddings {
            true => layout.with_ignored("lm_head."),
            false => layout,
        }
    }
}
