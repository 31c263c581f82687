//! The two published forms of configuration and checkpoint.

use gatekit_core::ConfigError;
use gatekit_core::checkpoint::{
    PretrainedConfig, TensorLayout, check_architecture, config_from_json, require,
};
use serde_json::{Value, json};

use super::model::{KimiFolderForm, KimiLinearConfig};
use crate::decoder_layout::{llama_names, without_prediction_layers};

const MODEL_TYPE: &str = "kimi_linear";
const ARCHITECTURE: &str = "KimiLinearForCausalLM";

/// Field of the released form that holds layers and sizes of Kimi Delta Attention.
const LINEAR: &str = "linear_attn_config";

impl PretrainedConfig for KimiLinearConfig {
    /// Reads a `config.json` in either form: with `linear_attn_config` as released, or with
    /// `layer_types` as `transformers` saves it. Refused are positions in the latent attention
    /// (`mla_use_nope` false), scaled rotations, quantised weights, biases on attention, other
    /// activations than SiLU, fewer key than query heads, sparse layers that are not all behind the
    /// dense ones, and another selection of experts than by score plus bias.
    fn from_published(json: &Value) -> Result<Self, ConfigError> {
        check_architecture(json, MODEL_TYPE, ARCHITECTURE)?;
        require(json, "hidden_act", &["silu".into(), "swish".into()])?;
        require(json, "attention_bias", &[false.into()])?;
        require(json, "mla_use_nope", &[true.into()])?;
        require(json, "moe_layer_freq", &[1.into()])?;
        require(json, "topk_method", &["noaux_tc".into()])?;
        require(json, "use_grouped_topk", &[true.into()])?;
        require(json, "rope_scaling", &[])?;
        require(json, "quantization_config", &[])?;
        if !json["num_key_value_heads"].is_null() {
            require(json, "num_key_value_heads", &[json["num_attention_heads"].clone()])?;
        }
        let defaults = Self::hybrid(163_840, 2304, 27, 4);
        match (&json[LINEAR], &json["layer_types"]) {
            (Value::Null, Value::Null) => {
                let need = "the layers of Kimi Delta Attention, here or in layer_types";
                Err(ConfigError::new(LINEAR, "null", need))
            }
            (Value::Null, types) => from_transformers(&defaults, json, types),
            (linear, _) => from_released(&defaults, json, linear),
        }
    }

    fn to_published(&self) -> Value {
        let mut json = serde_json::to_value(self).unwrap_or_default();
        if let Some(fields) = json.as_object_mut() {
            for field in ["kda_layers", "full_attn_layers", "linear_num_heads", "linear_head_dim"]
                .into_iter()
                .chain(["short_conv_kernel_size", "first_k_dense_replace", "folder_form"])
            {
                fields.remove(field);
            }
        }
        json["model_type"] = json!(MODEL_TYPE);
        json["architectures"] = json!([ARCHITECTURE]);
        json["hidden_act"] = json!("silu");
        json["num_key_value_heads"] = json!(self.num_attention_heads);
        match self.folder_form {
            KimiFolderForm::Released => {
                json["first_k_dense_replace"] = json!(self.first_k_dense_replace);
                json["mla_use_nope"] = json!(true);
                json["moe_layer_freq"] = json!(1);
                json[LINEAR] = json!({
                    "kda_layers": self.kda_layers,
                    "full_attn_layers": self.full_attn_layers,
                    "num_heads": self.linear_num_heads,
                    "head_dim": self.linear_head_dim,
                    "short_conv_kernel_size": self.short_conv_kernel_size,
                });
            }
            KimiFolderForm::Transformers => {
                let numbers = 1..=self.num_hidden_layers;
                json["layer_types"] = numbers
                    .map(|number| match self.full_attn_layers.contains(&number) {
                        true => FULL,
                        false => LINEAR_ATTENTION,
                    })
                    .collect();
                json["mlp_layer_types"] = (0..self.num_hidden_layers)
                    .map(|index| if index < self.first_k_dense_replace { DENSE } else { SPARSE })
                    .collect();
                json["linear_num_heads"] = json!(self.linear_num_heads);
                json["linear_head_dim"] = json!(self.linear_head_dim);
                json["linear_conv_kernel_dim"] = json!(self.short_conv_kernel_size);
            }
        }
        json
    }

