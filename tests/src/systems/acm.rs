//! `acm`: adaptive computation modules.

use burn::tensor::{Device, Tensor};
use gatekit::core::router::Phase;
use gatekit::core::{ConfigError, ModuleConfig};
use gatekit::experts::acm::{
    AcmActivation, AcmBias, AcmBlockConfig, AcmConfig, AcmGateConfig, AcmGateKind, AcmLearnersConfig,
    AcmMode, AcmObjective, BLOCK_ACMS, BudgetLoss, distill, gate_labels, gate_loss,
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
    Row { component: "learners", run: run_learners },
    Row { component: "gate", run: run_gate },
    Row { component: "acm-layer", run: run_layer },
    Row { component: "acm-block", run: run_block },
    Row { component: "losses", run: run_losses },
];

fn learners(fields: &mut Fields<'_>) -> Result<AcmLearnersConfig> {
    Ok(AcmLearnersConfig {
        hidden_dim: fields.required("hidden_dim")?,
        block_dim: fields.required("block_dim")?,
        num_blocks: fields.with_default("num_blocks", 4)?,
        bias: fields.with_default("bias", AcmBias::HiddenOnly)?,
        activation: fields.with_default("activation", AcmActivation::Gelu)?,
        detach: fields.with_default("detach", false)?,
    })
}

fn gate(fields: &mut Fields<'_>) -> Result<AcmGateConfig> {
    Ok(AcmGateConfig {
        hidden_dim: fields.required("hidden_dim")?,
        num_blocks: fields.with_default("num_blocks", 4)?,
        gate_kind: fields.with_default("gate_kind", AcmGateKind::Gumbel)?,
        gate_depth: fields.with_default("gate_depth", 3)?,
        gating_hidden_dim: fields.with_default("gating_hidden_dim", 16)?,
        gs_tau: fields.with_default("gs_tau", 0.8)?,
        gs_hard: fields.with_default("gs_hard", true)?,
        min_choice: fields.with_default("min_choice", 0)?,
    })
}

fn phase(fields: &mut Fields<'_>) -> Result<Phase> {
    Ok(if fields.with_default("training", false)? { Phase::Training } else { Phase::Inference })
}

/// Noise is drawn elsewhere: no gradient.
fn noise(evaluation: &mut Evaluation<'_>, name: &str) -> Result<Option<Tensor<3>>> {
    Ok(evaluation.optional_float(name)?.map(Tensor::detach))
}

fn run_learners(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    once(case, device, |evaluation| {
        let mut fields = evaluation.config();
        let config = learners(&mut fields)?;
        fields.finish()?;
        let learners = evaluation.load(config.try_init(evaluation.device())?)?;
        let x = evaluation.float::<3>("x")?;
        evaluation.output("h", learners.forward(x))
    })
}

fn run_gate(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    once(case, device, |evaluation| {
        let mut fields = evaluation.config();
        let (config, phase) = (gate(&mut fields)?, phase(&mut fields)?);
        fields.finish()?;
        let gate = config.try_init(evaluation.device())?;
        let gate = evaluation.load_as(gate, &AcmGateConfig::layout())?;
        let (x, noise) = (evaluation.float::<3>("x")?, noise(evaluation, "gumbel")?);
        let out = gate.forward(x, noise, phase)?;
        evaluation.output("probs", out.probs)?;
        evaluation.output("gate", out.gate)?;
        evaluation.int_output("choice", out.choice)
    })
}

fn run_layer(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    once(case, device, |evaluation| {
        let mut fields = evaluation.config();
        let (learners, gate) = (learners(&mut fields)?, gate(&mut fields)?);
        let config = AcmConfig {
            hidden_dim: learners.hidden_dim,
            block_dim: learners.block_dim,
            num_blocks: learners.num_blocks,
            bias: learners.bias,
            activation: learners.activation,
            detach: learners.detach,
            gate_kind: gate.gate_kind,
            gate_depth: gate.gate_depth,
            gating_hidden_dim: gate.gating_hidden_dim,
            gs_tau: gate.gs_tau,
            gs_hard: gate.gs_hard,
            min_choice: gate.min_choice,
            task_gradient: fields.with_default("task_gradient", true)?,
            gated: true,
        };
        let phase = phase(&mut fields)?;
        fields.finish()?;
        let layer = evaluation.load_as(config.try_init(evaluation.device())?, &AcmConfig::layout(""))?;
        let (x, noise) = (evaluation.float::<3>("x")?, noise(evaluation, "gumbel")?);
        let out = layer.forward_with(x, AcmMode::Gated, noise, phase)?;
        evaluation.output("y", out.y)?;
        evaluation.output("gate", out.gate)?;
        evaluation.int_output("choice", out.choice)
    })
}

