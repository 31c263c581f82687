//! `hybrid-linear-attention`: the scans of six token mixers, their layers, and hybrid models.

use burn::tensor::Device;
use gatekit::{
    core::{
        ModuleConfig,
        attention::CausalAttentionConfig,
        gate::GateActivation,
        scan::{delta_rule, elementwise_recurrence, gated_delta_rule, hgrn2, retention},
        sequence::Packing,
    },
    sequence::{
        backbone::{MixerContext, TokenMixer},
        hybrid_linear_attention::{
            DeltaNetConfig, GatedDeltaNetConfig, Hgrn2Config, HgrnConfig, HybridAttentionConfig,
            HybridConfig, HybridMixerConfig, RetentionConfig,
        },
        lm::CausalLm,
    },
};
use serde::Deserialize;

use super::{
    Row, gla,
    scan::{self, DeltaArguments},
};
use crate::{
    case::Case,
    evaluation::{Evaluation, Produced, every_form},
    failure::{Failure, Result},
    fields::Fields,
};

/// The system's components.
pub const ROWS: &[Row] = &[
    Row { component: "retention", run: run_retention },
    Row { component: "hgrn", run: run_hgrn },
    Row { component: "hgrn2", run: run_hgrn2 },
    Row { component: "delta-rule", run: run_delta_rule },
    Row { component: "gated-delta-rule", run: run_gated_delta_rule },
    Row { component: "token-mixer-layer", run: run_layer },
    Row { component: "hybrid-model", run: run_model },
];

fn run_retention(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    every_form(case, device, |evaluation, form| {
        let mut fields = evaluation.config();
        let options = scan::options(&mut fields, false, form)?;
        fields.finish()?;
        let (q, k, v) = (evaluation.float("q")?, evaluation.float("k")?, evaluation.float("v")?);
        let (initial_state, boundaries) = scan::state_and_boundaries(evaluation, &v)?;
        scan::outputs(evaluation, retention(q, k, v, initial_state, boundaries.as_ref(), &options))
    })
}

fn run_hgrn(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    every_form(case, device, |evaluation, form| {
        let mut fields = evaluation.config();
        scan::chunk_size(&mut fields)?;
        fields.finish()?;
        let x = evaluation.float::<3>("x")?;
        let log_gate = evaluation.float("log_gate")?;
        let initial_state = evaluation.optional_float("initial_state")?;
        let boundaries = evaluation.boundaries(x.dims()[1])?;
        let result = elementwise_recurrence(x, log_gate, initial_state, boundaries.as_ref(), form);
        evaluation.output("o", result.output)?;
        evaluation.output("final_state", result.final_state)
    })
}

fn run_hgrn2(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    every_form(case, device, |evaluation, form| {
        let mut fields = evaluation.config();
        let options = scan::options(&mut fields, false, form)?;
        fields.finish()?;
        let (q, v) = (evaluation.float("q")?, evaluation.float("v")?);
        let forget_logits = evaluation.float("forget_logits")?;
        let lower_bound = evaluation.optional_float("lower_bound")?;
        let (initial_state, boundaries) = scan::state_and_boundaries(evaluation, &v)?;
        let result = hgrn2(q, forget_logits, v, lower_bound, initial_state, boundaries.as_ref(), &options);
        scan::outputs(evaluation, result)
    })
}

fn run_delta_rule(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    scan::run_delta_rule(case, device, |_, arguments| {
        let DeltaArguments { q, k, v, beta, initial_state, boundaries, normalise, options } = arguments;
        let boundaries = boundaries.as_ref();
        Ok(delta_rule(q, k, v, beta, initial_state, boundaries, normalise, &options))
    })
}

fn run_gated_delta_rule(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    scan::run_delta_rule(case, device, |evaluation, arguments| {
        let log_gate = evaluation.float("log_gate")?;
        let DeltaArguments { q, k, v, beta, initial_state, boundaries, normalise, options } = arguments;
        let boundaries = boundaries.as_ref();
        Ok(gated_delta_rule(q, k, v, log_gate, beta, initial_state, boundaries, normalise, &options))
    })
}

