//! `modes`: experts skipped without training.

use burn::tensor::{Device, Int, Tensor, TensorData};
use gatekit::{
    core::{
        ModuleConfig,
        checkpoint::TensorLayout,
        router::{Assignment, Routing},
    },
    experts::modes::{
        Bypass, CalibrationLoss, CalibratorConfig, ExpertSkipperConfig, FrontierSearchConfig, GridMap,
        Measurement, SearchError, SkippingMoeLayerConfig, TokenModalities,
    },
};

use super::{Row, moe_routing};
use crate::{
    case::Case,
    evaluation::{Evaluation, Produced, once},
    failure::{Failure, Result},
};

/// The system's components.
pub const ROWS: &[Row] = &[
    Row { component: "skip", run: run_skip },
    Row { component: "modes-moe-layer", run: run_layer },
    Row { component: "calibration", run: run_calibration },
    Row { component: "frontier-search", run: run_search },
];

/// Numbers as a tensor `[n]` on the case's device.
fn numbers(evaluation: &Evaluation<'_>, values: &[f64]) -> Tensor<1> {
    Tensor::from_data(TensorData::new(values.to_vec(), [values.len()]), evaluation.device())
}

fn run_skip(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    once(case, device, |evaluation| {
        let mut fields = evaluation.config();
        let config = ExpertSkipperConfig {
            num_experts: fields.required("num_experts")?,
            threshold_text: fields.with_default("threshold_text", 0.0)?,
            threshold_vision: fields.with_default("threshold_vision", 0.0)?,
            bypass: fields.with_default("bypass", Bypass::None)?,
        };
        fields.finish()?;
        let skipper = config.try_init(evaluation.device())?;
        let skipper = evaluation.load(skipper)?;
        let weights = evaluation.float::<2>("weights")?;
        let indices = evaluation.int::<2>("indices")?;
        let modalities = TokenModalities::from_tensor(&evaluation.int::<1>("modality")?)?;
        let assignment = Assignment::from_tensor(&indices, config.num_experts)?;
        let routing = Routing { logits: None, scores: None, indices, weights, load: None, assignment };
        let (pruned, decision) = skipper.prune(routing, &modalities)?;
        let device = evaluation.device().clone();
        evaluation.output("score", decision.scores_tensor(&device))?;
        evaluation.bool_output("keep", decision.keep_mask(&device))?;
        let ratio = numbers(evaluation, &[decision.counts().ratio()]);
        evaluation.output("skip_ratio", ratio)?;
        // The tensors and what the dispatch sees are the same.
        let on_host: Vec<i64> = pruned.assignment.experts().iter().map(|expert| *expert as i64).collect();
        if pruned.indices.to_data().iter::<i64>().ne(on_host) {
            return Err(Failure("pruned indices differ between host and device".into()));
        }
        evaluation.output("weights", pruned.weights)?;
        evaluation.int_output("indices", pruned.indices)
    })
}

fn run_layer(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    once(case, device, |evaluation| {
        let mut fields = evaluation.config();
        let config = SkippingMoeLayerConfig {
            moe: moe_routing::layer_config(evaluation, &mut fields)?,
            threshold_text: fields.with_default("threshold_text", 0.0)?,
            threshold_vision: fields.with_default("threshold_vision", 0.0)?,
            bypass: fields.with_default("bypass", Bypass::None)?,
        };
        fields.finish()?;
        let layout = config.tensor_layout(TensorLayout::default(), "");
        let mut layer = config.try_init(evaluation.device())?;
        layer.layer.gate = moe_routing::with_table(evaluation, layer.layer.gate)?;
        let layer = evaluation.load_as(layer, &layout)?;
        let x = evaluation.float::<3>("x")?;
        let modalities = TokenModalities::from_tensor(&evaluation.int::<2>("modality")?)?;
        let inputs = moe_routing::inputs(evaluation)?;
        let forward = layer.forward_with(x, &modalities, &inputs)?;
        let device = evaluation.device().clone();
        evaluation.bool_output("keep", forward.decision.keep_mask(&device))?;
        let ratio = numbers(evaluation, &[forward.decision.counts().ratio()]);
        evaluation.output("skip_ratio", ratio)?;
        evaluation.int_output("indices", forward.routing.indices)?;
        evaluation.output("y", forward.y)
    })
}

