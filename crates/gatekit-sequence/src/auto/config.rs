//! The configuration of any model, from and to the published `config.json`.

use std::collections::BTreeSet;

use burn::tensor::Device;
use gatekit_core::checkpoint::{PretrainedConfig, TensorLayout, require};
use gatekit_core::{ConfigError, ModuleConfig};
use serde_json::Value;

use super::model::{AutoModel, AutoNetwork};
use crate::affine_scaled::AffineScaledModelConfig;
use crate::deepseek_v3::DeepseekV3Config;
use crate::gated_associative_memory::GamConfig;
use crate::gated_attention::GatedAttentionModelConfig;
use crate::gla::GlaConfig;
use crate::hybrid_linear_attention::HybridConfig;
use crate::kimi_linear::KimiLinearConfig;
use crate::mamba::MambaConfig;
use crate::mixtral::MixtralConfig;
use crate::mixture_of_value_embeddings::MoveTextConfig;
use crate::qwen3_moe::Qwen3MoeConfig;
use crate::qwen3_next::Qwen3NextConfig;
use crate::softmax::SoftmaxConfig;
use crate::transnormer::TransNormerConfig;

/// A model among those that one `model_type` stands for.
struct Published {
    model_type: &'static str,
    architecture: &'static str,
    /// Whether the configuration is this model's, given that `model_type` is.
    holds: fn(&Value) -> bool,
    read: fn(&Value) -> Result<AutoConfig, ConfigError>,
}

