//! The model's configuration.

use burn::config::Config;
use burn::tensor::Device;
use gatekit_core::attention::{AttentionGateConfig, CausalAttentionConfig, GateLayout};
use gatekit_core::feed_forward::SwiGluConfig;
use gatekit_core::moe::{MoeLayerConfig, MoeLayout};
use gatekit_core::norm::RmsNormConfig;
use gatekit_core::{ConfigError, ModuleConfig};
use serde::{Deserialize, Serialize};

use super::delta_net::PackedGatedDeltaNetConfig;
use super::{Qwen3NextForCausalLm, Qwen3NextMixer};
use crate::backbone::{BackboneSize, CausalModel};
use crate::decoder_layout::attention_field;
use crate::feed_forward::DecoderFeedForward;

/// What a layer of the stack is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Qwen3NextLayer {
    /// Gated DeltaNet.
    LinearAttention,
    /// Gated softmax attention.
    FullAttention,
}

/// Configuration of [`Qwen3NextForCausalLm`]. Field names are those of the released models, the
/// defaults those of Qwen3-Next-80B-A3B.
#[derive(Config, Debug)]
pub struct Qwen3NextConfig {
    /// Number of tokens; 151936 in the released models.
    pub vocab_size: usize,
    /// Width `D`; 2048 in the released models.
    pub hidden_size: usize,
    /// Number of blocks; 48 in the released models.
    pub num_hidden_layers: usize,
    /// What each layer is, first to last; `None` (the default): every `full_attention_interval`-th is
    /// full attention.
    #[config(default = "None")]
    pub layer_types: Option<Vec<Qwen3NextLayer>>,
    /// See `layer_types`; at least 1. Default 4.
    #[config(default = 4)]
    pub full_attention_interval: usize,
    /// Query heads of full attention. Default 16.
    #[config(default = 16)]
    pub num_attention_heads: usize,
    /// Key and value heads of full attention. Default 2.
    #[config(default = 2)]
    pub num_key_value_heads: usize,
    /// Channels of a head of full attention. Default 256.
    #[config(default = 256)]
    pub head_dim: usize,
    /// Whether the projections of full attention have biases. Default false.
    #[config(default = false)]
    pub attention_bias: bool,
    /// Base of the rotary positions. Default 1e7.
    #[config(default = 1e7)]
    pub rope_theta: f64,
    /// Share of each head's channels that is rotated. Default 0.25.
    #[config(default = 0.25)]
    pub partial_rotary_factor: f64,
    /// Query and key heads of gated DeltaNet. Default 16.
    #[config(default = 16)]
    pub linear_num_key_heads: usize,
    /// Value heads of gated DeltaNet, a multiple of its key heads. Default 32.
    #[config(default = 32)]
    pub linear_num_value_heads: usize,
    /// Channels of its query and key heads. Default 128.
    #[config(default = 128)]
    pub linear_key_head_dim: usize,
    /// Channels of its value heads. Default 128.
    #[config(default = 128)]
    pub linear_value_head_dim: usize,
    /// Width of its convolution. Default 4.
    #[config(default = 4)]
    pub linear_conv_kernel_dim: usize,
    /// Experts; 0: every feed-forward layer is dense. Default 512.
    #[config(default = 512)]
    pub num_experts: usize,
    /// Experts a token. Default 10.
    #[config(default = 10)]
    pub num_experts_per_tok: usize,
    /// Inner width of an expert. Default 512.
    #[config(default = 512)]
    pub moe_intermediate_size: usize,
    /// Inner width of the expert that every token uses. Default 512.
    #[config(default = 512)]
    pub shared_expert_intermediate_size: usize,
    /// Whether the weights of a token's experts are divided by their sum. Default true.
    #[config(default = true)]
    pub norm_topk_prob: bool,
    /// Every so many layers have experts, the last of each group; at least 1. Default 1, all.
    #[config(default = 1)]
    pub decoder_sparse_step: usize,
    /// Layers (from 0) that are dense all the same. Default none.
    #[config(default = "Vec::new()")]
    pub mlp_only_layers: Vec<usize>,
    /// Inner width of dense feed-forward layers. Default 5120.
    #[config(default = 5120)]
    pub intermediate_size: usize,
    /// Added to the mean square in every RMSNorm. Default 1e-6.
    #[config(default = 1e-6)]
    pub rms_norm_eps: f64,
    /// The head uses the embeddings' weight. Default false.
    #[config(default = false)]
    pub tie_word_embeddings: bool,
}

impl Qwen3NextConfig {
    /// What each layer is.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] for another number of `layer_types` than layers, or an interval of 0.
    pub fn layers(&self) -> Result<Vec<Qwen3NextLayer>, ConfigError> {
        let (count, interval) = (self.num_hidden_layers, self.full_attention_interval);
        match &self.layer_types {
            Some(layers) if layers.len() == count => Ok(layers.clone()),
            Some(layers) => {
                let need = format!("{count}, one a layer");
                Err(ConfigError::new("layer_types", format!("{} layers", layers.len()), need))
            }
            None if interval == 0 => Err(ConfigError::new("full_attention_interval", 0, "at least 1")),
            None => Ok((1..=count)
                .map(|number| match number.is_multiple_of(interval) {
                    true => Qwen3NextLayer::FullAttention,
                    false => Qwen3NextLayer::LinearAttention,
                })
                .collect()),
        }
    }