fn run_calibration(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    once(case, device, |evaluation| {
        let mut fields = evaluation.config();
        let config = CalibratorConfig {
            loss: fields.with_default("loss", CalibrationLoss::Kl)?,
            temperature: fields.with_default("temperature", 1.0)?,
        };
        fields.finish()?;
        let reference = evaluation.float::<2>("reference_logits")?;
        let ablated = evaluation.float::<4>("ablated_logits")?;
        let [layers, modalities, positions, vocabulary] = ablated.dims();
        if modalities != 2 {
            return Err(Failure(format!("`input.ablated_logits` has {modalities} modalities, need 2")));
        }
        let of = |layer: usize, modality: usize| {
            let part = ablated.clone().narrow(0, layer, 1).narrow(1, modality, 1);
            part.reshape([positions, vocabulary])
        };
        let ablated: Vec<[Tensor<2>; 2]> = (0..layers).map(|layer| [of(layer, 0), of(layer, 1)]).collect();
        let calibration = config.try_init()?.importance(reference, &ablated)?;
        let divergence = numbers(evaluation, &calibration.divergence.concat()).reshape([layers, 2]);
        evaluation.output("divergence", divergence)?;
        let importance = calibration.importance.to_tensor(evaluation.device());
        evaluation.output("importance", importance)
    })
}

fn run_search(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    once(case, device, |evaluation| {
        let mut fields = evaluation.config();
        let config = FrontierSearchConfig {
            target_skip: fields.required("target_skip")?,
            grid_num: fields.with_default("grid_num", 100)?,
            text_max: fields.with_default("text_max", 0.71)?,
            vision_max: fields.with_default("vision_max", 0.6)?,
            grid_map: fields.with_default("grid_map", GridMap::Exp)?,
            exp_coeff: fields.with_default("exp_coeff", 10.0)?,
            ratio_tolerance: 1e-6,
        };
        fields.finish()?;
        let table = |values: Tensor<2>| values.into_data().iter::<f64>().collect::<Vec<_>>();
        let ratios = table(evaluation.float::<2>("skip_ratio")?);
        let losses = table(evaluation.float::<2>("loss")?);
        let search = config.try_init()?;
        let columns = search.vision_grid().len();
        let mut asked = 0;
        let found = search.run(|i, j| {
            asked += 1;
            let at = i * columns + j;
            Ok::<_, std::convert::Infallible>(Measurement { loss: losses[at], skip_ratio: ratios[at] })
        });
        let (best, loss) = match found {
            Ok(found) if found.evaluations() != asked => {
                return Err(Failure(format!("{asked} pairs asked, {} counted", found.evaluations())));
            }
            Ok(found) => ([found.best.0 as i64, found.best.1 as i64], found.measured.loss),
            Err(SearchError::Infeasible { .. }) => ([-1, -1], 0.0),
            Err(error) => return Err(Failure(error.to_string())),
        };
        let device = evaluation.device().clone();
        let best = Tensor::<1, Int>::from_data(TensorData::new(best.to_vec(), [2]), &device);
        evaluation.int_output("best", best)?;
        let loss = numbers(evaluation, &[loss]);
        evaluation.output("best_loss", loss)?;
        evaluation.count_output("evaluations", &[asked]);
        for (name, grid) in [("text_grid", search.text_grid()), ("vision_grid", search.vision_grid())] {
            let grid = numbers(evaluation, grid);
            evaluation.output(name, grid)?;
        }
        Ok(())
    })
}