macro_rules! models {
    ($(
        $(#[$attribute:meta])*
        $variant:ident($config:ty) $name:literal = [$($model_type:literal: $architecture:literal $(if $holds:expr)?),* $(,)?],
    )+) => {
        /// The configuration of an [`AutoModel`]: one variant a family of models.
        #[derive(Debug, Clone)]
        #[allow(clippy::large_enum_variant, reason = "there is one a model")]
        pub enum AutoConfig {
            $($(#[$attribute])* $variant($config),)+
        }

        const PUBLISHED: &[Published] = &[$($(
            Published {
                model_type: $model_type,
                architecture: $architecture,
                holds: holds!($($holds)?),
                read: |json| <$config>::from_published(json).map(AutoConfig::$variant),
            },
        )*)+];

        $(impl From<$config> for AutoConfig {
            fn from(config: $config) -> Self {
                Self::$variant(config)
            }
        })+

        impl AutoConfig {
            /// What kind of model this is, for people.
            pub fn name(&self) -> &'static str {
                match self {
                    $(Self::$variant(_) => $name,)+
                }
            }

            fn network(&self, device: &Device) -> Result<AutoNetwork, ConfigError> {
                match self {
                    $(Self::$variant(config) => config.try_init(device).map(AutoNetwork::$variant),)+
                }
            }

            fn inner_layout(&self) -> TensorLayout {
                match self {
                    $(Self::$variant(config) => config.layout(),)+
                }
            }

            fn inner_published(&self) -> Value {
                match self {
                    $(Self::$variant(config) => config.to_published(),)+
                }
            }
        }
    };
}

macro_rules! holds {
    () => {
        |_| true
    };
    ($holds:expr) => {
        $holds
    };
}

models! {
    /// Softmax attention with scaled and shifted weights.
    AffineScaled(AffineScaledModelConfig) "affine-scaled attention" =
        ["affine_scaled_attention": "AffineScaledForCausalLM"],
    /// DeepSeek-V3: latent attention with rotary positions, experts chosen in groups.
    DeepseekV3(DeepseekV3Config) "DeepSeek-V3" = ["deepseek_v3": "DeepseekV3ForCausalLM"],
    /// Gated associative memory.
    Gam(GamConfig) "gated associative memory" = ["gam": "GAM_Model"],
    /// Softmax attention with an output gate.
    GatedAttention(GatedAttentionModelConfig) "gated attention" = ["qwen3": "Qwen3ForCausalLM"],
    /// Gated linear attention in every layer.
    Gla(GlaConfig) "gated linear attention" = ["gla": "GLAForCausalLM" if |json| json["attn"].is_null()],
    /// The other linear layers of flash-linear-attention, and stacks of them with full attention.
    Hybrid(HybridConfig) "hybrid linear attention" = [
        "retnet": "RetNetForCausalLM",
        "hgrn": "HGRNForCausalLM",
        "hgrn2": "HGRN2ForCausalLM",
        "delta_net": "DeltaNetForCausalLM",
        "gated_deltanet": "GatedDeltaNetForCausalLM",
        "gla": "GLAForCausalLM",
    ],
    /// Kimi Linear: Kimi Delta Attention, latent attention, experts.
    KimiLinear(KimiLinearConfig) "Kimi Linear" = ["kimi_linear": "KimiLinearForCausalLM"],
    /// Mamba.
    Mamba(MambaConfig) "Mamba" = ["mamba": "MambaForCausalLM"],
    /// Mixtral: softmax attention and experts.
    Mixtral(MixtralConfig) "Mixtral" = ["mixtral": "MixtralForCausalLM"],
    /// Softmax attention with a memory of values that all layers share.
    Move(MoveTextConfig) "mixture of value embeddings" = ["move": "MoveForCausalLM"],
    /// Qwen3-MoE: softmax attention and experts.
    Qwen3Moe(Qwen3MoeConfig) "Qwen3-MoE" = ["qwen3_moe": "Qwen3MoeForCausalLM"],
    /// Qwen3-Next: gated DeltaNet, gated attention, experts.
    Qwen3Next(Qwen3NextConfig) "Qwen3-Next" = ["qwen3_next": "Qwen3NextForCausalLM"],
    /// Softmax attention in every layer, as in flash-linear-attention's transformer.
    Transformer(SoftmaxConfig) "softmax attention" = ["transformer": "TransformerForCausalLM"],
    /// TransNormerLLM: Lightning attention.
    TransNormer(TransNormerConfig) "TransNormerLLM" = ["transnormer": "TransnormerForCausalLM"],
}

impl ModuleConfig for AutoConfig {
    type Module = AutoModel;

    fn try_init(&self, device: &Device) -> Result<AutoModel, ConfigError> {
        Ok(AutoModel::new(self.clone(), self.network(device)?))
    }
}

impl PretrainedConfig for AutoConfig {
    /// Reads the `config.json` of any known model. `model_type` selects it, or without that the
    /// first of `architectures`. Refused are unknown models, quantised weights and scaled rotary
    /// positions, and what the model's own configuration refuses.
    fn from_published(json: &Value) -> Result<Self, ConfigError> {
        let published = published(json)?;
        require(json, "quantization_config", &[])?;
        check_rotation(json)?;
        let mut json = json.clone();
        json["model_type"] = published.model_type.into();
        (published.read)(&json)
    }

    fn to_published(&self) -> Value {
        self.inner_published()
    }

    fn layout(&self) -> TensorLayout {
        self.inner_layout()
    }
}

/// Every `model_type` that [`AutoConfig`] reads, sorted.
pub fn model_types() -> Vec<&'static str> {
    names(|model| model.model_type)
}

fn names(of: impl Fn(&Published) -> &'static str) -> Vec<&'static str> {
    let names: BTreeSet<&str> = PUBLISHED.iter().map(of).collect();
    names.into_iter().collect()
}

fn published(json: &Value) -> Result<&'static Published, ConfigError> {
    if !json.is_object() {
        return Err(ConfigError::new("config", json, "a JSON object"));
    }
    let (field, got) = match &json["model_type"] {
        Value::Null => ("architectures", &json["architectures"][0]),
        named => ("model_type", named),
    };
    let known = |model: &&Published| match field {
        "model_type" => got == model.model_type,
        _ => got == model.architecture,
    };
    PUBLISHED.iter().filter(known).find(|model| (model.holds)(json)).ok_or_else(|| {
        let name =
            |model: &Published| if field == "model_type" { model.model_type } else { model.architecture };
        ConfigError::new(field, got, format!("one of {}", names(name).join(", ")))
    })
}

/// Refuses rotary positions that are stretched for longer sequences than the model was trained on.
/// `rope_scaling` is the field of older files, `rope_parameters` that of newer ones.
fn check_rotation(json: &Value) -> Result<(), ConfigError> {
    for field in ["rope_scaling", "rope_parameters"] {
        for name in ["rope_type", "type"] {
            require(&json[field], name, &["default".into()]).map_err(|error| error.within(field))?;
        }
    }
    let scaling = &json["rope_scaling"];
    let is_named = ["rope_type", "type"].iter().any(|name| scaling[name] == "default");
    match scaling.is_null() || is_named {
        true => Ok(()),
        false => Err(ConfigError::new("rope_scaling", scaling, "null, or the type `default`")),
    }
}
