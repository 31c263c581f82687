//! `jei-dnn`: gates on uncertainty, the exit distribution, losses, the dynamic network, calibration.

use burn::{
    module::Module,
    tensor::{Device, Tensor},
};
use gatekit::{
    core::{
        ModuleConfig,
        checkpoint::TensorLayout,
        gate::SequentialExit,
        probe::{BinStrategy, calibration_error},
    },
    experts::jei_dnn::{
        DynamicNetwork, GateObjective, JeiDnnConfig, ModuleWeighting, StagedBackbone, UncertaintyGate,
        exit_gate_loss, inference_module_loss, uncertainty_features, warmup_loss,
    },
};

use super::Row;
use crate::{
    array::{Array, Values},
    case::Case,
    evaluation::{Evaluation, Produced, once},
    failure::{Failure, Result},
    fields::Fields,
};

/// The system's components.
pub const ROWS: &[Row] = &[
    Row { component: "uncertainty-gate", run: run_gate },
    Row { component: "exit-distribution", run: run_distribution },
    Row { component: "losses", run: run_losses },
    Row { component: "dynamic-network", run: run_network },
    Row { component: "calibration-error", run: run_calibration_error },
];

/// The fields that any component may have; the sizes are those of the case's tensors where it has none.
fn config(fields: &mut Fields<'_>, embed_dim: usize) -> Result<JeiDnnConfig> {
    let num_exits: usize = fields.required("num_exits")?;
    let rising = (1..=num_exits + 1).map(|exit| exit as f64 / (num_exits + 1) as f64).collect();
    let config = JeiDnnConfig::new(
        num_exits,
        fields.with_default("embed_dim", embed_dim)?,
        fields.with_default("num_classes", 2)?,
        fields.with_default("cost_per_exit", rising)?,
    );
    Ok(config
        .with_exit_threshold(fields.with_default("exit_threshold", 0.5)?)
        .with_cost_tradeoff(fields.with_default("cost_tradeoff", 0.7)?)
        .with_gate_objective(fields.with_default("gate_objective", GateObjective::CrossEntropy)?)
        .with_module_weighting(fields.with_default("module_weighting", ModuleWeighting::Rescaled)?)
        .with_pos_weights(fields.optional("pos_weights")?))
}

fn run_gate(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    once(case, device, |evaluation| {
        let mut fields = evaluation.config();
        fields.required::<usize>("num_classes")?;
        fields.finish()?;
        let gate = evaluation.load(UncertaintyGate::new(evaluation.device()))?;
        let logits = evaluation.float::<2>("logits")?;
        evaluation.output("features", uncertainty_features(logits.clone()))?;
        evaluation.output("gate_logit", gate.forward(logits))
    })
}

fn run_distribution(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    once(case, device, |evaluation| {
        let mut fields = evaluation.config();
        let config = config(&mut fields, 1)?;
        fields.finish()?;
        let logits = evaluation.float::<2>("gate_logits")?;
        let distribution = SequentialExit::new(config.exit_threshold)?.forward(logits);
        evaluation.int_output("exit_level", distribution.levels())?;
        evaluation.output("exit_probs", distribution.probs)?;
        evaluation.output("hazards", distribution.hazards)
    })
}

fn run_losses(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    once(case, device, |evaluation| {
        let mut fields = evaluation.config();
        let config = config(&mut fields, 1)?;
        fields.finish()?;
        config.check()?;
        let gate_logits = evaluation.float::<2>("gate_logits")?;
        let exit_logits = evaluation.float::<3>("exit_logits")?;
        let labels = evaluation.int::<1>("labels")?;
        let probs = config.sequential_exit()?.forward(gate_logits.clone()).probs;
        let gates = exit_gate_loss(gate_logits, &exit_logits, &labels, &config)?;
        let modules = inference_module_loss(exit_logits.clone(), probs, &labels, config.module_weighting)?;
        evaluation.count_output("best_exit", gates.best_exits.as_slice());
        evaluation.int_output("gate_targets", gates.targets)?;
        evaluation.output("gate_loss", gates.loss)?;
        evaluation.output("module_loss", modules)?;
        evaluation.output("warmup_loss", warmup_loss(exit_logits, &labels)?)
    })
}

/// A network whose stages have all been computed: the features `[batch, L + 1, embed_dim]`.
#[derive(Module, Debug)]
struct Computed {
    #[module(skip)]
    stages: usize,
}

impl StagedBackbone for Computed {
    type Hidden = Tensor<3>;

    fn stages(&self) -> usize {
        self.stages
    }

    fn stage(&self, _index: usize, x: Tensor<3>) -> Tensor<3> {
        x
    }

    fn readout(&self, index: usize, x: &Tensor<3>) -> Tensor<2> {
        x.clone().narrow(1, index, 1).squeeze_dim(1)
    }

    fn cost(&self, _index: usize) -> f64 {
        1.0
    }
}

fn run_network(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    once(case, device, |evaluation| {
        let mut fields = evaluation.config();
        let config = config(&mut fields, 1)?;
        fields.finish()?;
        let backbone = Computed { stages: config.num_exits + 1 };
        let network = DynamicNetwork::new(backbone, config.try_init(evaluation.device())?)?;
        let network = evaluation.load_as(network, &TensorLayout::default().with_prefix("exits.", ""))?;
        let features = evaluation.float::<3>("features")?;
        let output = network.forward(features.clone());
        let decision = network.exits.decide(&output)?;
        stops_with_the_same_answers(evaluation, &network, features)?;
        evaluation.int_output("exit_level", decision.exit_level)?;
        evaluation.output("gate_logits", output.gate_logits)?;
        evaluation.output("exit_probs", output.distribution.probs)?;
        evaluation.output("logits", decision.logits)?;
        evaluation.output("cost", decision.cost)?;
        evaluation.output("expected_cost", decision.expected_cost)
    })
}

/// What stops computing must answer what the case says too.
fn stops_with_the_same_answers(
    evaluation: &Evaluation<'_>,
    network: &DynamicNetwork<Computed>,
    features: Tensor<3>,
) -> Result<()> {
    let answers = network.infer(features)?;
    let int = |values: &[usize]| Array {
        shape: vec![values.len()],
        values: Values::Int(values.iter().map(|value| *value as i64).collect()),
    };
    let cost = answers.costs.iter().map(|cost| *cost as f32).collect::<Vec<_>>();
    evaluation.compare("exit_level", &int(&answers.exit_levels))?;
    evaluation.compare("cost", &Array { shape: vec![cost.len()], values: Values::Float(cost) })?;
    evaluation.compare("logits", &Array::from_data(answers.logits.into_data())?)
}

fn run_calibration_error(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    once(case, device, |evaluation| {
        let mut fields = evaluation.config();
        let bins = fields.with_default("bins", 15)?;
        let strategy = fields.with_default("strategy", BinStrategy::Quantile)?;
        fields.finish()?;
        let confidence = evaluation.float::<1>("confidence")?.into_data();
        let correct = evaluation.optional_bool::<1>("correct")?;
        let correct = correct.ok_or_else(|| Failure("the case lacks `input.correct`".into()))?.into_data();
        let confidence: Vec<f64> = confidence.iter::<f64>().collect();
        let correct: Vec<bool> = correct.iter::<bool>().collect();
        let ece = calibration_error(&confidence, &correct, bins, strategy)?;
        let ece = Tensor::<1>::from_data([ece], evaluation.device());
        evaluation.output("ece", ece)
    })
}
