//! The language model and its published form.

use burn::config::Config;
use burn::tensor::{Device, Int, Tensor};
use gatekit_core::attention::{CausalAttention, GateLayout, KvCache, OutputGateKind};
use gatekit_core::checkpoint::{
    PretrainedConfig, TensorLayout, check_architecture, config_from_json, require,
};
use gatekit_core::moe::MoeLayerConfig;
use gatekit_core::probe::{AttentionDiagnostics, AttentionDiagnosticsConfig};
use gatekit_core::{ConfigError, InputError, ModuleConfig};
use serde_json::{Value, json};

use super::layer::FusedGatedAttentionConfig;
use crate::backbone::{BackboneSize, CausalModel, MixerContext, ModelState};
use crate::decoder_layout::llama_names;
use crate::feed_forward::{experts_layout, publish_experts};

/// The language model of gated attention: Qwen3's blocks with a gate behind each head's attention.
pub type GatedAttentionForCausalLm = CausalModel<CausalAttention>;

/// Its streaming state: keys and values of the tokens so far. The gate needs the current token only.
pub type GatedAttentionState = ModelState<KvCache>;

/// Configuration of [`GatedAttentionForCausalLm`].
#[derive(Config, Debug)]
pub struct GatedAttentionModelConfig {
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
    pub num_attention_heads: usize,
    /// Number of key and value heads, each shared by consecutive query heads; `None`: `H`.
    pub num_key_value_heads: Option<usize>,
    /// Channels of a head; `None`: `D / H`.
    pub head_dim: Option<usize>,
    /// One sigmoid score a head or a channel of each head's output, or none.
    #[config(default = "OutputGateKind::Elementwise")]
    pub gate: OutputGateKind,
    /// Where the gate's rows stand in `q_proj`.
    #[config(default = "GateLayout::KvGroup")]
    pub gate_layout: GateLayout,
    /// RMSNorm of each head's queries and keys.
    #[config(default = true)]
    pub use_qk_norm: bool,
    /// The norms of queries and keys store their weights minus 1.
    #[config(default = false)]
    pub zero_centered_norm: bool,
    /// Bias on all four projections of the attention.
    #[config(default = false)]
    pub qkv_bias: bool,
    /// Share of each head's channels that is rotated.
    #[config(default = 1.0)]
    pub partial_rotary_factor: f64,
    /// Added to the mean square in every RMSNorm.
    #[config(default = 1e-6)]
    pub rms_norm_eps: f64,
    /// Base of the rotary positions; `None`: no positions.
    #[config(default = "Some(10000.0)")]
    pub rope_theta: Option<f64>,
    /// The head uses the embeddings' weight.
    #[config(default = false)]
    pub tie_word_embeddings: bool,
    /// Experts in place of every dense feed-forward layer, which then has no width of its own; `None`
    /// (the default): dense. No published model of this kind has them: the field is this library's own.
    pub moe: Option<MoeLayerConfig>,
}

impl GatedAttentionModelConfig {
    /// The configuration of its layers.
    pub fn layer(&self) -> FusedGatedAttentionConfig {
        FusedGatedAttentionConfig {
            hidden_size: self.hidden_size,
            num_attention_heads: self.num_attention_heads,
            num_key_value_heads: self.num_key_value_heads,
            head_dim: self.head_dim,
            gate: self.gate,
            gate_layout: self.gate_layout,
            use_qk_norm: self.use_qk_norm,
            zero_centered_norm: self.zero_centered_norm,
            qkv_bias: self.qkv_bias,
            partial_rotary_factor: self.partial_rotary_factor,
            rms_norm_eps: self.rms_norm_eps,
            rope_theta: self.rope_theta,
        }
    }
}

impl ModuleConfig for GatedAttentionModelConfig {
    type Module = GatedAttentionForCausalLm;

