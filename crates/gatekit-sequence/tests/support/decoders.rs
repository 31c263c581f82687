//! Small models of Kimi Linear and DeepSeek-V3 that together use every optional part.

use gatekit_sequence::deepseek_v3::DeepseekV3Config;
use gatekit_sequence::kimi_linear::KimiLinearConfig;

/// Three recurrent layers to one of attention, the first feed-forward layer dense.
pub fn kimi() -> KimiLinearConfig {
    KimiLinearConfig::hybrid(37, 16, 4, 4)
        .with_intermediate_size(20)
        .with_linear_num_heads(2)
        .with_linear_head_dim(4)
        .with_num_attention_heads(2)
        .with_kv_lora_rank(6)
        .with_qk_nope_head_dim(4)
        .with_qk_rope_head_dim(2)
        .with_v_head_dim(4)
        .with_num_experts(6)
        .with_num_experts_per_token(2)
        .with_moe_intermediate_size(6)
}

pub fn kimis() -> Vec<KimiLinearConfig> {
    vec![
        kimi(),
        KimiLinearConfig {
            kda_layers: vec![2],
            full_attn_layers: vec![1, 3],
            num_hidden_layers: 3,
            ..kimi()
        }
        .with_lower_bound(Some(-5.0))
        .with_allow_neg_eigval(true)
        .with_output_gate_bias(true)
        .with_use_short_conv(false)
        .with_chunk_size(16)
        .with_first_k_dense_replace(0)
        .with_num_shared_experts(2)
        .with_num_expert_group(3)
        .with_topk_group(2)
        .with_q_lora_rank(Some(5)),
        KimiLinearConfig::hybrid(37, 16, 2, 2).with_first_k_dense_replace(2).with_tie_word_embeddings(true),
        KimiLinearConfig { kda_layers: vec![1, 2], full_attn_layers: vec![], num_hidden_layers: 2, ..kimi() }
            .with_num_experts_per_token(1)
            .with_num_shared_experts(0)
            .with_moe_router_activation_func("softmax".into())
            .with_short_conv_kernel_size(2),
    ]
    .into_iter()
    .map(|config| {
        let small = kimi();
        KimiLinearConfig {
            intermediate_size: small.intermediate_size,
            linear_num_heads: small.linear_num_heads,
            linear_head_dim: small.linear_head_dim,
            num_attention_heads: small.num_attention_heads,
            kv_lora_rank: small.kv_lora_rank,
            qk_nope_head_dim: small.qk_nope_head_dim,
            qk_rope_head_dim: small.qk_rope_head_dim,
            v_head_dim: small.v_head_dim,
            num_experts: small.num_experts,
            moe_intermediate_size: small.moe_intermediate_size,
            ..config
        }
    })
    .collect()
}

/// A query latent, two groups of experts, the first feed-forward layer dense.
pub fn deepseek() -> DeepseekV3Config {
    DeepseekV3Config::new(37, 16, 2)
        .with_intermediate_size(20)
        .with_num_attention_heads(2)
        .with_kv_lora_rank(6)
        .with_q_lora_rank(Some(5))
        .with_qk_nope_head_dim(4)
        .with_qk_rope_head_dim(2)
        .with_v_head_dim(4)
        .with_n_routed_experts(6)
        .with_num_experts_per_tok(2)
        .with_moe_intermediate_size(6)
        .with_first_k_dense_replace(1)
        .with_n_group(2)
        .with_topk_group(1)
}

pub fn deepseeks() -> Vec<DeepseekV3Config> {
    vec![
        deepseek(),
        deepseek()
            .with_q_lora_rank(None)
            .with_attention_bias(true)
            .with_rope_interleave(false)
            .with_rope_theta(500.0)
            .with_n_shared_experts(0)
            .with_norm_topk_prob(false)
            .with_n_group(1),
        deepseek().with_first_k_dense_replace(0).with_n_shared_experts(2).with_tie_word_embeddings(true),
    ]
}
