//! The `config.json` of flash-linear-attention's models.

use gatekit_core::ConfigError;
use gatekit_core::attention::CausalAttentionConfig;
use gatekit_core::checkpoint::{
    PretrainedConfig, TensorLayout, check_architecture, config_from_json, require,
};
use serde_json::{Value, json};

use super::config::{HybridAttentionConfig, HybridConfig};
use super::delta_net::DeltaNetConfig;
use super::gated_deltanet::GatedDeltaNetConfig;
use super::hgrn::HgrnConfig;
use super::hgrn2::Hgrn2Config;
use super::mixer::HybridMixerConfig;
use super::retention::RetentionConfig;
use crate::feed_forward::{experts_layout, publish_experts};
use crate::gla::GlaConfig;

/// What flash-linear-attention takes where its configuration says nothing.
const HIDDEN_SIZE: usize = 2048;
const VOCAB_SIZE: usize = 32_000;
const HGRN2_HEAD: usize = 128;

impl HybridMixerConfig {
    /// `model_type` and `architectures` of the published models.
    fn published_names(&self) -> (&'static str, &'static str) {
        match self {
            Self::Retention(_) => ("retnet", "RetNetForCausalLM"),
            Self::Hgrn(_) => ("hgrn", "HGRNForCausalLM"),
            Self::Hgrn2(_) => ("hgrn2", "HGRN2ForCausalLM"),
            Self::DeltaNet(_) => ("delta_net", "DeltaNetForCausalLM"),
            Self::GatedDeltaNet(_) => ("gated_deltanet", "GatedDeltaNetForCausalLM"),
            Self::GatedLinearAttention(_) => ("gla", "GLAForCausalLM"),
            Self::Attention(_) => ("transformer", "TransformerForCausalLM"),
        }
    }

    /// The layer that a published configuration describes.
    fn from_published(json: &Value) -> Result<Self, ConfigError> {
        let width = HIDDEN_SIZE;
        let mixer: Self = match json["model_type"].as_str() {
            Some("retnet") => {
                require(json, "feature_map", &[])?;
                require(json, "use_output_gate", &[true.into()])?;
                require(json, "fuse_norm", &[true.into()])?;
                let config: RetentionConfig = config_from_json(&RetentionConfig::new(width), json)?;
                require(json, "num_kv_heads", &[config.num_heads.into()])?;
                config.into()
            }
            Some("hgrn") => config_from_json(&HgrnConfig::new(width), json)?.into(),
            Some("hgrn2") => hgrn2(json)?.into(),
            Some("delta_net") => config_from_json(&DeltaNetConfig::new(width), json)?.into(),
            Some("gated_deltanet") => config_from_json(&GatedDeltaNetConfig::new(width), json)?.into(),
            Some("gla") => {
                let mut json = json.clone();
                json["attn"] = Value::Null;
                GlaConfig::from_published(&json)?.layer().into()
            }
            Some("transformer") => {
                require(json, "qk_norm", &[false.into()])?;
                config_from_json(&CausalAttentionConfig::new(width, 32), json)?.into()
            }
            _ => {
                let need = "retnet, hgrn, hgrn2, delta_net, gated_deltanet, gla or transformer";
                return Err(ConfigError::new("model_type", &json["model_type"], need));
            }
        };
        let (model_type, architecture) = mixer.published_names();
        check_architecture(json, model_type, architecture)?;
        if model_type != "gla" {
            // The activation of the feed-forward layers, and of RetNet's output gate.
            require(json, "hidden_act", &["swish".into(), "silu".into()])?;
        }
        require(json, "elementwise_affine", &[true.into()])?;
        require(json, "attnres_block_size", &[])?;
        Ok(mixer)
    }

    fn to_published(&self) -> Value {
        let json = match self {
            Self::Retention(config) => serde_json::to_value(config),
            Self::Hgrn(config) => serde_json::to_value(config),
            Self::Hgrn2(config) => serde_json::to_value(config),
            Self::DeltaNet(config) => serde_json::to_value(config),
            Self::GatedDeltaNet(config) => serde_json::to_value(config),
            Self::GatedLinearAttention(config) => serde_json::to_value(config),
            Self::Attention(config) => serde_json::to_value(config),
        };
        let mut json = json.unwrap_or_default();
        if let Self::Hgrn2(config) = self
            && let Ok(heads) = config.heads()
        {
            json["num_heads"] = heads.into();
            json["expand_ratio"] = (config.hidden_size / heads).into();
        }
        json
    }
}

