//! `kimi-linear`: the delta rule with a decay per key channel, as scan, layer and hybrid model.

use burn::tensor::Device;
use gatekit::{
    core::{
        ModuleConfig, latent_attention::LatentAttentionConfig, scan::kimi_delta_attention, sequence::Packing,
    },
    sequence::{
        backbone::TokenMixer,
        kimi_linear::{KimiDeltaAttention, KimiDeltaAttentionConfig},
        recurrent::{RecurrentMixer, RecurrentState},
    },
};

use super::{
    Row,
    scan::{self, DeltaArguments},
};
use crate::{
    case::Case,
    evaluation::{Evaluation, Produced, every_form},
    failure::Result,
};

/// The system's components.
pub const ROWS: &[Row] = &[
    Row { component: "kimi-delta-attention", run: run_kimi_delta_attention },
    Row { component: "kda-layer", run: run_layer },
    Row { component: "mla-attention", run: run_latent_attention },
];

fn run_kimi_delta_attention(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    scan::run_delta_rule(case, device, |evaluation, arguments| {
        let log_gate = evaluation.float("log_gate")?;
        let DeltaArguments { q, k, v, beta, initial_state, boundaries, normalise, options } = arguments;
        let boundaries = boundaries.as_ref();
        Ok(kimi_delta_attention(q, k, v, log_gate, beta, initial_state, boundaries, normalise, &options))
    })
}

fn packing(evaluation: &mut Evaluation<'_>) -> Result<Option<Packing>> {
    let mask = evaluation.optional_bool("attention_mask")?;
    Ok(mask.map(|mask| Packing::from_mask(&mask)).transpose()?)
}

fn run_layer(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    every_form(case, device, |evaluation, form| {
        let mut fields = evaluation.config();
        let config = KimiDeltaAttentionConfig {
            hidden_size: fields.required("hidden_size")?,
            num_heads: fields.required("num_heads")?,
            head_dim: fields.required("head_dim")?,
            num_v_heads: fields.optional("num_v_heads")?,
            use_short_conv: fields.with_default("use_short_conv", true)?,
            short_conv_kernel_size: fields.with_default("short_conv_kernel_size", 4)?,
            lower_bound: fields.optional("lower_bound")?,
            allow_neg_eigval: fields.with_default("allow_neg_eigval", false)?,
            output_gate_bias: fields.with_default("output_gate_bias", false)?,
            rms_norm_eps: fields.with_default("rms_norm_eps", 1e-5)?,
            scale: fields.optional("scale")?,
            chunk_size: scan::chunk_size(&mut fields)?,
        };
        fields.finish()?;
        let layer = config.try_init(evaluation.device())?.with_scan_form(form);
        let layer = evaluation.load_as(layer, &KimiDeltaAttention::layout())?;
        let x = evaluation.float("hidden_states")?;
        let packing = packing(evaluation)?;
        let initial_state = evaluation.optional_float("initial_state")?.map(|memory| {
            let empty = layer.empty_state(memory.dims()[0], evaluation.device());
            RecurrentState { memory, ..empty }
        });
        let (output, state) = layer.forward_with_state(x, packing.as_ref(), initial_state);
        evaluation.output("output", output)?;
        evaluation.output("final_state", state.memory)
    })
}

fn run_latent_attention(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    every_form(case, device, |evaluation, _| {
        let mut fields = evaluation.config();
        let config = LatentAttentionConfig {
            hidden_size: fields.required("hidden_size")?,
            num_attention_heads: fields.required("num_attention_heads")?,
            kv_lora_rank: fields.required("kv_lora_rank")?,
            q_lora_rank: fields.optional("q_lora_rank")?,
            qk_nope_head_dim: fields.required("qk_nope_head_dim")?,
            qk_rope_head_dim: fields.required("qk_rope_head_dim")?,
            v_head_dim: fields.required("v_head_dim")?,
            rope_theta: fields.optional("rope_theta")?,
            rope_interleave: fields.with_default("rope_interleave", true)?,
            attention_bias: fields.with_default("attention_bias", false)?,
        };
        fields.finish()?;
        let layer = evaluation.load(config.try_init(evaluation.device())?)?;
        let x = evaluation.float("hidden_states")?;
        let packing = packing(evaluation)?;
        evaluation.output("output", layer.forward(x, packing.as_ref()))
    })
}
