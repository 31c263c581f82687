//! `gla`: gated linear attention, as scan, layer and language model.

use burn::tensor::Device;
use gatekit::{
    core::{ModuleConfig, scan::gated_linear_attention, sequence::Packing},
    sequence::{GatedLinearAttentionConfig, GlaConfig, gla::GlaLayerState, lm::CausalLm},
};

use super::{Row, scan};
use crate::{
    case::Case,
    evaluation::{Evaluation, Produced, every_form},
    failure::Result,
    fields::Fields,
};

/// The system's components.
pub const ROWS: &[Row] = &[
    Row { component: "gated-linear-attention", run: run_scan },
    Row { component: "gla-layer", run: run_layer },
    Row { component: "gla-model", run: run_model },
];

fn run_scan(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    every_form(case, device, |evaluation, form| {
        let mut fields = evaluation.config();
        let options = scan::options(&mut fields, true, form)?;
        fields.finish()?;
        let (q, k, v) = (evaluation.float("q")?, evaluation.float("k")?, evaluation.float("v")?);
        let log_gate = evaluation.float("log_gate")?;
        let (initial_state, boundaries) = scan::state_and_boundaries(evaluation, &v)?;
        let result = gated_linear_attention(q, k, v, log_gate, initial_state, boundaries.as_ref(), &options);
        scan::outputs(evaluation, result)
    })
}

/// The layer's fields; `norm_eps` has another default in the model.
pub(super) fn layer(fields: &mut Fields<'_>, norm_eps: f64) -> Result<GatedLinearAttentionConfig> {
    let (chunk_size, sub_chunk_size) = scan::tiling(fields, true)?;
    Ok(GatedLinearAttentionConfig {
        hidden_size: fields.required("hidden_size")?,
        num_heads: fields.with_default("num_heads", 4)?,
        num_kv_heads: fields.optional("num_kv_heads")?,
        expand_k: fields.with_default("expand_k", 0.5)?,
        expand_v: fields.with_default("expand_v", 1.0)?,
        feature_map: fields.optional("feature_map")?,
        use_short_conv: fields.with_default("use_short_conv", false)?,
        conv_size: fields.with_default("conv_size", 4)?,
        conv_bias: fields.with_default("conv_bias", false)?,
        use_output_gate: fields.with_default("use_output_gate", true)?,
        gate_fn: fields.with_default("gate_fn", "swish".into())?,
        gate_low_rank_dim: fields.with_default("gate_low_rank_dim", 16)?,
        gate_logit_normalizer: fields.with_default("gate_logit_normalizer", 16.0)?,
        clamp_min: fields.optional("clamp_min")?,
        norm_eps: fields.with_default("norm_eps", norm_eps)?,
        chunk_size,
        sub_chunk_size,
    })
}

fn run_layer(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    every_form(case, device, |evaluation, form| {
        let mut fields = evaluation.config();
        let config = layer(&mut fields, 1e-5)?;
        fields.finish()?;
        let layer = evaluation.load(config.try_init(evaluation.device())?.with_scan_form(form))?;
        let x = evaluation.float("hidden_states")?;
        let mask = evaluation.optional_bool("attention_mask")?;
        let packing = mask.map(|mask| Packing::from_mask(&mask)).transpose()?;
        let initial_state = evaluation.optional_float("initial_state")?;
        let initial_state = initial_state.map(|recurrent| GlaLayerState { recurrent, windows: None });
        let (output, state) = layer.forward_with_state(x, packing.as_ref(), initial_state);
        evaluation.output("output", output)?;
        evaluation.output("final_state", state.recurrent)
    })
}

fn run_model(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    every_form(case, device, |evaluation, form| {
        let model = model(evaluation)?.try_init(evaluation.device())?.with_scan_form(form);
        let model = evaluation.load(model)?;
        let input_ids = evaluation.int("input_ids")?;
        let mask = evaluation.optional_bool("attention_mask")?;
        let logits = model.forward(input_ids, mask);
        if let Some(labels) = evaluation.optional_int("labels")? {
            evaluation.output("loss", model.loss(logits.clone(), labels)?)?;
        }
        evaluation.output("logits", logits)
    })
}

fn model(evaluation: &Evaluation<'_>) -> Result<GlaConfig> {
    let mut fields = evaluation.config();
    let layer = layer(&mut fields, 1e-6)?;
    let config = GlaConfig {
        moe: None,
        vocab_size: fields.with_default("vocab_size", 32000)?,
        hidden_size: layer.hidden_size,
        num_hidden_layers: fields.with_default("num_hidden_layers", 24)?,
        num_heads: layer.num_heads,
        num_kv_heads: layer.num_kv_heads,
        expand_k: layer.expand_k,
        expand_v: layer.expand_v,
        feature_map: layer.feature_map,
        use_short_conv: layer.use_short_conv,
        conv_size: layer.conv_size,
        conv_bias: layer.conv_bias,
        use_output_gate: layer.use_output_gate,
        gate_fn: layer.gate_fn,
        gate_low_rank_dim: layer.gate_low_rank_dim,
        gate_logit_normalizer: layer.gate_logit_normalizer,
        clamp_min: layer.clamp_min,
        intermediate_size: fields.optional("intermediate_size")?,
        hidden_ratio: fields.with_default("hidden_ratio", 4.0)?,
        norm_eps: layer.norm_eps,
        tie_word_embeddings: fields.with_default("tie_word_embeddings", false)?,
        chunk_size: layer.chunk_size,
        sub_chunk_size: layer.sub_chunk_size,
    };
    fields.finish()?;
    Ok(config)
}