fn run_block(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    once(case, device, |evaluation| {
        let mut fields = evaluation.config();
        let config = AcmBlockConfig {
            hidden_dim: fields.required("hidden_dim")?,
            attention_block_dim: fields.required("attention_block_dim")?,
            ffn_block_dim: fields.required("ffn_block_dim")?,
            num_blocks: fields.with_default("num_blocks", 4)?,
            num_heads: fields.with_default("num_heads", 12)?,
            layer_norm_eps: fields.with_default("layer_norm_eps", 1e-6)?,
            attention_min_choice: fields.with_default("attention_min_choice", 1)?,
            ffn_min_choice: fields.with_default("ffn_min_choice", 0)?,
            bias: fields.with_default("bias", AcmBias::HiddenOnly)?,
            detach: fields.with_default("detach", false)?,
            gate_kind: fields.with_default("gate_kind", AcmGateKind::Gumbel)?,
            gate_depth: fields.with_default("gate_depth", 3)?,
            gating_hidden_dim: fields.with_default("gating_hidden_dim", 16)?,
            gs_tau: fields.with_default("gs_tau", 0.8)?,
            gs_hard: fields.with_default("gs_hard", true)?,
            task_gradient: fields.with_default("task_gradient", true)?,
            gated: true,
        };
        let phase = phase(&mut fields)?;
        fields.finish()?;
        let block = evaluation.load_as(config.try_init(evaluation.device())?, &AcmBlockConfig::layout(""))?;
        let x = evaluation.float::<3>("x")?;
        let noise: Vec<Tensor<3>> = BLOCK_ACMS
            .iter()
            .map(|module| noise(evaluation, &format!("gumbel.{module}")))
            .filter_map(Result::transpose)
            .collect::<Result<_>>()?;
        let noise = match noise.len() {
            0 => None,
            _ => Some(noise.try_into().map_err(|_| Failure("noise for some modules only".into()))?),
        };
        let out = block.forward_with(x, AcmMode::Gated, noise, phase)?;
        evaluation.output("y", out.y)?;
        evaluation.int_output("choices", out.choices)
    })
}

fn run_losses(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    once(case, device, |evaluation| {
        let mut fields = evaluation.config();
        let objective = AcmObjective {
            budget_loss: fields.with_default("budget_loss", BudgetLoss::L1)?,
            budget_target: fields.required("budget_target")?,
            budget_weight: fields.with_default("budget_weight", 0.1)?,
            entropy_weight: fields.with_default("entropy_weight", 0.05)?,
            diversity_weight: fields.with_default("diversity_weight", 0.05)?,
        };
        let factor: f64 = fields.with_default("gating_error_factor", 1.2)?;
        let blocks: usize = fields.with_default("num_blocks", 4)?;
        fields.finish()?;
        objective.check().map_err(|error: ConfigError| Failure(error.to_string()))?;
        let (h, target) = (evaluation.float::<4>("h")?, evaluation.float::<3>("target")?);
        if h.dims()[2] != blocks + 1 {
            return Err(Failure(format!("`h` {:?} is not of {blocks} learners", h.dims())));
        }
        let (probs, gates) = (evaluation.float::<3>("probs")?, evaluation.float::<4>("gates")?);
        let task = evaluation.float::<1>("task_loss")?;
        let costs: Vec<f64> = evaluation.buffer::<1>("costs")?.into_data().iter::<f64>().collect();
        let labels = gate_labels(h.clone(), target.clone(), factor);
        evaluation.output("distill", distill(h, target))?;
        evaluation.output("gate_loss", gate_loss(probs, labels.clone()))?;
        evaluation.int_output("labels", labels)?;
        let losses = objective.losses(task, gates, &costs)?;
        evaluation.output("compute_share", losses.compute_share)?;
        evaluation.output("budget", losses.budget)?;
        evaluation.output("entropy", losses.entropy)?;
        evaluation.output("diversity", losses.diversity)?;
        evaluation.output("total", losses.total)
    })
}
