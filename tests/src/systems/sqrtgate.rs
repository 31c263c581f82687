//! `sqrtgate`: the layer, the steps on the sphere, the rules of transfer.

use burn::{
    module::{Module, Param},
    optim::Optimizer,
    tensor::{Device, Int, Tensor, TensorData},
};
use gatekit::{
    core::{ModuleConfig, checkpoint::TensorLayout},
    experts::sqrtgate::{
        AdamHConfig, AdamHState, HyperPConfig, MuonHConfig, MuonHState, Schedule, SqrtGateConfig,
    },
};

use super::Row;
use crate::{
    case::Case,
    evaluation::{Evaluation, Produced, once},
    failure::{Failure, Result},
};

/// The system's components.
pub const ROWS: &[Row] = &[
    Row { component: "sqrtgate-layer", run: run_layer },
    Row { component: "muonh-step", run: run_muon_h },
    Row { component: "adamh-step", run: run_adam_h },
    Row { component: "hyperp", run: run_hyper_p },
];

fn run_layer(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    once(case, device, |evaluation| {
        let mut fields = evaluation.config();
        let config = SqrtGateConfig {
            hidden_size: fields.required("hidden_size")?,
            intermediate_size: fields.optional("intermediate_size")?,
            sparsity: fields.with_default("sparsity", 8)?,
            top_k: fields.with_default("top_k", 8)?,
            share_expert: fields.with_default("share_expert", true)?,
            sqrt_gate: fields.with_default("sqrt_gate", true)?,
            logit_scale: fields.with_default("logit_scale", 1.0)?,
            aux_gamma: fields.with_default("aux_gamma", 0.1)?,
            residual_depth: fields.with_default("residual_depth", 0)?,
        };
        fields.finish()?;
        let layout = config.tensor_layout(TensorLayout::default(), "");
        let layer = evaluation.load_as(config.try_init(evaluation.device())?, &layout)?;
        let output = layer.forward(evaluation.float::<3>("x")?);
        evaluation.output("gate", output.routing.weights)?;
        evaluation.int_output("indices", output.routing.indices)?;
        evaluation.output("aux_loss", output.aux_loss)?;
        evaluation.output("router_z", output.router_z)?;
        evaluation.output("y", output.y)
    })
}

/// The parameter of a step.
#[derive(Module, Debug)]
struct Weight<const D: usize> {
    weight: Param<Tensor<D>>,
}

fn weight<const D: usize>(evaluation: &mut Evaluation<'_>, like: &Tensor<D>) -> Result<Tensor<D>> {
    let weight = Weight { weight: Param::from_tensor(like.zeros_like()) };
    Ok(evaluation.load(weight)?.weight.val())
}

fn run_muon_h(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    once(case, device, |evaluation| match case.inputs.get("grad").map(|grad| grad.shape.len()) {
        Some(2) => muon_h::<2>(evaluation),
        Some(3) => muon_h::<3>(evaluation),
        other => Err(Failure(format!("`input.grad` has {other:?} axes, need 2 or 3"))),
    })
}

fn muon_h<const D: usize>(evaluation: &mut Evaluation<'_>) -> Result<()> {
    let mut fields = evaluation.config();
    let config = MuonHConfig {
        momentum: fields.with_default("momentum", 0.95)?,
        nesterov: fields.with_default("nesterov", true)?,
        weight_decay: fields.with_default("weight_decay", 0.0)?,
        epsilon: fields.with_default("epsilon", 1e-8)?,
        per_matrix: fields.with_default("per_matrix", true)?,
    };
    let lr = fields.required("lr")?;
    fields.finish()?;
    config.check()?;
    let optimizer = config.build();
    let grad = evaluation.float::<D>("grad")?;
    let momentum = evaluation.float::<D>("momentum")?;
    let weight = weight(evaluation, &grad)?;
    let (update, _) = optimizer.update(grad.clone(), Some(momentum.clone()));
    let (weight, state) = optimizer.step(lr, weight, grad, Some(MuonHState { momentum }));
    let state = state.ok_or_else(|| Failure("the step has no state".into()))?;
    evaluation.output("update", update)?;
    evaluation.output("weight", weight)?;
    evaluation.output("momentum", state.momentum)
}

fn run_adam_h(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    once(case, device, |evaluation| match case.inputs.get("grad").map(|grad| grad.shape.len()) {
        Some(2) => adam_h::<2>(evaluation),
        Some(3) => adam_h::<3>(evaluation),
        other => Err(Failure(format!("`input.grad` has {other:?} axes, need 2 or 3"))),
    })
}

fn adam_h<const D: usize>(evaluation: &mut Evaluation<'_>) -> Result<()> {
    let mut fields = evaluation.config();
    let config = AdamHConfig {
        beta1: fields.with_default("beta1", 0.9)?,
        beta2: fields.with_default("beta2", 0.95)?,
        weight_decay: fields.with_default("weight_decay", 0.0)?,
        epsilon: fields.with_default("epsilon", 1e-8)?,
        per_matrix: fields.with_default("per_matrix", true)?,
    };
    let lr = fields.required("lr")?;
    let step: usize = fields.required("step")?;
    fields.finish()?;
    config.check()?;
    let grad = evaluation.float::<D>("grad")?;
    let state = AdamHState {
        // The case's number is that of the step to be taken.
        step: step.checked_sub(1).ok_or_else(|| Failure("steps count from 1".into()))?,
        first_moment: evaluation.float::<D>("first_moment")?,
        second_moment: evaluation.float::<D>("second_moment")?,
    };
    let weight = weight(evaluation, &grad)?;
    let (weight, state) = config.build().step(lr, weight, grad, Some(state));
    let state = state.ok_or_else(|| Failure("the step has no state".into()))?;
    evaluation.output("weight", weight)?;
    evaluation.output("first_moment", state.first_moment)?;
    evaluation.output("second_moment", state.second_moment)
}

fn run_hyper_p(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    once(case, device, |evaluation| {
        let mut fields = evaluation.config();
        let config = HyperPConfig {
            depth: fields.required("depth")?,
            tokens: fields.required("tokens")?,
            batch_tokens: fields.required("batch_tokens")?,
            total_iters: fields.required("total_iters")?,
            base_lr: fields.with_default("base_lr", 0.014)?,
            base_depth: fields.with_default("base_depth", 8)?,
            base_tokens: fields.with_default("base_tokens", 10.4e9)?,
            base_batch_tokens: fields.with_default("base_batch_tokens", 2097152.0)?,
            data_exponent: fields.with_default("data_exponent", 0.32)?,
            schedule: fields.with_default("schedule", Schedule::Linear)?,
            min_lr_mult: fields.with_default("min_lr_mult", 0.1)?,
            warmup_iters: fields.with_default("warmup_iters", 0)?,
        };
        fields.finish()?;
        let rules = config.try_init()?;
        let iterations: Tensor<1, Int> = evaluation.int("iteration")?;
        let rates: Vec<f64> =
            iterations.into_data().iter::<i64>().map(|iteration| rules.lr(iteration as usize)).collect();
        let device = evaluation.device().clone();
        let tensor = |values: Vec<f64>| {
            let count = values.len();
            Tensor::<1>::from_data(TensorData::new(values, [count]), &device)
        };
        evaluation.output("lr", tensor(rates))?;
        evaluation.output("peak_lr", tensor(vec![rules.peak_lr()]))?;
        evaluation.output("residual_scale", tensor(vec![rules.residual_scale()]))
    })
}
