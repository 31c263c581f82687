//! The language model and its published configuration.

use burn::config::Config;
use burn::tensor::{Device, Int, Tensor};
use gatekit_core::moe::MoeLayerConfig;
use gatekit_core::scan::ScanForm;
use gatekit_core::{ConfigError, ModuleConfig};
use serde_json::{Value, json};

use super::layer::{GateValues, GatedLinearAttention, GatedLinearAttentionConfig, GlaLayerState};
use crate::backbone::{BackboneSize, CausalModel, MixerContext, ModelState};
use crate::feed_forward::{experts_layout, publish_experts};
use gatekit_core::checkpoint::{
    PretrainedConfig, TensorLayout, check_architecture, config_from_json, require,
};

/// The language model of gated linear attention.
pub type GlaForCausalLm = CausalModel<GatedLinearAttention>;

/// Its streaming state, of constant size.
pub type GlaState = ModelState<GlaLayerState>;

/// Configuration of [`GlaForCausalLm`]. Field names are those of the released models; the fields
/// of the layer are explained at [`GatedLinearAttentionConfig`].
#[derive(Config, Debug)]
pub struct GlaConfig {
    /// Number of tokens; 32000 in the paper.
    pub vocab_size: usize,
    /// Width `D`; 1024 (340M) and 2048 (1.3B) in the paper.
    pub hidden_size: usize,
    /// Number of blocks; 24 in the paper.
    pub num_hidden_layers: usize,
    /// Number of heads `H`.
    #[config(default = 4)]
    pub num_heads: usize,
    /// Number of key and value heads; `None`: `num_heads`.
    pub num_kv_heads: Option<usize>,
    /// Width of all keys together, as a share of `D`.
    #[config(default = 0.5)]
    pub expand_k: f64,
    /// Width of all values together, as a share of `D`.
    #[config(default = 1.0)]
    pub expand_v: f64,
    /// Activation of queries and keys; `None`: none.
    pub feature_map: Option<String>,
    /// Short convolutions on queries, keys and values.
    #[config(default = false)]
    pub use_short_conv: bool,
    /// Width of these convolutions.
    #[config(default = 4)]
    pub conv_size: usize,
    /// Whether they have a bias.
    #[config(default = false)]
    pub conv_bias: bool,
    /// Whether the layers' output is gated.
    #[config(default = true)]
    pub use_output_gate: bool,
    /// Activation of the output gate.
    #[config(default = "String::from(\"swish\")")]
    pub gate_fn: String,
    /// Rank of the projection that makes the decay.
    #[config(default = 16)]
    pub gate_low_rank_dim: usize,
    /// Divides the log decay.
    #[config(default = 16.0)]
    pub gate_logit_normalizer: f64,
    /// Lower bound of the log decay; `None`: none.
    pub clamp_min: Option<f64>,
    /// Width of the feed-forward layers; `None`: `2/3 * hidden_ratio * D` rounded up to a
    /// multiple of 256.
    pub intermediate_size: Option<usize>,
    /// See `intermediate_size`.
    #[config(default = 4.0)]
    pub hidden_ratio: f64,
    /// Added to the mean square in every RMSNorm, those of the layers included.
    #[config(default = 1e-6)]
    pub norm_eps: f64,
    /// The head uses the embeddings' weight.
    #[config(default = false)]
    pub tie_word_embeddings: bool,
    /// Experts in place of every dense feed-forward layer, which then has no width of its own; `None`
    /// (the default): dense. No published model of this kind has them: the field is this library's own.
    pub moe: Option<MoeLayerConfig>,
    /// Steps that the scan treats at once. Never changes the result.
    #[config(default = 64)]
    pub chunk_size: usize,
    /// Tiles within a chunk. Never changes the result.
    #[config(default = 16)]
    pub sub_chunk_size: usize,
}

