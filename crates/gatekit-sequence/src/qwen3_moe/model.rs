//! The language model.

use burn::config::Config;
use burn::tensor::Device;
use gatekit_core::attention::{CausalAttention, CausalAttentionConfig, KvCache};
use gatekit_core::feed_forward::SwiGluConfig;
use gatekit_core::moe::{MoeLayerConfig, MoeLayout};
use gatekit_core::{ConfigError, ModuleConfig, check_sizes};

use crate::backbone::{BackboneSize, CausalModel, ModelState};
use crate::decoder_layout::attention_field;
use crate::feed_forward::DecoderFeedForward;

/// The language model of Qwen3-MoE.
pub type Qwen3MoeForCausalLm = CausalModel<CausalAttention, DecoderFeedForward>;

/// Its streaming state: keys and values of the tokens so far.
pub type Qwen3MoeState = ModelState<KvCache>;

/// Configuration of [`Qwen3MoeForCausalLm`]. Field names are those of the released models; defaults
/// are the sizes of Qwen3-30B-A3B.
#[derive(Config, Debug)]
pub struct Qwen3MoeConfig {
    /// Number of tokens; 151936 in 30B-A3B.
    pub vocab_size: usize,
    /// Width `D`; 2048 in 30B-A3B.
    pub hidden_size: usize,
    /// Number of blocks; 48 in 30B-A3B.
    pub num_hidden_layers: usize,
    /// Inner width of dense feed-forward layers.
    #[config(default = 6144)]
    pub intermediate_size: usize,
    /// Query heads.
    #[config(default = 32)]
    pub num_attention_heads: usize,
    /// Key and value heads, each shared by consecutive query heads.
    #[config(default = 4)]
    pub num_key_value_heads: usize,
    /// Channels of a head, 128 in 30B-A3B; `None`: `D / num_attention_heads`.
    pub head_dim: Option<usize>,
    /// Biases on all projections of attention.
    #[config(default = false)]
    pub attention_bias: bool,
    /// Whether the window counts.
    #[config(default = false)]
    pub use_sliding_window: bool,
    /// With `use_sliding_window` every token sees this many tokens, itself included; `None`: all
    /// before it.
    pub sliding_window: Option<usize>,
    /// Experts of a sparse layer, 0: all layers are dense.
    #[config(default = 128)]
    pub num_experts: usize,
    /// Experts that a token goes to.
    #[config(default = 8)]
    pub num_experts_per_tok: usize,
    /// Inner width of an expert.
    #[config(default = 768)]
    pub moe_intermediate_size: usize,
    /// Divide the weights of a token's experts by their sum; true in the released models.
    #[config(default = false)]
    pub norm_topk_prob: bool,
    /// Every so many layers are sparse, the last of each group; at least 1.
    #[config(default = 1)]
    pub decoder_sparse_step: usize,
    /// Layers, from 0, that are dense all the same.
    #[config(default = "Vec::new()")]
    pub mlp_only_layers: Vec<usize>,
    /// Base of the rotary positions; 1000000 in the released models.
    #[config(default = 10000.0)]
    pub rope_theta: f64,
    /// Added to the mean square in every RMSNorm.
    #[config(default = 1e-6)]
    pub rms_norm_eps: f64,
    /// The head uses the embeddings' weight.
    #[config(default = false)]
    pub tie_word_embeddings: bool,
}

impl Qwen3MoeConfig {
    /// The configuration of an attention layer.
    pub fn attention(&self) -> CausalAttentionConfig {
        CausalAttentionConfig::new(self.hidden_size, self.num_attention_heads)
            .with_num_kv_heads(Some(self.num_key_value_heads))
            .with_head_dim(self.head_dim)
            .with_window_size(self.sliding_window.filter(|_| self.use_sliding_window))
            .with_rope_theta(Some(self.rope_theta))
            .with_qkv_bias(self.attention_bias)
            .with_output_bias(self.attention_bias)
            .with_qk_norm(true)
            .with_norm_eps(self.rms_norm_eps)
    }

    /// The configuration of a sparse feed-forward layer.
    pub fn experts(&self) -> MoeLayerConfig {
        MoeLayerConfig::new(self.hidden_size, self.moe_intermediate_size)
            .with_num_experts(self.num_experts)
            .with_num_experts_per_tok(self.num_experts_per_tok)
            .with_norm_topk_prob(self.norm_topk_prob)
            .with_layout(MoeLayout::Qwen3Moe)
    }

    /// Whether the layer of this index, from 0, has experts.
    pub fn is_sparse(&self, layer: usize) -> bool {
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
        check_sizes(&[
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("moe_intermediate_size", self.moe_intermediate_size),
            ("num_attention_heads", self.num_attention_heads),
            ("head_dim", self.head_dim.unwrap_or(1)),
        ])?;
        if self.decoder_sparse_step == 0 {
            return Err(ConfigError::new("decoder_sparse_step", 0, "at least 1"));
        }
        match self.mlp_only_layers.iter().find(|layer| **layer >= self.num_hidden_layers) {
            Some(layer) => {
                let need = format!("layers below num_hidden_layers = {}", self.num_hidden_layers);
                Err(ConfigError::new("mlp_only_layers", layer, need))
            }
            None => Ok(()),
        }
    }
}

impl ModuleConfig for Qwen3MoeConfig {
    type Module = Qwen3MoeForCausalLm;

    fn try_init(&self, device: &Device) -> Result<Qwen3MoeForCausalLm, ConfigError> {
        self.check()?;
        let (attention, experts) = (self.attention(), self.experts());
        let dense = SwiGluConfig::new(self.hidden_size, self.intermediate_size);
        CausalModel::try_with_feed_forward(
            &self.size(),
            device,
            |_| attention.try_init(device),
            |layer| match self.is_sparse(layer) {
                true => experts.try_init(device).map(DecoderFeedForward::Sparse),
                false => dense.try_init(device).map(DecoderFeedForward::Dense),
            },
        )
        .map_err(attention_field)
    }
}
