//! Layers and stacks of linear attention.

use gatekit_core::attention::CausalAttentionConfig;
use gatekit_core::gate::GateActivation;
use gatekit_sequence::gla::GatedLinearAttentionConfig;
use gatekit_sequence::hybrid_linear_attention::{
    DeltaNetConfig, GatedDeltaNetConfig, Hgrn2Config, HgrnConfig, HybridAttentionConfig, HybridConfig,
    HybridMixerConfig, RetentionConfig,
};

/// Layers of width 16 that together use every optional part.
pub fn layers() -> Vec<HybridMixerConfig> {
    let gdn = GatedDeltaNetConfig::new(16).with_num_heads(2).with_head_dim(4);
    let delta = DeltaNetConfig::new(16).with_num_heads(2);
    vec![
        RetentionConfig::new(16).with_num_heads(2).into(),
        RetentionConfig::new(16).with_num_heads(4).with_expand_v(1.0).with_use_short_conv(true).into(),
        HgrnConfig::new(16).into(),
        HgrnConfig::new(16).with_expand_ratio(1.5).with_use_short_conv(true).with_conv_size(3).into(),
        Hgrn2Config::new(16).with_num_heads(Some(2)).into(),
        Hgrn2Config::new(16).with_num_heads(Some(4)).with_use_short_conv(true).into(),
        delta.clone().into(),
        delta
            .clone()
            .with_use_gate(true)
            .with_use_beta(false)
            .with_qk_activation("elu".into())
            .with_qk_norm("sum".into())
            .with_expand_k(0.5)
            .into(),
        delta
            .clone()
            .with_qk_activation("relu".into())
            .with_use_short_conv(false)
            .with_allow_neg_eigval(true)
            .into(),
        delta.with_qk_activation("identity".into()).into(),
        gdn.clone().into(),
        gdn.clone()
            .with_num_v_heads(Some(4))
            .with_use_short_conv(false)
            .with_output_gate_activation(GateActivation::Sigmoid)
            .into(),
        gdn.with_use_gate(false).with_allow_neg_eigval(true).with_conv_size(1).into(),
        GatedLinearAttentionConfig::new(16).with_num_heads(2).with_gate_low_rank_dim(4).into(),
        CausalAttentionConfig::new(16, 2).with_window_size(Some(3)).into(),
    ]
}

/// A stack of two such layers, one after and one before attention.
pub fn stack(mixer: HybridMixerConfig) -> HybridConfig {
    let attn = HybridAttentionConfig::new(vec![1], 4).with_num_kv_heads(Some(2));
    HybridConfig::new(37, 3, mixer).with_attn(Some(attn)).with_intermediate_size(Some(24))
}
