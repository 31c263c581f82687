//! The published configuration and checkpoint.

use gatekit_core::ConfigError;
use gatekit_core::checkpoint::{
    PretrainedConfig, TensorLayout, check_architecture, config_from_json, require,
};
use serde_json::{Value, json};

use super::model::DeepseekV3Config;
use crate::decoder_layout::{llama_names, rope_theta, without_prediction_layers};

const MODEL_TYPE: &str = "deepseek_v3";
const ARCHITECTURE: &str = "DeepseekV3ForCausalLM";

impl PretrainedConfig for DeepseekV3Config {
    /// Reads a `config.json` as released or as `transformers` saves it (where the rotation's base
    /// is in `rope_parameters`). Refused are scaled rotations, quantised weights, other activations
    /// than SiLU, fewer key than query heads, sparse layers that are not all behind the dense ones,
    /// and another selection of experts than by sigmoid score plus bias.
    fn from_published(json: &Value) -> Result<Self, ConfigError> {
        check_architecture(json, MODEL_TYPE, ARCHITECTURE)?;
        require(json, "hidden_act", &["silu".into(), "swish".into()])?;
        require(json, "moe_layer_freq", &[1.into()])?;
        require(json, "scoring_func", &["sigmoid".into()])?;
        require(json, "topk_method", &["noaux_tc".into()])?;
        require(json, "quantization_config", &[])?;
        if !json["num_key_value_heads"].is_null() {
            require(json, "num_key_value_heads", &[json["num_attention_heads"].clone()])?;
        }
        let mut json = json.clone();
        if let Some(theta) = rope_theta(&json)? {
            json["rope_theta"] = theta;
        }
        let mut config = config_from_json(&Self::new(129_280, 7168, 61), &json)?;
        // Null is a choice here; elsewhere it means the default.
        if json.get("q_lora_rank").is_some_and(Value::is_null) {
            config.q_lora_rank = None;
        }
        Ok(config)
    }

    fn to_published(&self) -> Value {
        let mut json = serde_json::to_value(self).unwrap_or_default();
        json["model_type"] = json!(MODEL_TYPE);
        json["architectures"] = json!([ARCHITECTURE]);
        json["hidden_act"] = json!("silu");
        json["num_key_value_heads"] = json!(self.num_attention_heads);
        json["scoring_func"] = json!("sigmoid");
        json["topk_method"] = json!("noaux_tc");
        json["rope_parameters"] = json!({ "rope_type": "default", "rope_theta": self.rope_theta });
        json
    }

    fn layout(&self) -> TensorLayout {
        let sparse = self.sparse_layer().tensor_layout(TensorLayout::default(), "model.layers.{}.mlp.");
        let layout = llama_names(sparse);
        without_prediction_layers(layout, self.num_hidden_layers, self.num_nextn_predict_layers)
    }
}
