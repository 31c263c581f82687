//! `transnormer-llm`: Lightning attention, the token mixer, a layer and the language model.

use burn::tensor::{Device, Tensor};
use gatekit::{
    core::{ModuleConfig, checkpoint::TensorLayout, scan::LightningAttention},
    sequence::{
        lm::CausalLm,
        transnormer::{
            DecaySchedule, NormLinearAttention, NormLinearAttentionConfig, NormLinearAttentionState,
            TransNormerConfig, TransNormerLayerConfig,
        },
    },
};

use super::Row;
use crate::{
    case::Case,
    evaluation::{Evaluation, Produced, every_form},
    failure::{Failure, Result},
    fields::Fields,
};

/// The system's components.
pub const ROWS: &[Row] = &[
    Row { component: "lightning-attention", run: run_attention },
    Row { component: "token-mixer", run: run_mixer },
    Row { component: "decoder-layer", run: run_layer },
    Row { component: "causal-lm", run: run_model },
];

fn run_attention(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    every_form(case, device, |evaluation, form| {
        let mut fields = evaluation.config();
        let block_size = fields.with_default("block_size", 256)?;
        let heads: usize = fields.required("num_heads")?;
        let sizes: [usize; 2] = [fields.required("key_dim")?, fields.required("value_dim")?];
        fields.finish()?;
        let slopes = slopes(evaluation)?;
        let attention = LightningAttention::new(&slopes)?.with_block_size(block_size)?.with_scan_form(form);
        // The cases have time after the heads.
        let mut input = |name| Ok::<_, Failure>(evaluation.float::<4>(name)?.swap_dims(1, 2));
        let (q, k, v) = (input("q")?, input("k")?, input("v")?);
        if [q.dims()[2], k.dims()[3], v.dims()[3]] != [heads, sizes[0], sizes[1]] {
            return Err(Failure(format!("{heads} heads of {sizes:?} do not fit the inputs")));
        }
        let initial_state = evaluation.optional_float("initial_state")?;
        let result = attention.forward(q, k, v, initial_state, None);
        evaluation.output("o", result.output.swap_dims(1, 2))?;
        evaluation.output("state", result.final_state)
    })
}

fn slopes(evaluation: &mut Evaluation<'_>) -> Result<Vec<f64>> {
    Ok(evaluation.buffer::<1>("slope_rate")?.into_data().iter::<f64>().collect())
}

/// The slopes belong to the configuration, not to the module's tensors.
fn layout() -> TensorLayout {
    TensorLayout::default().with_ignored("slope_rate")
}

fn mixer(fields: &mut Fields<'_>, slopes: Vec<f64>) -> Result<NormLinearAttentionConfig> {
    Ok(NormLinearAttentionConfig {
        embed_dim: fields.required("embed_dim")?,
        hidden_dim: fields.required("hidden_dim")?,
        num_heads: fields.required("num_heads")?,
        slope_rate: slopes,
        use_lrpe: fields.with_default("use_lrpe", false)?,
        linear_act_fun: fields.with_default("linear_act_fun", "silu".into())?,
        bias: fields.with_default("bias", false)?,
        norm_eps: fields.with_default("norm_eps", 1e-6)?,
        use_output_gate: true,
        block_size: fields.with_default("block_size", 256)?,
    })
}

/// The state before the input: tokens already consumed, and the memory they left.
fn initial_state(
    evaluation: &mut Evaluation<'_>,
    mixer: &NormLinearAttention,
    batch: usize,
) -> Result<NormLinearAttentionState> {
    let empty = mixer.empty_state(batch, evaluation.device());
    let position = match evaluation.optional_int::<1>("position_offset")? {
        None => 0,
        Some(offset) => offset.into_data().iter::<i64>().sum::<i64>() as usize,
    };
    let recurrent = evaluation.optional_float("initial_state")?.unwrap_or(empty.recurrent);
    Ok(NormLinearAttentionState { recurrent, position })
}

fn run_mixer(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    every_form(case, device, |evaluation, form| {
        let slopes = slopes(evaluation)?;
        let mut fields = evaluation.config();
        let config = mixer(&mut fields, slopes)?;
        fields.finish()?;
        let mixer = config.try_init(evaluation.device())?.with_scan_form(form);
        let mixer = evaluation.load_as(mixer, &layout())?;
        let x = evaluation.float::<3>("x")?;
        let mask = evaluation.optional_bool("padding_mask")?;
        let state = initial_state(evaluation, &mixer, x.dims()[0])?;
        let (y, state) = mixer.forward_with_state(x, mask, Some(state));
        evaluation.output("y", y)?;
        evaluation.output("state", state.recurrent)
    })
}

fn run_layer(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    every_form(case, device, |evaluation, form| {
        let slopes = slopes(evaluation)?;
        let mut fields = evaluation.config();
        let config = TransNormerLayerConfig {
            token_mixer: mixer(&mut fields, slopes)?,
            glu_dim: fields.required("glu_dim")?,
        };
        fields.finish()?;
        let mut layer = config.try_init(evaluation.device())?;
        layer.token_mixer = layer.token_mixer.with_scan_form(form);
        let layer = evaluation.load_as(layer, &layout())?;
        let x = evaluation.float::<3>("x")?;
        let mask = evaluation.optional_bool("padding_mask")?;
        let state = initial_state(evaluation, &layer.token_mixer, x.dims()[0])?;
        let (y, state) = layer.forward_with_state(x, mask, Some(state));
        evaluation.output("y", y)?;
        evaluation.output("state", state.recurrent)
    })
}

fn run_model(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    every_form(case, device, |evaluation, form| {
        let mut fields = evaluation.config();
        let config = TransNormerConfig {
            vocab_size: fields.required("vocab_size")?,
            embed_dim: fields.required("embed_dim")?,
            num_layers: fields.required("num_layers")?,
            hidden_dim: fields.optional("hidden_dim")?,
            num_heads: fields.required("num_heads")?,
            glu_dim: fields.required("glu_dim")?,
            linear_use_lrpe_list: fields.optional("linear_use_lrpe_list")?,
            linear_act_fun: fields.with_default("linear_act_fun", "silu".into())?,
            bias: fields.with_default("bias", false)?,
            norm_eps: fields.with_default("norm_eps", 1e-6)?,
            no_scale_embedding: fields.with_default("no_scale_embedding", false)?,
            decay_schedule: fields.with_default("decay_schedule", DecaySchedule::Geometric)?,
            use_output_gate: true,
            block_size: fields.with_default("block_size", 256)?,
        };
        fields.finish()?;
        let model = evaluation.load(config.try_init(evaluation.device())?.with_scan_form(form))?;
        let ids = evaluation.int("ids")?;
        let mask = evaluation.optional_bool("padding_mask")?;
        let logits: Tensor<3> = model.forward(ids, mask);
        if let Some(labels) = evaluation.optional_int("labels")? {
            evaluation.output("loss", model.loss(logits.clone(), labels)?)?;
        }
        evaluation.output("logits", logits)
    })
}