/// The layer that a case's fields describe.
fn mixer(fields: &mut Fields<'_>, norm_eps: f64) -> Result<HybridMixerConfig> {
    let name: String = fields.required("mixer")?;
    if name == "gla" {
        return Ok(gla::layer(fields, norm_eps)?.into());
    }
    let hidden_size = fields.required("hidden_size")?;
    let convolves = matches!(name.as_str(), "delta_net" | "gated_deltanet");
    let mut use_short_conv = || fields.with_default("use_short_conv", convolves);
    Ok(match name.as_str() {
        "retnet" => RetentionConfig {
            hidden_size,
            use_short_conv: use_short_conv()?,
            num_heads: fields.with_default("num_heads", 8)?,
            expand_k: fields.with_default("expand_k", 1.0)?,
            expand_v: fields.with_default("expand_v", 2.0)?,
            conv_size: fields.with_default("conv_size", 4)?,
            norm_eps: fields.with_default("norm_eps", norm_eps)?,
        }
        .into(),
        "hgrn" => HgrnConfig {
            hidden_size,
            use_short_conv: use_short_conv()?,
            expand_ratio: fields.with_default("expand_ratio", 1.0)?,
            conv_size: fields.with_default("conv_size", 4)?,
            norm_eps: fields.with_default("norm_eps", norm_eps)?,
        }
        .into(),
        "hgrn2" => {
            let config = Hgrn2Config {
                hidden_size,
                use_short_conv: use_short_conv()?,
                num_heads: fields.optional("num_heads")?,
                conv_size: fields.with_default("conv_size", 4)?,
            };
            fields.with_default("norm_eps", norm_eps)?; // its norm has its own
            config.into()
        }
        "delta_net" => DeltaNetConfig {
            hidden_size,
            use_short_conv: use_short_conv()?,
            num_heads: fields.with_default("num_heads", 16)?,
            expand_k: fields.with_default("expand_k", 1.0)?,
            expand_v: fields.with_default("expand_v", 1.0)?,
            use_beta: fields.with_default("use_beta", true)?,
            use_gate: fields.with_default("use_gate", false)?,
            qk_activation: fields.with_default("qk_activation", "silu".into())?,
            qk_norm: fields.with_default("qk_norm", "l2".into())?,
            allow_neg_eigval: fields.with_default("allow_neg_eigval", false)?,
            conv_size: fields.with_default("conv_size", 4)?,
            norm_eps: fields.with_default("norm_eps", norm_eps)?,
        }
        .into(),
        "gated_deltanet" => GatedDeltaNetConfig {
            hidden_size,
            use_short_conv: use_short_conv()?,
            num_heads: fields.with_default("num_heads", 6)?,
            num_v_heads: fields.optional("num_v_heads")?,
            head_dim: fields.with_default("head_dim", 256)?,
            expand_v: fields.with_default("expand_v", 2.0)?,
            use_gate: fields.with_default("use_gate", true)?,
            output_gate_activation: fields.with_default("output_gate_activation", GateActivation::Swish)?,
            allow_neg_eigval: fields.with_default("allow_neg_eigval", false)?,
            conv_size: fields.with_default("conv_size", 4)?,
            norm_eps: fields.with_default("norm_eps", norm_eps)?,
        }
        .into(),
        "attention" => CausalAttentionConfig::new(hidden_size, fields.required("num_heads")?)
            .with_num_kv_heads(fields.optional("num_kv_heads")?)
            .with_qkv_bias(fields.with_default("qkv_bias", false)?)
            .with_window_size(fields.optional("window_size")?)
            .with_rope_theta(Some(fields.with_default("rope_theta", 10000.0)?))
            .into(),
        other => return Err(Failure(format!("config field `mixer` is {other:?}, which is unknown"))),
    })
}

fn run_layer(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    every_form(case, device, |evaluation, form| {
        let mut fields = evaluation.config();
        let config = mixer(&mut fields, 1e-5)?;
        fields.finish()?;
        let layer = evaluation.load(config.try_init(evaluation.device())?.with_scan_form(form))?;
        let x = evaluation.float("hidden_states")?;
        let mask = evaluation.optional_bool("attention_mask")?;
        let packing = mask.map(|mask| Packing::from_mask(&mask)).transpose()?;
        let lower_bound = evaluation.optional_float("lower_bound")?;
        let context = MixerContext { packing: packing.as_ref(), lower_bound };
        evaluation.output("output", layer.forward(x, &context))
    })
}

/// `attn` of a model, where what is missing has its default.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Attention {
    layers: Vec<usize>,
    num_heads: usize,
    num_kv_heads: Option<usize>,
    #[serde(default)]
    qkv_bias: bool,
    window_size: Option<usize>,
    rope_theta: Option<f64>,
}

fn model(evaluation: &Evaluation<'_>) -> Result<HybridConfig> {
    let mut fields = evaluation.config();
    let mixer = mixer(&mut fields, 1e-6)?;
    let attn: Option<Attention> = fields.optional("attn")?;
    let config = HybridConfig {
        moe: None,
        vocab_size: fields.with_default("vocab_size", 32000)?,
        num_hidden_layers: fields.with_default("num_hidden_layers", 24)?,
        mixer,
        attn: attn.map(|attn| HybridAttentionConfig {
            layers: attn.layers,
            num_heads: attn.num_heads,
            num_kv_heads: attn.num_kv_heads,
            qkv_bias: attn.qkv_bias,
            window_size: attn.window_size,
            rope_theta: attn.rope_theta.unwrap_or(10000.0),
        }),
        use_lower_bound: fields.with_default("use_lower_bound", true)?,
        intermediate_size: fields.optional("intermediate_size")?,
        hidden_ratio: fields.with_default("hidden_ratio", 4.0)?,
        norm_eps: fields.with_default("norm_eps", 1e-6)?,
        tie_word_embeddings: fields.with_default("tie_word_embeddings", false)?,
    };
    fields.finish()?;
    Ok(config)
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
