//! The published configuration and checkpoint.

use gatekit_core::ConfigError;
use gatekit_core::checkpoint::{
    PretrainedConfig, TensorLayout, check_architecture, config_from_json, require,
};
use serde_json::{Value, json};

use super::model::MixtralConfig;
use crate::decoder_layout::{llama_names, rope_theta};

const MODEL_TYPE: &str = "mixtral";
const ARCHITECTURE: &str = "MixtralForCausalLM";

impl PretrainedConfig for MixtralConfig {
    /// Reads a `config.json` as released or as the transformers library saves it (where the
    /// rotation's base is in `rope_parameters`). Refused are scaled rotations, quantised weights and
    /// other activations than SiLU.
    fn from_published(json: &Value) -> Result<Self, ConfigError> {
        check_architecture(json, MODEL_TYPE, ARCHITECTURE)?;
        require(json, "hidden_act", &["silu".into(), "swish".into()])?;
        require(json, "quantization_config", &[])?;
        let mut json = json.clone();
        if let Some(theta) = rope_theta(&json)? {
            json["rope_theta"] = theta;
        }
        config_from_json(&Self::new(32_000, 4096, 32), &json)
    }

    fn to_published(&self) -> Value {
        let mut json = serde_json::to_value(self).unwrap_or_default();
        json["model_type"] = json!(MODEL_TYPE);
        json["architectures"] = json!([ARCHITECTURE]);
        json["hidden_act"] = json!("silu");
        json["rope_parameters"] = json!({ "rope_type": "default", "rope_theta": self.rope_theta });
        json
    }

    fn layout(&self) -> TensorLayout {
        let experts = self.experts().tensor_layout(TensorLayout::default(), "model.layers.{}.mlp.");
        let layout =
            llama_names(experts).with_prefix("model.layers.{}.mlp.", "model.layers.{}.block_sparse_moe.");
        match self.tie_word_embeddings {
            true => layout.with_ignored("lm_head."),
            false => layout,
        }
    }
}
