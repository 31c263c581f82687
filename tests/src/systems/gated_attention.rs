//! `gated-attention`: the layer in its general and its fused form, its diagnostics, and the language model.

use burn::tensor::{Device, Tensor};
use gatekit::{
    core::{
        ModuleConfig,
        attention::{GateGranularity, GateLayout, GateMode, GatePosition, OutputGateKind, SdpaTransform},
        checkpoint::PretrainedConfig,
        gate::GateActivation,
        probe::AttentionDiagnosticsConfig,
        sequence::Packing,
    },
    sequence::{
        CausalLm,
        gated_attention::{FusedGatedAttentionConfig, GatedAttentionConfig, GatedAttentionModelConfig},
    },
};

use super::Row;
use crate::{
    case::Case,
    evaluation::{Evaluation, Produced, once},
    failure::Result,
    fields::Fields,
};

/// The system's components.
pub const ROWS: &[Row] = &[
    Row { component: "gated-attention", run: run_layer },
    Row { component: "fused-gated-attention", run: run_fused },
    Row { component: "attention-diagnostics", run: run_diagnostics },
    Row { component: "model", run: run_model },
];

fn packing(evaluation: &mut Evaluation<'_>) -> Result<Option<Packing>> {
    let mask = evaluation.optional_bool("attention_mask")?;
    Ok(mask.map(|mask| Packing::from_mask(&mask)).transpose()?)
}

fn run_layer(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    once(case, device, |evaluation| {
        let mut fields = evaluation.config();
        let config = GatedAttentionConfig {
            hidden_size: fields.required("hidden_size")?,
            num_heads: fields.required("num_heads")?,
            num_kv_heads: fields.optional("num_kv_heads")?,
            head_dim: fields.optional("head_dim")?,
            gate_position: fields.with_default("gate_position", GatePosition::Sdpa)?,
            gate_granularity: fields.with_default("gate_granularity", GateGranularity::Elementwise)?,
            gate_head_shared: fields.with_default("gate_head_shared", false)?,
            gate_mode: fields.with_default("gate_mode", GateMode::Multiplicative)?,
            gate_activation: fields.with_default("gate_activation", GateActivation::Sigmoid)?,
            gate_input_dependent: fields.with_default("gate_input_dependent", true)?,
            sdpa_transform: fields.with_default("sdpa_transform", SdpaTransform::None)?,
            qk_norm: fields.with_default("qk_norm", true)?,
            rms_norm_eps: fields.with_default("rms_norm_eps", 1e-6)?,
            rope_theta: fields.with_default("rope_theta", Some(10000.0))?,
        };
        fields.finish()?;
        let layer = config.try_init(evaluation.device())?;
        let layer = evaluation.load_as(layer, &GatedAttentionConfig::layout())?;
        let x = evaluation.float("hidden_states")?;
        let packing = packing(evaluation)?;
        evaluation.output("output", layer.forward(x.clone(), packing.as_ref()))?;
        match layer.gate_scores(x) {
            Some(scores) if packing.is_none() => evaluation.output("gate_scores", scores),
            _ => Ok(()),
        }
    })
}

fn fused(fields: &mut Fields<'_>) -> Result<FusedGatedAttentionConfig> {
    Ok(FusedGatedAttentionConfig {
        hidden_size: fields.required("hidden_size")?,
        num_attention_heads: fields.required("num_attention_heads")?,
        num_key_value_heads: fields.optional("num_key_value_heads")?,
        head_dim: fields.optional("head_dim")?,
        gate: fields.with_default("gate", OutputGateKind::Elementwise)?,
        gate_layout: fields.with_default("gate_layout", GateLayout::KvGroup)?,
        use_qk_norm: fields.with_default("use_qk_norm", true)?,
        zero_centered_norm: fields.with_default("zero_centered_norm", false)?,
        qkv_bias: fields.with_default("qkv_bias", false)?,
        partial_rotary_factor: fields.with_default("partial_rotary_factor", 1.0)?,
        rms_norm_eps: fields.with_default("rms_norm_eps", 1e-6)?,
        rope_theta: fields.with_default("rope_theta", Some(10000.0))?,
    })
}

fn run_fused(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    once(case, device, |evaluation| {
        let mut fields = evaluation.config();
        let config = fused(&mut fields)?;
        fields.finish()?;
        let layer = evaluation.load(config.try_init(evaluation.device())?)?;
        let x = evaluation.float("hidden_states")?;
        let packing = packing(evaluation)?;
        evaluation.output("output", layer.forward(x, packing.as_ref()))
    })
}

fn run_diagnostics(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    once(case, device, |evaluation| {
        let mut fields = evaluation.config();
        let config = AttentionDiagnosticsConfig {
            sparsity_threshold: fields.with_default("sparsity_threshold", 0.1)?,
            skip_first_query: fields.with_default("skip_first_query", false)?,
        };
        fields.finish()?;
        let (weights, hidden) = (evaluation.float("attention_weights")?, evaluation.float("hidden_states")?);
        let scores = evaluation.optional_float("gate_scores")?;
        let device = evaluation.device().clone();
        let measured = config.measure(weights, scores, hidden)?;
        let (share, activations) = (measured.first_token_share, measured.activations);
        let mut numbers = vec![
            ("first_token_share", vec![share.mean]),
            ("first_token_share_by_head", share.by_head),
            ("max_activation", vec![activations.max]),
            ("median_activation", vec![activations.median]),
            ("activation_ratio", vec![activations.ratio]),
        ];
        if let Some(gate) = measured.gate {
            numbers.push(("gate_mean", vec![gate.mean]));
            numbers.push(("gate_mean_by_head", gate.mean_by_head));
            numbers.push(("gate_sparsity", vec![gate.sparsity]));
        }
        for (name, values) in numbers {
            evaluation.output(name, Tensor::<1>::from_floats(values.as_slice(), &device))?;
        }
        Ok(())
    })
}

fn run_model(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    once(case, device, |evaluation| {
        let mut fields = evaluation.config();
        let layer = fused(&mut fields)?;
        let config = GatedAttentionModelConfig {
            moe: None,
            vocab_size: fields.required("vocab_size")?,
            hidden_size: layer.hidden_size,
            num_hidden_layers: fields.required("num_hidden_layers")?,
            intermediate_size: fields.required("intermediate_size")?,
            num_attention_heads: layer.num_attention_heads,
            num_key_value_heads: layer.num_key_value_heads,
            head_dim: layer.head_dim,
            gate: layer.gate,
            gate_layout: layer.gate_layout,
            use_qk_norm: layer.use_qk_norm,
            zero_centered_norm: layer.zero_centered_norm,
            qkv_bias: layer.qkv_bias,
            partial_rotary_factor: layer.partial_rotary_factor,
            rms_norm_eps: layer.rms_norm_eps,
            rope_theta: layer.rope_theta,
            tie_word_embeddings: fields.with_default("tie_word_embeddings", false)?,
        };
        fields.finish()?;
        let model = evaluation.load_as(config.try_init(evaluation.device())?, &config.layout())?;
        let input_ids = evaluation.int("input_ids")?;
        let mask = evaluation.optional_bool("attention_mask")?;
        let logits = model.forward(input_ids, mask);
        if let Some(labels) = evaluation.optional_int("labels")? {
            evaluation.output("loss", model.loss(logits.clone(), labels)?)?;
        }
        evaluation.output("logits", logits)
    })
}
