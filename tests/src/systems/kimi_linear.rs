//! `kimi-linear`: the delta rule with a decay per key channel, as scan, layer and hybrid model.

use burn::tensor::Device;
use gatekit::{
    core::{ModuleConfig, attention::LatentAttentionConfig, scan::kimi_delta_attention, sequence::Packing},
    sequence::{
        backbone::TokenMixer,
        checkpoint::PretrainedConfig,
        kimi_linear::{KimiDeltaAttention, KimiDeltaAttentionConfig, KimiFolderForm, KimiLinearConfig},
        lm::CausalLm,
        recurrent::{RecurrentMixer, RecurrentState},
    },
};

use super::{
    Row,
    scan::{self, DeltaArguments},
};
use crate::{
    case::Case,
    evaluation::{Evaluation, Produced, every_form, once},
    failure::Result,
};

/// The system's components.
pub const ROWS: &[Row] = &[
    Row { component: "kimi-delta-attention", run: run_kimi_delta_attention },
    Row { component: "kda-layer", run: run_layer },
    Row { component: "mla-attention", run: run_latent_attention },
    Row { component: "kimi-linear-model", run: run_model },
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
    once(case, device, |evaluation| {
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

fn run_model(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    every_form(case, device, |evaluation, form| {
        let config = model(evaluation)?;
        let model = config.try_init(evaluation.device())?.with_scan_form(form);
        let model = evaluation.load_as(model, &config.layout())?;
        let input_ids = evaluation.int("input_ids")?;
        let mask = evaluation.optional_bool("attention_mask")?;
        let logits = model.forward(input_ids, mask);
        if let Some(labels) = evaluation.optional_int("labels")? {
            evaluation.output("loss", model.loss(logits.clone(), labels)?)?;
        }
        evaluation.output("logits", logits)
    })
}

fn model(evaluation: &Evaluation<'_>) -> Result<KimiLinearConfig> {
    let mut fields = evaluation.config();
    let config = KimiLinearConfig {
        vocab_size: fields.required("vocab_size")?,
        hidden_size: fields.required("hidden_size")?,
        num_hidden_layers: fields.required("num_hidden_layers")?,
        kda_layers: fields.required("kda_layers")?,
        full_attn_layers: fields.required("full_attn_layers")?,
        intermediate_size: fields.with_default("intermediate_size", 9216)?,
        linear_num_heads: fields.with_default("linear_num_heads", 32)?,
        linear_head_dim: fields.with_default("linear_head_dim", 128)?,
        short_conv_kernel_size: fields.with_default("short_conv_kernel_size", 4)?,
        use_short_conv: fields.with_default("use_short_conv", true)?,
        lower_bound: fields.optional("lower_bound")?,
        allow_neg_eigval: fields.with_default("allow_neg_eigval", false)?,
        output_gate_bias: fields.with_default("output_gate_bias", false)?,
        num_attention_heads: fields.with_default("num_attention_heads", 32)?,
        kv_lora_rank: fields.with_default("kv_lora_rank", 512)?,
        q_lora_rank: fields.optional("q_lora_rank")?,
        qk_nope_head_dim: fields.with_default("qk_nope_head_dim", 128)?,
        qk_rope_head_dim: fields.with_default("qk_rope_head_dim", 64)?,
        v_head_dim: fields.with_default("v_head_dim", 128)?,
        num_experts: fields.with_default("num_experts", 256)?,
        num_experts_per_token: fields.with_default("num_experts_per_token", 8)?,
        num_shared_experts: fields.with_default("num_shared_experts", 1)?,
        moe_intermediate_size: fields.with_default("moe_intermediate_size", 1024)?,
        first_k_dense_replace: fields.with_default("first_k_dense_replace", 1)?,
        moe_router_activation_func: fields.with_default("moe_router_activation_func", "sigmoid".into())?,
        moe_renormalize: fields.with_default("moe_renormalize", true)?,
        routed_scaling_factor: fields.with_default("routed_scaling_factor", 2.446)?,
        num_expert_group: fields.with_default("num_expert_group", 1)?,
        topk_group: fields.with_default("topk_group", 1)?,
        rms_norm_eps: fields.with_default("rms_norm_eps", 1e-5)?,
        tie_word_embeddings: fields.with_default("tie_word_embeddings", false)?,
        num_nextn_predict_layers: 0,
        chunk_size: scan::chunk_size(&mut fields)?,
        folder_form: KimiFolderForm::Released,
    };
    fields.finish()?;
    Ok(config)
}
