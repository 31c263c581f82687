//! `mamba-icl`: the in-context predictor and its recurrence, Mamba's mixer and language model.

use burn::tensor::Device;
use gatekit::{
    core::ModuleConfig,
    sequence::{
        CausalLm, MambaConfig, MambaMixerConfig,
        mamba::MambaState,
        mamba_icl::{IclPredictorConfig, SelectiveSsmConfig, hinge_loss},
    },
};

use super::Row;
use crate::{
    case::Case,
    evaluation::{Produced, every_form},
    failure::{Failure, Result},
    fields::Fields,
};

/// The system's components.
pub const ROWS: &[Row] = &[
    Row { component: "icl-predictor", run: run_icl_predictor },
    Row { component: "selective-ssm", run: run_selective_ssm },
    Row { component: "mamba-mixer", run: run_mamba_mixer },
    Row { component: "causal-lm", run: run_causal_lm },
];

/// Has no scan: every form is the same.
fn run_icl_predictor(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    every_form(case, device, |evaluation, _| {
        let mut fields = evaluation.config();
        let config = IclPredictorConfig::new()
            .with_input_dim(fields.with_default("input_dim", 30)?)
            .with_state_dim(fields.optional("state_dim")?)
            .with_gating(fields.with_default("gating", Default::default())?);
        fields.finish()?;
        let predictor = evaluation.load(config.try_init(evaluation.device())?)?;
        let prompt = evaluation.float("prompt")?;
        let labels = evaluation.float::<1>("labels")?.detach();
        let prediction = predictor.forward(prompt);
        evaluation.output("loss", hinge_loss(prediction.score.clone(), labels))?;
        evaluation.output("score", prediction.score)?;
        evaluation.output("gates", prediction.gates)?;
        evaluation.output("attention", prediction.attention)
    })
}

fn run_selective_ssm(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    every_form(case, device, |evaluation, form| {
        let mut fields = evaluation.config();
        let config = SelectiveSsmConfig::new(fields.required("channels")?)
            .with_state_dim(fields.optional("state_dim")?)
            .with_gating(fields.with_default("gating", Default::default())?);
        fields.finish()?;
        let ssm = evaluation.load(config.try_init(evaluation.device())?.with_scan_form(form))?;
        let u = evaluation.float("u")?;
        let (o, state) = ssm.forward(u, evaluation.optional_float("initial_state")?);
        evaluation.output("o", o)?;
        evaluation.output("state", state)
    })
}

/// The layer's fields, which the model has too.
fn mixer(fields: &mut Fields<'_>) -> Result<MambaMixerConfig> {
    Ok(MambaMixerConfig::new(fields.required("hidden_size")?)
        .with_intermediate_size(fields.optional("intermediate_size")?)
        .with_state_size(fields.with_default("state_size", 16)?)
        .with_time_step_rank(fields.optional("time_step_rank")?)
        .with_conv_kernel(fields.with_default("conv_kernel", 4)?)
        .with_use_bias(fields.with_default("use_bias", false)?)
        .with_use_conv_bias(fields.with_default("use_conv_bias", true)?))
}

fn run_mamba_mixer(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    every_form(case, device, |evaluation, form| {
        let mut fields = evaluation.config();
        let config = mixer(&mut fields)?;
        fields.finish()?;
        let mixer = evaluation.load(config.try_init(evaluation.device())?.with_scan_form(form))?;
        let x = evaluation.float("hidden_states")?;
        let mask = evaluation.optional_bool("attention_mask")?;
        let state = match (evaluation.optional_float("conv_state")?, evaluation.optional_float("ssm_state")?)
        {
            (None, None) => None,
            (Some(conv), Some(ssm)) => Some(MambaState { conv, ssm }),
            _ => return Err(Failure("the case has one of `conv_state` and `ssm_state`".into())),
        };
        let (y, state) = mixer.forward_with_state(x, mask.as_ref(), state);
        evaluation.output("y", y)?;
        evaluation.output("conv_state", state.conv)?;
        evaluation.output("ssm_state", state.ssm)
    })
}

fn run_causal_lm(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    every_form(case, device, |evaluation, form| {
        let mut fields = evaluation.config();
        let layer = mixer(&mut fields)?;
        let vocab_size = fields.with_default("vocab_size", 50280)?;
        let num_hidden_layers = fields.with_default("num_hidden_layers", 24)?;
        let config = MambaConfig::new(vocab_size, layer.hidden_size, num_hidden_layers)
            .with_intermediate_size(layer.intermediate_size)
            .with_state_size(layer.state_size)
            .with_time_step_rank(layer.time_step_rank)
            .with_conv_kernel(layer.conv_kernel)
            .with_use_bias(layer.use_bias)
            .with_use_conv_bias(layer.use_conv_bias)
            .with_layer_norm_epsilon(fields.with_default("layer_norm_epsilon", 1e-5)?)
            .with_tie_word_embeddings(fields.with_default("tie_word_embeddings", true)?);
        fields.finish()?;
        let model = evaluation.load(config.try_init(evaluation.device())?.with_scan_form(form))?;
        let mask = evaluation.optional_bool("attention_mask")?;
        let logits = model.forward(evaluation.int("ids")?, mask);
        if let Some(labels) = evaluation.optional_int("labels")? {
            evaluation.output("loss", model.loss(logits.clone(), labels)?)?;
        }
        evaluation.output("logits", logits)
    })
}