    /// The released names. A dense feed-forward layer is `mlp` in the released form, and
    /// `block_sparse_moe` like the sparse ones as `transformers` saves it.
    fn layout(&self) -> TensorLayout {
        let layout = match self.sparse_layer() {
            Ok(sparse) => sparse.tensor_layout(TensorLayout::default(), "model.layers.{}.mlp."),
            Err(_) => TensorLayout::default(),
        };
        let mut layout = llama_names(layout)
            .with_prefix("model.layers.{}.mlp.", "model.layers.{}.block_sparse_moe.")
            .with_shape("model.layers.{}.self_attn.A_log", &[1, 1, 0, 1]);
        if self.folder_form == KimiFolderForm::Released {
            // The projections that stand right below the layer are those of a dense one.
            for part in ["gate_proj", "up_proj", "down_proj"] {
                layout = layout.with_prefix(
                    &format!("model.layers.{{}}.block_sparse_moe.{part}."),
                    &format!("model.layers.{{}}.mlp.{part}."),
                );
            }
        }
        without_prediction_layers(layout, self.num_hidden_layers, self.num_nextn_predict_layers)
    }
}

const FULL: &str = "full_attention";
const LINEAR_ATTENTION: &str = "linear_attention";
const DENSE: &str = "dense";
const SPARSE: &str = "sparse";

/// `fields` on top of `json`.
fn with_fields<const N: usize>(json: &Value, fields: [(&str, &Value); N]) -> Value {
    let mut json = json.clone();
    for (name, value) in fields {
        json[name] = value.clone();
    }
    json
}

fn from_released(
    defaults: &KimiLinearConfig,
    json: &Value,
    linear: &Value,
) -> Result<KimiLinearConfig, ConfigError> {
    if !linear.is_object() {
        return Err(ConfigError::new(LINEAR, linear, "a JSON object"));
    }
    // Lists that are missing are empty, not those of the 48B model.
    let list = |field: &str| match &linear[field] {
        Value::Null => json!([]),
        list => list.clone(),
    };
    let fields = [
        ("kda_layers", &list("kda_layers")),
        ("full_attn_layers", &list("full_attn_layers")),
        ("linear_num_heads", &linear["num_heads"]),
        ("linear_head_dim", &linear["head_dim"]),
        ("short_conv_kernel_size", &linear["short_conv_kernel_size"]),
        ("folder_form", &json!(KimiFolderForm::Released)),
    ];
    let within = |mut error: ConfigError| {
        let inner = match error.field.as_str() {
            "linear_num_heads" => "num_heads",
            "linear_head_dim" => "head_dim",
            field @ ("kda_layers" | "full_attn_layers" | "short_conv_kernel_size") => field,
            _ => return error,
        };
        error.field = format!("{LINEAR}.{inner}");
        error
    };
    config_from_json(defaults, &with_fields(json, fields)).map_err(within)
}

fn from_transformers(
    defaults: &KimiLinearConfig,
    json: &Value,
    types: &Value,
) -> Result<KimiLinearConfig, ConfigError> {
    let types = names("layer_types", types, &[LINEAR_ATTENTION, FULL])?;
    let numbers = |kind: &str| -> Value {
        (1..=types.len()).filter(|number| types[number - 1] == kind).collect::<Vec<_>>().into()
    };
    let mlp_types = match &json["mlp_layer_types"] {
        Value::Null => None,
        types => Some(names("mlp_layer_types", types, &[DENSE, SPARSE])?),
    };
    let dense = match &mlp_types {
        None => json["first_k_dense_replace"].clone(),
        Some(types) => {
            let dense = types.iter().take_while(|kind| **kind == DENSE).count();
            if types[dense..].contains(&DENSE) {
                let need = "dense layers first, then sparse ones";
                return Err(ConfigError::new("mlp_layer_types", json!(types), need));
            }
            json!(dense)
        }
    };
    let fields = [
        ("kda_layers", &numbers(LINEAR_ATTENTION)),
        ("full_attn_layers", &numbers(FULL)),
        ("short_conv_kernel_size", &json["linear_conv_kernel_dim"]),
        ("first_k_dense_replace", &dense),
        ("folder_form", &json!(KimiFolderForm::Transformers)),
    ];
    let config = config_from_json(defaults, &with_fields(json, fields)).map_err(|mut error| {
        if error.field == "short_conv_kernel_size" {
            error.field = "linear_conv_kernel_dim".into();
        }
        error
    })?;
    for (field, count) in [
        ("layer_types", types.len()),
        ("mlp_layer_types", mlp_types.map_or(types.len(), |types| types.len())),
    ] {
        if count != config.num_hidden_layers {
            let need = format!("num_hidden_layers = {} of them", config.num_hidden_layers);
            return Err(ConfigError::new(field, format!("{count} layers"), need));
        }
    }
    Ok(config)
}

/// A list of names that are all known.
fn names<'a>(field: &str, list: &'a Value, known: &[&str]) -> Result<Vec<&'a str>, ConfigError> {
    let refuse = |got: &Value| ConfigError::new(field, got, format!("a list of {}", known.join(" or ")));
    let list = list.as_array().ok_or_else(|| refuse(list))?;
    let name = |name: &'a Value| match name.as_str() {
        Some(text) if known.contains(&text) => Ok(text),
        _ => Err(refuse(name)),
    };
    list.iter().map(name).collect()
}