/// HGRN2's heads are published as `expand_ratio`, the channels of one, or as their number.
fn hgrn2(json: &Value) -> Result<Hgrn2Config, ConfigError> {
    let config: Hgrn2Config = config_from_json(&Hgrn2Config::new(HIDDEN_SIZE), json)?;
    let channels = match &json["expand_ratio"] {
        // Null says that the number of heads counts; nothing at all is the default.
        Value::Null if json.get("expand_ratio").is_some() || config.num_heads.is_some() => return Ok(config),
        Value::Null => Some(HGRN2_HEAD),
        ratio => ratio.as_u64().and_then(|ratio| usize::try_from(ratio).ok()),
    };
    match channels {
        Some(channels) if channels > 0 && config.hidden_size.is_multiple_of(channels) => {
            Ok(config.clone().with_num_heads(Some(config.hidden_size / channels)))
        }
        _ => {
            let need = format!("the channels of a head, a divisor of hidden_size = {}", config.hidden_size);
            Err(ConfigError::new("expand_ratio", &json["expand_ratio"], need))
        }
    }
}

/// The `attn` of a published configuration: an object, or a list of one.
fn attention(json: &Value) -> Result<Option<HybridAttentionConfig>, ConfigError> {
    let published = match &json["attn"] {
        Value::Null => return Ok(None),
        Value::Array(list) => match &list[..] {
            [] => return Ok(None),
            [one] => one,
            several => {
                let got = format!("{} kinds of attention", several.len());
                return Err(ConfigError::new("attn", got, "one"));
            }
        },
        one => one,
    };
    let missing = |field: &str| published[field].is_null();
    if let Some(field) = ["layers", "num_heads"].into_iter().find(|field| missing(field)) {
        return Err(ConfigError::new(format!("attn.{field}"), "nothing", "the layers and their heads"));
    }
    let defaults = HybridAttentionConfig::new(Vec::new(), 0);
    config_from_json(&defaults, published).map(Some).map_err(|error| error.within("attn"))
}

impl PretrainedConfig for HybridConfig {
    /// Reads the `config.json` of flash-linear-attention's `retnet`, `hgrn`, `hgrn2`, `delta_net`,
    /// `gated_deltanet`, `gla` and `transformer` models, with or without `attn`. Refused are other
    /// activations than SiLU, norms without weights (`elementwise_affine` false), attention residuals
    /// (`attnres_block_size`), several kinds of attention in one stack, and of RetNet shared keys,
    /// feature maps and a missing output gate.
    fn from_published(json: &Value) -> Result<Self, ConfigError> {
        let mixer = HybridMixerConfig::from_published(json)?;
        let (layers, ratio) = match &mixer {
            HybridMixerConfig::GatedDeltaNet(_) => (21, 4.0),
            HybridMixerConfig::Retention(_) => (24, 2.0),
            _ => (24, 4.0),
        };
        // A ratio of null is 4 whatever the model.
        let unset = json.get("hidden_ratio").is_some_and(Value::is_null);
        let defaults = Self::new(VOCAB_SIZE, layers, mixer)
            .with_hidden_ratio(if unset { 4.0 } else { ratio })
            .with_attn(attention(json)?);
        let mut stack = json.clone();
        if let Some(fields) = stack.as_object_mut() {
            fields.retain(|field, _| !["attn", "mixer"].contains(&field.as_str()));
        }
        config_from_json(&defaults, &stack)
    }

    fn to_published(&self) -> Value {
        let mut published = self.mixer.to_published();
        if let Value::Object(stack) = serde_json::to_value(self).unwrap_or_default() {
            for (field, value) in stack.into_iter().filter(|(field, _)| field != "mixer") {
                published[field] = value;
            }
        }
        let (model_type, architecture) = self.mixer.published_names();
        published["model_type"] = json!(model_type);
        published["architectures"] = json!([architecture]);
        published["hidden_act"] = json!("swish");
        publish_experts(&mut published, self.moe.as_ref());
        published
    }

    fn layout(&self) -> TensorLayout {
        experts_layout(TensorLayout::default(), self.moe.as_ref())
    }
}
