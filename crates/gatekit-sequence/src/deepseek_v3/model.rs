//! The language model.

use burn::config::Config;
use burn::tensor::Device;
use gatekit_core::attention::{LatentAttention, LatentAttentionConfig, LatentCache};
use gatekit_core::feed_forward::SwiGluConfig;
use gatekit_core::moe::{MoeLayerConfig, MoeLayout};
use gatekit_core::router::ScoringFunc;
use gatekit_core::{ConfigError, ModuleConfig, check_sizes};

use crate::backbone::{BackboneSize, CausalModel, ModelState};
use crate::decoder_layout::check_prediction_layers;
use crate::feed_forward::DecoderFeedForward;

/// The language model of DeepSeek-V3.
pub type DeepseekV3ForCausalLm = CausalModel<LatentAttention, DecoderFeedForward>;

/// Its streaming state: a cache of latents a layer.
pub type DeepseekV3State = ModelState<LatentCache>;

/// Configuration of [`DeepseekV3ForCausalLm`]. Field names are those of the released models;
/// defaults are the sizes of the 671B model.
#[derive(Config, Debug)]
pub struct DeepseekV3Config {
    /// Number of tokens; 129280 in the 671B model.
    pub vocab_size: usize,
    /// Width `D`; 7168 in the 671B model.
    pub hidden_size: usize,
    /// Number of blocks; 61 in the 671B model.
    pub num_hidden_layers: usize,
    /// Width of dense feed-forward layers.
    #[config(default = 18432)]
    pub intermediate_size: usize,
    /// Heads.
    #[config(default = 128)]
    pub num_attention_heads: usize,
    /// Channels of the latent of keys and values.
    #[config(default = 512)]
    pub kv_lora_rank: usize,
    /// Channels of the latent of queries; `None`: one projection.
    #[config(default = "Some(1536)")]
    pub q_lora_rank: Option<usize>,
    /// Channels of a head's key that come from the latent.
    #[config(default = 128)]
    pub qk_nope_head_dim: usize,
    /// Channels of the rotated key that all heads share, even.
    #[config(default = 64)]
    pub qk_rope_head_dim: usize,
    /// Channels of a head's value.
    #[config(default = 128)]
    pub v_head_dim: usize,
    /// Base of the rotary positions.
    #[config(default = 10000.0)]
    pub rope_theta: f64,
    /// Neighbouring channels rotate together.
    #[config(default = true)]
    pub rope_interleave: bool,
    /// Biases on the projections to the latents and on the output.
    #[config(default = false)]
    pub attention_bias: bool,
    /// Experts of a sparse feed-forward layer.
    #[config(default = 256)]
    pub n_routed_experts: usize,
    /// Experts that a token goes to.
    #[config(default = 8)]
    pub num_experts_per_tok: usize,
    /// Experts that every token goes to, 0 for none: together one SwiGLU of their joint width.
    #[config(default = 1)]
    pub n_shared_experts: usize,
    /// Width of an expert.
    #[config(default = 2048)]
    pub moe_intermediate_size: usize,
    /// Leading layers with a dense feed-forward layer.
    #[config(default = 3)]
    pub first_k_dense_replace: usize,
    /// Groups of consecutive experts.
    #[config(default = 8)]
    pub n_group: usize,
    /// Groups that a token may choose from; a group counts by the sum of its two best scores.
    #[config(default = 4)]
    pub topk_group: usize,
    /// Divide the weights of a token's experts by their sum.
    #[config(default = true)]
    pub norm_topk_prob: bool,
    /// Multiplies these weights.
    #[config(default = 2.5)]
    pub routed_scaling_factor: f64,
    /// Added to the mean square in every RMSNorm but those of the latents, where it is 1e-6.
    #[config(default = 1e-6)]
    pub rms_norm_eps: f64,
    /// The head uses the embeddings' weight.
    #[config(default = false)]
    pub tie_word_embeddings: bool,
    /// Layers for further tokens that a published file may hold and this model does not need.
    #[config(default = 1)]
    pub num_nextn_predict_layers: usize,
}

impl DeepseekV3Config {
    /// The configuration of an attention layer.
    pub fn attention(&self) -> LatentAttentionConfig {
        LatentAttentionConfig {
            hidden_size: self.hidden_size,
            num_attention_heads: self.num_attention_heads,
            kv_lora_rank: self.kv_lora_rank,
            q_lora_rank: self.q_lora_rank,
            qk_nope_head_dim: self.qk_nope_head_dim,
            qk_rope_head_dim: self.qk_rope_head_dim,
            v_head_dim: self.v_head_dim,
            rope_theta: Some(self.rope_theta),
            rope_interleave: self.rope_interleave,
            attention_bias: self.attention_bias,
        }
    }

    /// The configuration of a sparse feed-forward layer.
    pub fn sparse_layer(&self) -> MoeLayerConfig {
        MoeLayerConfig::new(self.hidden_size, self.moe_intermediate_size)
            .with_num_experts(self.n_routed_experts)
            .with_num_experts_per_tok(self.num_experts_per_tok)
            .with_scoring_func(ScoringFunc::Sigmoid)
            .with_norm_topk_prob(self.norm_topk_prob)
            .with_routed_scaling_factor(self.routed_scaling_factor)
            .with_n_group(self.n_group)
            .with_topk_group(self.topk_group)
            .with_shared_intermediate_size(self.n_shared_experts.saturating_mul(self.moe_intermediate_size))
            .with_layout(MoeLayout::DeepseekV3)
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
            ("num_hidden_layers", self.num_hidden_layers),
            ("intermediate_size", self.intermediate_size),
        ])?;
        if self.first_k_dense_replace < self.num_hidden_layers {
            check_sizes(&[
                ("n_routed_experts", self.n_routed_experts),
                ("moe_intermediate_size", self.moe_intermediate_size),
                ("n_shared_experts", self.sparse_layer().shared_intermediate_size.max(1)),
            ])?;
        }
        check_prediction_layers(self.num_nextn_predict_layers)?;
        if !(self.rms_norm_eps.is_finite() && self.rms_norm_eps > 0.0) {
            return Err(ConfigError::new("rms_norm_eps", self.rms_norm_eps, "a positive number"));
        }
        Ok(())
    }
}

impl ModuleConfig for DeepseekV3Config {
    type Module = DeepseekV3ForCausalLm;

    fn try_init(&self, device: &Device) -> Result<DeepseekV3ForCausalLm, ConfigError> {
        self.check()?;
        let (attention, sparse) = (self.attention(), self.sparse_layer());
        let dense = SwiGluConfig::new(self.hidden_size, self.intermediate_size);
        CausalModel::try_with_feed_forward(
            &self.size(),
            device,
            |_| attention.try_init(device),
            |index| match index < self.first_k_dense_replace {
                true => dense.try_init(device).map(DecoderFeedForward::Dense),
                false => sparse.try_init(device).map(DecoderFeedForward::Sparse).map_err(published_field),
            },
        )
    }
}

/// The router's errors under the field names of this model.
fn published_field(mut error: ConfigError) -> ConfigError {
    error.field = match error.field.as_str() {
        "num_experts" => "n_routed_experts".into(),
        "group_score" => "n_group".into(),
        _ => error.field,
    };
    error
}