impl GlaConfig {
    /// The configuration of one layer.
    pub fn layer(&self) -> GatedLinearAttentionConfig {
        GatedLinearAttentionConfig {
            hidden_size: self.hidden_size,
            num_heads: self.num_heads,
            num_kv_heads: self.num_kv_heads,
            expand_k: self.expand_k,
            expand_v: self.expand_v,
            feature_map: self.feature_map.clone(),
            use_short_conv: self.use_short_conv,
            conv_size: self.conv_size,
            conv_bias: self.conv_bias,
            use_output_gate: self.use_output_gate,
            gate_fn: self.gate_fn.clone(),
            gate_low_rank_dim: self.gate_low_rank_dim,
            gate_logit_normalizer: self.gate_logit_normalizer,
            clamp_min: self.clamp_min,
            norm_eps: self.norm_eps,
            chunk_size: self.chunk_size,
            sub_chunk_size: self.sub_chunk_size,
        }
    }

    fn size(&self) -> BackboneSize {
        BackboneSize {
            vocab_size: self.vocab_size,
            hidden_size: self.hidden_size,
            num_hidden_layers: self.num_hidden_layers,
            intermediate_size: self.intermediate_size,
            hidden_ratio: self.hidden_ratio,
            norm_eps: self.norm_eps,
            tie_word_embeddings: self.tie_word_embeddings,
        }
    }
}

impl ModuleConfig for GlaConfig {
    type Module = GlaForCausalLm;

    fn try_init(&self, device: &Device) -> Result<GlaForCausalLm, ConfigError> {
        let layer = self.layer();
        CausalModel::try_with_experts(&self.size(), self.moe.as_ref(), device, |_| layer.try_init(device))
    }
}

const MODEL_TYPE: &str = "gla";
const ARCHITECTURE: &str = "GLAForCausalLM";

impl PretrainedConfig for GlaConfig {
    /// Reads the `config.json` of a released model: `hidden_act` there is the activation of the
    /// output gate (unless a `gate_fn` is given) and of the feed-forward layers, where only SiLU
    /// is known. Hybrid stacks (`attn`) are another model, which
    /// [`HybridConfig`](crate::hybrid_linear_attention::HybridConfig) reads. Refused are norms without
    /// weights (`elementwise_affine` false) and attention residuals (`attnres_block_size`).
    fn from_published(json: &Value) -> Result<Self, ConfigError> {
        check_architecture(json, MODEL_TYPE, ARCHITECTURE)?;
        require(json, "hidden_act", &["swish".into(), "silu".into()])?;
        require(json, "elementwise_affine", &[true.into()])?;
        if !json["attn"].is_null() {
            return Err(ConfigError::new("attn", &json["attn"], "null; hybrid stacks are a HybridConfig"));
        }
        require(json, "attnres_block_size", &[])?;
        let mut defaults = Self::new(32000, 2048, 24);
        if let Some(name) = json["hidden_act"].as_str() {
            defaults.gate_fn = name.to_string();
        }
        if json["fuse_norm"] == false && defaults.gate_fn == "swish" {
            // There the norm is called `g_norm`, as for every activation but a fused swish.
            defaults.gate_fn = "silu".to_string();
        }
        config_from_json(&defaults, json)
    }

    fn to_published(&self) -> Value {
        let mut json = serde_json::to_value(self).unwrap_or_default();
        json["model_type"] = json!(MODEL_TYPE);
        json["architectures"] = json!([ARCHITECTURE]);
        json["hidden_act"] = json!("swish");
        publish_experts(&mut json, self.moe.as_ref());
        json
    }

    fn layout(&self) -> TensorLayout {
        experts_layout(TensorLayout::default(), self.moe.as_ref())
    }
}

impl GlaForCausalLm {
    /// The same model with another form of the scan in every layer; see
    /// [`GatedLinearAttention::with_scan_form`].
    pub fn with_scan_form(mut self, form: ScanForm) -> Self {
        for block in &mut self.model.layers {
            block.attn = block.attn.clone().with_scan_form(form);
        }
        self
    }

    /// What the gates of every layer let through, for probes: one entry a layer.
    ///
    /// `input_ids` is `[batch, time]`. Costs a forward pass and the gates' projections once more.
    pub fn gate_values(&self, input_ids: Tensor<2, Int>) -> Vec<GateValues> {
        let mut x = self.embed(input_ids);
        let mut values = Vec::with_capacity(self.model.layers.len());
        for block in &self.model.layers {
            values.push(block.attn.gates(block.attn_norm.forward(x.clone())));
            x = block.forward(x, &MixerContext::default());
        }
        values
    }
}
