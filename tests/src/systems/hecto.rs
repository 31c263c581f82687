//! `hecto`: the top-1 gate, the recurrent expert, the head, the losses.

use burn::tensor::{Bool, Device, Tensor};
use gatekit::{
    core::{ModuleConfig, checkpoint::TensorLayout, router::Phase},
    experts::hecto::{
        Estimator, ExpertKind, GruConfig, HectoConfig, HectoLossConfig, HectoTargets, HectoTask,
        Top1GateConfig,
    },
};

use super::Row;
use crate::{
    case::Case,
    evaluation::{Evaluation, Produced, once},
    failure::{Failure, Result},
    fields::Fields,
};

/// The system's components.
pub const ROWS: &[Row] = &[
    Row { component: "gate", run: run_gate },
    Row { component: "gru-expert", run: run_gru },
    Row { component: "hecto-head", run: run_head },
    Row { component: "losses", run: run_losses },
];

fn phase(fields: &mut Fields<'_>) -> Result<Phase> {
    Ok(match fields.with_default("training", false)? {
        true => Phase::Training,
        false => Phase::Inference,
    })
}

fn mask(evaluation: &mut Evaluation<'_>) -> Result<Tensor<2, Bool>> {
    evaluation.optional_bool("mask")?.ok_or_else(|| Failure("the case lacks `input.mask`".into()))
}

fn run_gate(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    once(case, device, |evaluation| {
        let mut fields = evaluation.config();
        let config = Top1GateConfig {
            input_dim: fields.required("input_dim")?,
            num_experts: fields.with_default("num_experts", 2)?,
            temperature: fields.with_default("temperature", 1.5)?,
            estimator: fields.with_default("estimator", Estimator::StraightThrough)?,
        };
        let phase = phase(&mut fields)?;
        fields.finish()?;
        let layout =
            TensorLayout::default().with_prefix("weight", "gate.weight").with_prefix("bias", "gate.bias");
        let gate = evaluation.load_as(config.try_init(evaluation.device())?, &layout)?;
        let chosen = gate.forward(evaluation.float("cls")?, phase);
        evaluation.output("probs", chosen.probs)?;
        evaluation.output("combine", chosen.combine)?;
        evaluation.int_output("choice", chosen.choice)
    })
}

fn run_gru(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    once(case, device, |evaluation| {
        let mut fields = evaluation.config();
        let config = GruConfig::new(fields.required("input_dim")?, fields.required("hidden_dim")?);
        fields.finish()?;
        let gru = evaluation.load(config.try_init(evaluation.device())?)?;
        let (x, mask) = (evaluation.float("x")?, mask(evaluation)?);
        evaluation.output("h", gru.forward(x, mask))
    })
}

fn run_head(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    once(case, device, |evaluation| {
        let mut fields = evaluation.config();
        let config = HectoConfig {
            encoder_dim: fields.with_default("encoder_dim", 768)?,
            input_dim: fields.with_default("input_dim", 256)?,
            hidden_dim: fields.with_default("hidden_dim", 128)?,
            num_outputs: fields.with_default("num_outputs", 4)?,
            experts: fields.with_default("experts", vec![ExpertKind::Ffnn, ExpertKind::Gru])?,
            temperature: fields.with_default("temperature", 1.5)?,
            estimator: fields.with_default("estimator", Estimator::StraightThrough)?,
        };
        let phase = phase(&mut fields)?;
        fields.finish()?;
        let head = evaluation.load(config.try_init(evaluation.device())?)?;
        let (states, mask) = (evaluation.float("states")?, mask(evaluation)?);
        let output = head.forward_with(states, mask, phase)?;
        evaluation.output("y", output.y)?;
        evaluation.output("probs", output.probs)?;
        evaluation.int_output("choice", output.choice)
    })
}

fn run_losses(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    once(case, device, |evaluation| {
        let mut fields = evaluation.config();
        let config = HectoLossConfig {
            task: fields.with_default("task", HectoTask::Classification)?,
            entropy_weight: fields.with_default("entropy_weight", 0.01)?,
            diversity_weight: fields.with_default("diversity_weight", 0.01)?,
        };
        fields.finish()?;
        let (y, probs) = (evaluation.float::<2>("y")?, evaluation.float("probs")?);
        let targets = match config.task {
            HectoTask::Classification => HectoTargets::Labels(evaluation.int("labels")?),
            HectoTask::Regression => HectoTargets::Values(evaluation.float::<1>("targets")?.detach()),
        };
        let losses = config.try_init(y.dims()[1])?.forward(y, probs, &targets)?;
        evaluation.output("task", losses.task)?;
        evaluation.output("entropy", losses.entropy)?;
        evaluation.output("diversity", losses.diversity)?;
        evaluation.output("total", losses.total)
    })
}
