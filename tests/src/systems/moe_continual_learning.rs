//! `moe-continual-learning`: one decision, one round, whole runs, and the closed formulas.

use burn::tensor::{Bool, Device, Int, Tensor, TensorData};
use gatekit::core::linalg::Matrix;
use gatekit::core::{ConfigError, ModuleConfig};
use gatekit::experts::moe_continual_learning::{
    ContinualMoe, ContinualMoeConfig, ErrorLedger, ExpectedErrorsConfig, Variant, squared_errors,
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
    Row { component: "router", run: run_router },
    Row { component: "update", run: run_update },
    Row { component: "run", run: run_run },
    Row { component: "formulas", run: run_formulas },
];

fn config(fields: &mut Fields<'_>) -> Result<ContinualMoeConfig> {
    let defaults = ContinualMoeConfig::new(1, 1);
    let variant: String = fields.with_default("variant", "algorithm".into())?;
    Ok(ContinualMoeConfig {
        input_dim: fields.required("input_dim")?,
        num_experts: fields.required("num_experts")?,
        noise_bound: fields.required("noise_bound")?,
        learning_rate: fields.required("learning_rate")?,
        aux_weight: fields.required("aux_weight")?,
        explore_rounds: fields.optional("explore_rounds")?,
        gap_threshold: fields.with_default("gap_threshold", defaults.gap_threshold)?,
        min_rounds: fields.with_default("min_rounds", 0)?,
        early_termination: fields.with_default("early_termination", true)?,
        variant: variant.parse::<Variant>()?,
    })
}

fn model(evaluation: &Evaluation<'_>) -> Result<ContinualMoe> {
    let mut fields = evaluation.config();
    let config = config(&mut fields)?;
    fields.finish()?;
    Ok(config.try_init(evaluation.device())?)
}

fn indices(tensor: Tensor<1, Int>) -> Result<Vec<usize>> {
    let data = tensor.into_data();
    let index = |value: i64| usize::try_from(value).map_err(|_| Failure(format!("index {value}")));
    data.iter::<i64>().map(index).collect()
}

fn round_number(evaluation: &mut Evaluation<'_>) -> Result<usize> {
    Ok(indices(evaluation.int::<1>("round")?)?[0])
}

fn list(values: &[f64], device: &Device) -> Tensor<1> {
    Tensor::from_data(TensorData::new(values.to_vec(), [values.len()]), device)
}

fn run_router(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    once(case, device, |evaluation| {
        let model = model(evaluation)?;
        let router = evaluation.load(model.router)?;
        let round = round_number(evaluation)?;
        router.check_round(round)?;
        let x = evaluation.float::<2>("x")?;
        let drift = evaluation.float::<1>("drift")?;
        let noise = evaluation.float::<1>("noise")?;
        let routing = router.route(x, noise);
        let (locality, auxiliary) = router.losses(&routing, drift, round);
        evaluation.count_output("expert", &[routing.expert]);
        evaluation.output("h", routing.h)?;
        evaluation.output("pi", routing.pi)?;
        evaluation.output("locality", locality)?;
        evaluation.output("auxiliary", auxiliary)
    })
}

fn run_update(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    once(case, device, |evaluation| {
        let model = model(evaluation)?;
        let model = evaluation.load_as(model, &ContinualMoe::layout())?;
        let flags = vec![false; model.terminator().converged().len()];
        let mut model = model.resume(round_number(evaluation)?, &flags, None)?;
        let x = evaluation.float::<2>("x")?;
        let y = evaluation.float::<1>("y")?;
        let noise = evaluation.float::<1>("noise")?;
        let round = model.round(x, y, noise)?;
        let device = evaluation.device().clone();
        evaluation.count_output("expert", &[round.routing.expert]);
        evaluation.output("locality", list(&[round.locality], &device))?;
        evaluation.output("auxiliary", list(&[round.auxiliary], &device))?;
        evaluation.output("experts", model.experts.experts.val())?;
        evaluation.output("theta", model.router.theta.val())
    })
}

fn run_run(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    once(case, device, |evaluation| {
        let mut model = model(evaluation)?;
        let x = evaluation.float::<3>("x")?;
        let y = evaluation.float::<2>("y")?;
        let noise = evaluation.float::<2>("noise")?;
        let truth = Matrix::of(&evaluation.float::<2>("truth")?);
        let tasks = indices(evaluation.int::<1>("tasks")?)?;
        let mut ledger = ErrorLedger::new(noise.dims()[1], truth.rows());
        let mut chosen = Vec::new();
        for (round, task) in tasks.into_iter().enumerate() {
            let x = x.clone().narrow(0, round, 1).squeeze_dim(0);
            let y = y.clone().narrow(0, round, 1).squeeze_dim(0);
            let noise = noise.clone().narrow(0, round, 1).squeeze_dim(0);
            let expert = model.round(x, y, noise)?.routing.expert;
            ledger.record(task, expert, &squared_errors(&model.experts.weights(), &truth))?;
            chosen.push(expert);
        }
        let device = evaluation.device().clone();
        let stopped_at = model.terminator().stopped_at().map_or(-1, |round| round as i64);
        let converged = model.terminator().converged().to_vec();
        let flags = TensorData::new(converged.clone(), [converged.len()]);
        evaluation.count_output("chosen", &chosen);
        evaluation.bool_output("converged", Tensor::<1, Bool>::from_data(flags, &device))?;
        evaluation.int_output("stopped_at", Tensor::<1, Int>::from_data([stopped_at], &device))?;
        evaluation.output("theta", model.router.theta.val())?;
        evaluation.output("experts", model.experts.experts.val())?;
        evaluation.output("fresh_error", list(ledger.fresh(), &device))?;
        evaluation.output("forgetting", list(ledger.forgetting(), &device))?;
        let last = ledger.generalization().last().copied();
        let last = last.ok_or_else(|| Failure("the case has no round".into()))?;
        evaluation.output("generalization", list(&[last], &device))
    })
}

fn run_formulas(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    once(case, device, |evaluation| {
        let mut fields = evaluation.config();
        let config = ExpectedErrorsConfig {
            input_dim: fields.required("input_dim")?,
            samples: fields.required("samples")?,
            num_experts: fields.required("num_experts")?,
        };
        fields.finish()?;
        let truth = Matrix::of(&evaluation.float::<2>("truth")?);
        let tasks = indices(evaluation.int::<1>("tasks")?)?;
        let chosen = indices(evaluation.int::<1>("chosen")?)?;
        let refused = |error: ConfigError| Failure(format!("the library refused the configuration: {error}"));
        let expected = config.try_init(&truth).map_err(refused)?;
        let run = expected.run(&tasks, &chosen)?;
        let device = evaluation.device().clone();
        let rounds = tasks.len();
        let all: Vec<f64> = run.errors.iter().flat_map(|errors| errors.values().to_vec()).collect();
        let shape = [rounds, config.num_experts, truth.rows()];
        evaluation.output("expected_error", Tensor::<3>::from_data(TensorData::new(all, shape), &device))?;
        evaluation.output("forgetting", list(run.ledger.forgetting(), &device))?;
        evaluation.output("generalization", list(&run.ledger.generalization()[rounds - 1..], &device))?;
        let single = (1..=rounds).map(|t| Ok(expected.single_forgetting(t)?)).collect::<Result<Vec<_>>>()?;
        evaluation.output("single_forgetting", list(&single, &device))?;
        evaluation.output("single_generalization", list(&[expected.single_generalization(rounds)?], &device))
    })
}
