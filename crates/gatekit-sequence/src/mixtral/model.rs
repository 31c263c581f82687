//! The language model.

use burn::config::Config;
use burn::tensor::Device;
use gatekit_core::attention::{CausalAttention, CausalAttentionConfig, KvCache};
use gatekit_core::moe::{MoeLayerConfig, MoeLayout};
use gatekit_core::router::RouterNoise;
use gatekit_core::{ConfigError, ModuleConfig, check_sizes};

use crate::backbone::{BackboneSize, CausalModel, ModelState};
use crate::decoder_layout::attention_field;
use crate::feed_forward::DecoderFeedForward;

/// The language model of Mixtral.
pub type MixtralForCausalLm = CausalModel<CausalAttention, DecoderFeedForward>;

/// Its streaming state: keys and values of the tokens so far.
pub type MixtralState = ModelState<KvCache>;

/// Configuration of [`MixtralForCausalLm`]. Field names are those of the released models; defaults
/// are the sizes of Mixtral 8x7B.
#[derive(Config, Debug)]
pub struct MixtralConfig {
    /// Number of tokens; 32000 in 8x7B.
    pub vocab_size: usize,
    /// Width `D`; 4096 in 8x7B.
    pub hidden_size: usize,
    /// Number of blocks; 32 in 8x7B.
    pub num_hidden_layers: usize,
    /// Inner width of an expert.
    #[config(default = 14336)]
    pub intermediate_size: usize,
    /// Query heads.
    #[config(default = 32)]
    pub num_attention_heads: usize,
    /// Key and value heads, each shared by consecutive query heads.
    #[config(default = 8)]
    pub num_key_value_heads: usize,
    /// Channels of a head; `None`: `D / num_attention_heads`.
    pub head_dim: Option<usize>,
    /// Every token sees this many tokens, itself included; `None`: all before it.
    pub sliding_window: Option<usize>,
    /// Experts of a layer.
    #[config(default = 8)]
    pub num_local_experts: usize,
    /// Experts that a token goes to.
    #[config(default = 2)]
    pub num_experts_per_tok: usize,
    /// In training the tokens that a router sees are multiplied by uniform factors within
    /// `1 -+ router_jitter_noise`; 0: not.
    #[config(default = 0.0)]
    pub router_jitter_noise: f64,
    /// Base of the rotary positions.
    #[config(default = 1000000.0)]
    pub rope_theta: f64,
    /// Added to the mean square in every RMSNorm.
    #[config(default = 1e-5)]
    pub rms_norm_eps: f64,
    /// The head uses the embeddings' weight.
    #[config(default = false)]
    pub tie_word_embeddings: bool,
}

impl MixtralConfig {
    /// The configuration of an attention layer.
    pub fn attention(&self) -> CausalAttentionConfig {
        CausalAttentionConfig::new(self.hidden_size, self.num_attention_heads)
            .with_num_kv_heads(Some(self.num_key_value_heads))
            .with_head_dim(self.head_dim)
            .with_window_size(self.sliding_window)
            .with_rope_theta(Some(self.rope_theta))
    }

    /// The configuration of a feed-forward layer.
    pub fn experts(&self) -> MoeLayerConfig {
        let config = MoeLayerConfig::new(self.hidden_size, self.intermediate_size)
            .with_num_experts(self.num_local_experts)
            .with_num_experts_per_tok(self.num_experts_per_tok)
            .with_layout(MoeLayout::Mixtral);
        match self.router_jitter_noise {
            0.0 => config,
            noise => config.with_noise(RouterNoise::Jitter).with_noise_epsilon(noise),
        }
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
}

impl ModuleConfig for MixtralConfig {
    type Module = MixtralForCausalLm;

    fn try_init(&self, device: &Device) -> Result<MixtralForCausalLm, ConfigError> {
        check_sizes(&[
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_attention_heads", self.num_attention_heads),
            ("head_dim", self.head_dim.unwrap_or(1)),
        ])?;
        let (attention, experts) = (self.attention(), self.experts());
        CausalModel::try_with_feed_forward(
            &self.size(),
            device,
            |_| attention.try_init(device),
            |_| experts.try_init(device).map(DecoderFeedForward::Sparse).map_err(experts_field),
        )
        .map_err(attention_field)
    }
}

/// The layer's errors under the field names of this model.
fn experts_field(error: ConfigError) -> ConfigError {
    let field = match error.field.as_str() {
        "num_experts" => "num_local_experts",
        "moe_intermediate_size" => "intermediate_size",
        "noise_epsilon" => "router_jitter_noise",
        field => field,
    };
    ConfigError { field: field.to_string(), ..error }
}
