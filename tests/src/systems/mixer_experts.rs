//! `mixer-experts`: the gate, its refit, the field of the experts, and rollouts.

use burn::tensor::{Device, Int, Tensor, TensorData};
use gatekit::core::ModuleConfig;
use gatekit::core::linalg::Matrix;
use gatekit::experts::mixer_experts::{
    ContextGate, GateUpdate, KMeansGateUpdate, MetaLearner, MixerExpert, MixerField, MixerFieldConfig, Rk4,
    context_objective, environment_losses,
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
    Row { component: "gate-update", run: run_gate_update },
    Row { component: "field", run: run_field },
    Row { component: "rollout", run: run_rollout },
];

fn field(evaluation: &mut Evaluation<'_>, fields: &mut Fields<'_>) -> Result<MixerField<MixerExpert>> {
    let config = MixerFieldConfig {
        num_experts: fields.required("num_experts")?,
        context_size: fields.required("context_size")?,
        split_context: fields.with_default("split_context", true)?,
        shift_context: fields.with_default("shift_context", true)?,
        use_gate_bias: fields.with_default("use_gate_bias", true)?,
        meta_learner: fields.with_default("meta_learner", MetaLearner::Geps)?,
        data_size: fields.with_default("data_size", 2)?,
        width: fields.with_default("width", 64)?,
        depth: fields.with_default("depth", 3)?,
    };
    let field = config.try_init(evaluation.device())?;
    evaluation.load_as(field, &MixerField::<MixerExpert>::layout())
}

fn gate(evaluation: &mut Evaluation<'_>, fields: &mut Fields<'_>) -> Result<ContextGate> {
    let size = fields.required("context_size")?;
    let experts = fields.required("num_experts")?;
    let gate =
        ContextGate::new(size, experts, fields.with_default("use_gate_bias", true)?, evaluation.device());
    evaluation.load(gate)
}

fn run_gate(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    once(case, device, |evaluation| {
        let mut fields = evaluation.config();
        let gate = gate(evaluation, &mut fields)?;
        fields.finish()?;
        let routing = gate.route(evaluation.float::<2>("contexts")?);
        evaluation.int_output("choice", routing.indices.squeeze_dim::<1>(1))?;
        let scores = routing.scores.ok_or_else(|| Failure("the gate has no probabilities".into()))?;
        evaluation.output("probs", scores)
    })
}

fn run_gate_update(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    once(case, device, |evaluation| {
        let mut fields = evaluation.config();
        let gate = gate(evaluation, &mut fields)?;
        let update = KMeansGateUpdate::new(
            fields.with_default("noise_level", 1e-4)?,
            fields.with_default("max_kmeans", 20)?,
            fields.with_default("convergence_tol", 1e-4)?,
            gate.use_gate_bias(),
        )?;
        fields.finish()?;
        let mut input = |name: &str| -> Result<Matrix> { Ok(Matrix::of(&evaluation.float::<2>(name)?)) };
        let (contexts, losses) = (input("contexts")?, input("losses")?);
        let (centroids, noise) = (input("centroids")?, input("noise")?);
        let (environments, experts) = (contexts.rows(), losses.columns());
        let nowhere = |count: usize| vec![-1i64; count];
        let signed = |indices: Vec<usize>| indices.into_iter().map(|index| index as i64).collect();
        let present = Matrix::of(&gate.gate.val());
        let (gate, centroids, assignment, expert, status, iterations) =
            match update.update(&contexts, &losses, &centroids, &noise)? {
                GateUpdate::Updated { gate, centroids, assignment, experts, iterations, .. } => {
                    (gate, centroids, signed(assignment), signed(experts), 0i64, iterations)
                }
                GateUpdate::EmptyCluster { iterations, .. } => {
                    (present, centroids, nowhere(environments), nowhere(experts), 1, iterations)
                }
                GateUpdate::NotConverged { iterations } => {
                    (present, centroids, nowhere(environments), nowhere(experts), 2, iterations)
                }
            };
        let device = evaluation.device().clone();
        let int = |values: Vec<i64>| {
            let count = values.len();
            Tensor::<1, Int>::from_data(TensorData::new(values, [count]), &device)
        };
        let float = |matrix: &Matrix| matrix.to_tensor(&device, burn::tensor::DType::F32);
        evaluation.output("gate", float(&gate))?;
        evaluation.output("centroids", float(&centroids))?;
        evaluation.int_output("assignment", int(assignment))?;
        evaluation.int_output("expert", int(expert))?;
        evaluation.int_output("status", int(vec![status]))?;
        evaluation.count_output("iterations", &[iterations]);
        Ok(())
    })
}

fn run_field(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    once(case, device, |evaluation| {
        let mut fields = evaluation.config();
        let field = field(evaluation, &mut fields)?;
        fields.finish()?;
        let y = evaluation.float::<3>("y")?;
        let contexts = evaluation.float::<2>("contexts")?;
        let (dy, choice) = field.forward(y, contexts);
        evaluation.int_output("choice", choice)?;
        evaluation.output("dy", dy)
    })
}

fn run_rollout(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    once(case, device, |evaluation| {
        let mut fields = evaluation.config();
        let field = field(evaluation, &mut fields)?;
        let solver = Rk4::new(fields.required("steps")?, fields.required("dt")?)?;
        let beta = fields.with_default("proximal_beta", 10.0)?;
        fields.finish()?;
        let y0 = evaluation.float::<3>("y0")?;
        let contexts = evaluation.float::<2>("contexts")?;
        let old = evaluation.float::<2>("contexts_old")?;
        let observed = evaluation.float::<4>("observed")?;
        let refused = |error| Failure(format!("the solver stopped: {error}"));
        let trajectory = field.rollout(y0, contexts.clone(), &solver).map_err(refused)?;
        let losses = environment_losses(trajectory.clone(), observed);
        let objective = context_objective(losses.clone(), contexts, old, beta);
        evaluation.output("trajectory", trajectory)?;
        evaluation.output("env_loss", losses)?;
        evaluation.output("context_objective", objective)
    })
}
