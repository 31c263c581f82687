//! The language model.

use burn::config::Config;
use burn::tensor::{Device, Tensor};
use gatekit_core::attention::{BiasCount, OutputGateKind};
use gatekit_core::checkpoint::{
    PretrainedConfig, TensorLayout, check_architecture, config_from_json, require,
};
use gatekit_core::moe::MoeLayerConfig;
use gatekit_core::{ConfigError, ModuleConfig};
use serde_json::{Value, json};

use super::layer::{AffineScaledAttention, AffineScaledAttentionConfig, AttentionVariant, ScaleActivation};
use super::state::AffineCache;
use crate::backbone::{BackboneSize, CausalModel, ModelState};
use crate::decoder_layout::llama_names;
use crate::feed_forward::{experts_layout, publish_experts};

/// The language model of affine-scaled attention: Llama's blocks.
pub type AffineScaledForCausalLm = CausalModel<AffineScaledAttention>;

/// Its streaming state.
pub type AffineScaledState = ModelState<AffineCache>;

/// Configuration of [`AffineScaledForCausalLm`]; the fields of the layer are explained at
/// [`AffineScaledAttentionConfig`].
#[derive(Config, Debug)]
pub struct AffineScaledModelConfig {
    /// Number of tokens.
    pub vocab_size: usize,
    /// Width `D`.
    pub hidden_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Width of the feed-forward layers.
    pub intermediate_size: usize,
    /// Number of query heads `H`.
    #[config(default = 16)]
    pub num_heads: usize,
    /// Number of key and value heads; `None`: `H`.
    pub num_kv_heads: Option<usize>,
    /// Channels of a head; `None`: `D / H`.
    pub head_dim: Option<usize>,
    /// Base of the rotary positions; `None`: no positions.
    #[config(default = "Some(10000.0)")]
    pub rope_theta: Option<f64>,
    /// What becomes of the softmax's weights.
    #[config(default = "AttentionVariant::Affine")]
    pub variant: AttentionVariant,
    /// How the scale is made.
    #[config(default = "ScaleActivation::LinearClipping")]
    pub alpha_activation: ScaleActivation,
    /// Width of the clipping.
    #[config(default = 5.0)]
    pub clip_width: f64,
    /// Share of the old moving average in the new one.
    #[config(default = 0.9)]
    pub momentum: f64,
    /// What the shift is spread over.
    #[config(default = "BiasCount::Sequence")]
    pub bias_count: BiasCount,
    /// A sigmoid gate behind the attention.
    #[config(default = "OutputGateKind::None")]
    pub output_gate: OutputGateKind,
    /// Added to the mean square in every RMSNorm.
    #[config(default = 1e-6)]
    pub rms_norm_eps: f64,
    /// The head uses the embeddings' weight.
    #[config(default = false)]
    pub tie_word_embeddings: bool,
    /// Experts in place of every dense feed-forward layer, which then has no width of its own; `None`
    /// (the default): dense. No published model of this kind has them: the field is this library's own.
    pub moe: Option<MoeLayerConfig>,
}

impl AffineScaledModelConfig {
    /// The configuration of its layers.
    pub fn layer(&self) -> AffineScaledAttentionConfig {
        AffineScaledAttentionConfig {
            hidden_size: self.hidden_size,
            num_heads: self.num_heads,
            num_kv_heads: self.num_kv_heads,
            head_dim: self.head_dim,
            rope_theta: self.rope_theta,
            variant: self.variant,
            alpha_activation: self.alpha_activation,
            clip_width: self.clip_width,
            momentum: self.momentum,
            bias_count: self.bias_count,
            output_gate: self.output_gate,
        }
    }
}

impl ModuleConfig for AffineScaledModelConfig {
    type Module = AffineScaledForCausalLm;

    fn try_init(&self, device: &Device) -> Result<AffineScaledForCausalLm, ConfigError> {
        let size = BackboneSize {
            vocab_size: self.vocab_size,
            hidden_size: self.hidden_size,
            num_hidden_layers: self.num_hidden_layers,
            intermediate_size: Some(self.intermediate_size),
            hidden_ratio: 4.0,
            norm_eps: self.rms_norm_eps,
            tie_word_embeddings: self.tie_word_embeddings,
        };
        let layer = self.layer();
        let experts = self.moe.as_ref();
        CausalModel::try_with_experts(&size, experts, device, |_| layer.try_init(device)).map_err(
            |mut error| {
                if error.field == "norm_eps" {
                    error.field = "rms_norm_eps".into();
                }
                error
            },
        )
    }
}

impl AffineScaledForCausalLm {
    /// The moving average of every layer, `[H]` each; none in the variants without a scale.
    pub fn moving_averages(&self) -> Vec<Tensor<1>> {
        let averages = self.model.layers.iter().filter_map(|block| block.attn.alpha_moving_average.as_ref());
        averages.map(|average| average.average()).collect()
    }

    /// Whether the moving averages move on a device with autodiff. A new model's do.
    pub fn set_training(&mut self, training: bool) {
        for block in &mut self.model.layers {
            block.attn.set_training(training);
        }
    }
}

const MODEL_TYPE: &str = "affine_scaled_attention";
const ARCHITECTURE: &str = "AffineScaledForCausalLM";

impl PretrainedConfig for AffineScaledModelConfig {
    /// Reads what [`to_published`](PretrainedConfig::to_published) writes: there are no published
    /// checkpoints. The tensors have Llama's names.
    fn from_published(json: &Value) -> Result<Self, ConfigError> {
        check_architecture(json, MODEL_TYPE, ARCHITECTURE)?;
        require(json, "rope_scaling", &[])?;
        require(json, "quantization_config", &[])?;
        for field in ["vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size"] {
            if json[field].is_null() {
                return Err(ConfigError::new(field, "nothing", "a number"));
            }
        }
        let mut config = config_from_json(&Self::new(1, 1, 1, 1), json)?;
        if json.get("rope_theta").is_some_and(Value::is_null) {
            config.rope_theta = None;
        }
        Ok(config)
    }

    fn to_published(&self) -> Value {
        let mut json = serde_json::to_value(self).unwrap_or_default();
        json["model_type"] = json!(MODEL_TYPE);
        json["architectures"] = json!([ARCHITECTURE]);
        publish_experts(&mut json, self.moe.as_ref());
        json
    }

    fn layout(&self) -> TensorLayout {
        let prefix = "model.layers.{}.attn.";
        let published = "model.layers.{}.self_attn.";
        let layout = experts_layout(TensorLayout::default(), self.moe.as_ref())
            .with_prefix(
                &format!("{prefix}alpha_moving_average.value"),
                &format!("{published}alpha_moving_average"),
            )
            .with_prefix(&format!("{prefix}attention.gate."), published)
            .with_prefix(&format!("{prefix}attention."), published);
        let layout = llama_names(layout);
        match self.tie_word_embeddings {
            true => layout.with_ignored("lm_head."),
            false => layout,
        }
    }
}