    fn try_init(&self, device: &Device) -> Result<GatedAttentionForCausalLm, ConfigError> {
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

impl GatedAttentionForCausalLm {
    /// What every layer did with `input_ids` `[batch, time]`, first to last: its sink, its gate, and the
    /// residual stream behind its block. Costs a forward pass and the attention weights besides.
    ///
    /// # Errors
    ///
    /// [`InputError`] as [`AttentionDiagnosticsConfig::measure`].
    pub fn diagnose(
        &self,
        input_ids: Tensor<2, Int>,
        config: &AttentionDiagnosticsConfig,
    ) -> Result<Vec<AttentionDiagnostics>, InputError> {
        let mut x = self.embed(input_ids);
        let mut measured = Vec::with_capacity(self.model.layers.len());
        for block in &self.model.layers {
            let normed = block.attn_norm.forward(x.clone());
            let (weights, scores) = (block.attn.weights(normed.clone()), block.attn.gate_scores(normed));
            x = block.forward(x, &MixerContext::default());
            measured.push(config.measure(weights, scores, x.clone())?);
        }
        Ok(measured)
    }
}

const MODEL_TYPE: &str = "qwen3";
const ARCHITECTURE: &str = "Qwen3ForCausalLM";
/// How the checkpoints name the gate's granularity.
const FLAGS: [(&str, OutputGateKind); 2] = [
    ("headwise_attn_output_gate", OutputGateKind::Headwise),
    ("elementwise_attn_output_gate", OutputGateKind::Elementwise),
];

impl PretrainedConfig for GatedAttentionModelConfig {
    /// Reads the `config.json` of the paper's checkpoints, and of Qwen3 (which has no gate).
    ///
    /// With a gate the file must say `gate_layout` (`"kv-group"` for the paper's checkpoints): the
    /// order of the rows of `q_proj` cannot be read off their number, and is never guessed. Refused
    /// are scaled rotary positions, sliding windows, quantisation and other activations than SiLU.
    fn from_published(json: &Value) -> Result<Self, ConfigError> {
        check_architecture(json, MODEL_TYPE, ARCHITECTURE)?;
        require(json, "hidden_act", &["silu".into(), "swish".into()])?;
        require(json, "rope_scaling", &[])?;
        require(json, "quantization_config", &[])?;
        require(json, "use_sliding_window", &[false.into()])?;
        let defaults = Self::new(151_936, 4096, 32, 22_016)
            .with_num_attention_heads(32)
            .with_num_key_value_heads(Some(32))
            .with_head_dim(Some(128))
            .with_gate(OutputGateKind::None);
        let mut config = config_from_json(&defaults, json)?;
        let flag = |name: &str| match &json[name] {
            Value::Null => Ok(false),
            value => value.as_bool().ok_or_else(|| ConfigError::new(name, value, "true or false")),
        };
        for (name, kind) in FLAGS {
            if flag(name)? {
                if config.gate != OutputGateKind::None && config.gate != kind {
                    return Err(ConfigError::new(name, true, "one gate: headwise or elementwise"));
                }
                config.gate = kind;
            }
        }
        config.qkv_bias |= flag("attention_bias")?;
        if json.get("rope_theta").is_some_and(Value::is_null) {
            config.rope_theta = None;
        }
        if config.gate != OutputGateKind::None && json["gate_layout"].is_null() {
            return Err(ConfigError::new(
                "gate_layout",
                "nothing",
                "the order of rows in q_proj, \"kv-group\" or \"head\": it is not guessed",
            ));
        }
        Ok(config)
    }

    fn to_published(&self) -> Value {
        let mut json = serde_json::to_value(self).unwrap_or_default();
        json["model_type"] = json!(MODEL_TYPE);
        json["architectures"] = json!([ARCHITECTURE]);
        json["hidden_act"] = json!("silu");
        json["attention_bias"] = json!(self.qkv_bias);
        // Null would mean the published defaults.
        let heads = self.num_attention_heads;
        json["num_key_value_heads"] = json!(self.num_key_value_heads.unwrap_or(heads));
        json["head_dim"] = json!(self.head_dim.unwrap_or(self.hidden_size / heads.max(1)));
        for (name, kind) in FLAGS {
            json[name] = json!(self.gate == kind);
        }
        publish_experts(&mut json, self.moe.as_ref());
        json
    }

    fn layout(&self) -> TensorLayout {
        let layout = experts_layout(TensorLayout::default(), self.moe.as_ref());
        let layout =
            llama_names(layout.with_prefix("model.layers.{}.attn.gate.", "model.layers.{}.self_attn."))
                .with_note("model.layers.{}.self_attn.q_proj.weight", &self.layer().rows_in_words());
        match self.tie_word_embeddings {
            true => layout.with_ignored("lm_head."),
            false => layout,
        }
    }
}