    /// The configuration of a gated DeltaNet layer.
    pub fn linear_attention(&self) -> PackedGatedDeltaNetConfig {
        PackedGatedDeltaNetConfig {
            hidden_size: self.hidden_size,
            linear_num_key_heads: self.linear_num_key_heads,
            linear_num_value_heads: self.linear_num_value_heads,
            linear_key_head_dim: self.linear_key_head_dim,
            linear_value_head_dim: self.linear_value_head_dim,
            linear_conv_kernel_dim: self.linear_conv_kernel_dim,
            rms_norm_eps: self.rms_norm_eps,
        }
    }

    /// The configuration of a gated attention layer.
    pub fn full_attention(&self) -> CausalAttentionConfig {
        let gate = AttentionGateConfig::new().with_fused(Some(GateLayout::Head));
        CausalAttentionConfig::new(self.hidden_size, self.num_attention_heads)
            .with_num_kv_heads(Some(self.num_key_value_heads))
            .with_head_dim(Some(self.head_dim))
            .with_rope_theta(Some(self.rope_theta))
            .with_partial_rotary_factor(self.partial_rotary_factor)
            .with_qkv_bias(self.attention_bias)
            .with_output_bias(self.attention_bias)
            .with_qk_norm(true)
            .with_zero_centered_norm(true)
            .with_norm_eps(self.rms_norm_eps)
            .with_gate(Some(gate))
    }

    /// The configuration of a layer of experts.
    pub fn experts(&self) -> MoeLayerConfig {
        let shared = self.shared_expert_intermediate_size;
        MoeLayerConfig::new(self.hidden_size, self.moe_intermediate_size)
            .with_num_experts(self.num_experts)
            .with_num_experts_per_tok(self.num_experts_per_tok)
            .with_norm_topk_prob(self.norm_topk_prob)
            .with_shared_intermediate_size(shared)
            .with_shared_expert_gate(shared > 0)
            .with_layout(MoeLayout::Qwen2Moe)
    }

    /// Whether the layer of this index, from 0, has experts.
    fn is_sparse(&self, layer: usize) -> bool {
        self.num_experts > 0
            && !self.mlp_only_layers.contains(&layer)
            && (layer + 1).is_multiple_of(self.decoder_sparse_step)
    }

    fn size(&self) -> BackboneSize {
        BackboneSize {
            vocab_size: self.vocab_size,
            hidden_size: self.hidden_size,
            num_hidden_layers: self.num_hidden_layers,
            intermediate_size: Some(self.intermediate_size),
            hidden_ratio: 4.0,
            norm_eps: self.rms_norm_eps,
            tie_word_embeddings: self.tie_word_embeddings,
        }
    }

    fn check(&self) -> Result<(), ConfigError> {
        if self.decoder_sparse_step == 0 {
            return Err(ConfigError::new("decoder_sparse_step", 0, "at least 1"));
        }
        match self.mlp_only_layers.iter().find(|layer| **layer >= self.num_hidden_layers) {
            Some(layer) => {
                let need = format!("layers below {}", self.num_hidden_layers);
                Err(ConfigError::new("mlp_only_layers", layer, need))
            }
            None => Ok(()),
        }
    }
}

impl ModuleConfig for Qwen3NextConfig {
    type Module = Qwen3NextForCausalLm;

    fn try_init(&self, device: &Device) -> Result<Qwen3NextForCausalLm, ConfigError> {
        self.check()?;
        let layers = self.layers()?;
        let (linear, full) = (self.linear_attention(), self.full_attention());
        let mixer = |index: usize| match layers[index] {
            Qwen3NextLayer::LinearAttention => linear.try_init(device).map(Qwen3NextMixer::Linear),
            Qwen3NextLayer::FullAttention => {
                full.try_init(device).map(Qwen3NextMixer::Full).map_err(attention_field)
            }
        };
        let experts = self.experts();
        let dense = SwiGluConfig::new(self.hidden_size, self.intermediate_size);
        let feed_forward = |index| match self.is_sparse(index) {
            true => experts.try_init(device).map(DecoderFeedForward::Sparse).map_err(|error| {
                let shared = error.field == "shared_intermediate_size";
                let field = if shared { "shared_expert_intermediate_size".into() } else { error.field };
                ConfigError { field, ..error }
            }),
            false => dense.try_init(device).map(DecoderFeedForward::Dense),
        };
        let eps = |error: ConfigError| match error.field.as_str() {
            "norm_eps" => ConfigError { field: "rms_norm_eps".to_string(), ..error },
            _ => error,
        };
        let mut model =
            CausalModel::try_with_feed_forward(&self.size(), device, mixer, feed_forward).map_err(eps)?;
        let norm = RmsNormConfig::new(self.hidden_size).with_eps(self.rms_norm_eps).with_zero_centered(true);
        for block in &mut model.model.layers {
            block.attn_norm = norm.try_init(device)?;
            block.mlp_norm = norm.try_init(device)?;
        }
        model.model.norm = norm.try_init(device)?;
        Ok(model)
    }
}
