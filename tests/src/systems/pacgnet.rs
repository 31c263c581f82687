//! `pacgnet`: cross-gating, pyramidal gating, the network, oriented losses and evaluation.

use burn::tensor::{Device, Tensor};
use gatekit::core::{ModuleConfig, batch_norm::BatchStatistics};
use gatekit::fusion::pacgnet::{
    DetectionTargets, Detections, LossGains, PacgNet, PacgNetConfig, PyramidalFeatureGating,
    PyramidalFeatureGatingConfig, SymmetricalCrossGating, SymmetricalCrossGatingConfig,
    assignment::TaskAlignedAssigner,
    evaluation::{
        BoxList, average_precision, match_detections, mean_average_precision, non_maximum_suppression,
    },
    loss::detection_loss,
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
    Row { component: "symmetrical-cross-gating", run: run_cross_gating },
    Row { component: "pyramidal-feature-gating", run: run_pyramidal_gating },
    Row { component: "pacgnet", run: run_network },
    Row { component: "oriented-detection", run: run_detection },
    Row { component: "evaluation", run: run_evaluation },
];

fn statistics(fields: &mut Fields<'_>) -> Result<BatchStatistics> {
    Ok(match fields.with_default("batch_statistics", false)? {
        true => BatchStatistics::Batch,
        false => BatchStatistics::Running,
    })
}

fn run_cross_gating(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    once(case, device, |evaluation| {
        let mut fields = evaluation.config();
        let config = SymmetricalCrossGatingConfig::new(fields.required("channels")?)
            .with_kernel_size(fields.with_default("kernel_size", 3)?)
            .with_num_bottlenecks(fields.with_default("num_bottlenecks", 1)?)
            .with_reduction(fields.with_default("reduction", 4)?)
            .with_num_layers(fields.with_default("num_layers", 1)?)
            .with_norm_epsilon(fields.with_default("norm_epsilon", 1e-3)?)
            .with_dropout(0.0);
        let statistics = statistics(&mut fields)?;
        fields.finish()?;
        let module = config.try_init(evaluation.device())?;
        let module = evaluation.load_as(module, &SymmetricalCrossGating::tensor_layout())?;
        let (rgb, ir) = (evaluation.float::<4>("rgb")?, evaluation.float::<4>("ir")?);
        let (rgb, ir) = module.forward(rgb, ir, statistics);
        evaluation.output("rgb", rgb)?;
        evaluation.output("ir", ir)
    })
}

fn run_pyramidal_gating(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    once(case, device, |evaluation| {
        let mut fields = evaluation.config();
        let config = PyramidalFeatureGatingConfig::new(fields.required("channels")?)
            .with_min_gate_channels(fields.with_default("min_gate_channels", 16)?)
            .with_gate_ratio(fields.with_default("gate_ratio", 2)?)
            .with_interaction_ratio(fields.with_default("interaction_ratio", 2)?)
            .with_norm_epsilon(fields.with_default("norm_epsilon", 1e-3)?);
        let statistics = statistics(&mut fields)?;
        fields.finish()?;
        let module = config.try_init(evaluation.device())?;
        let module = evaluation.load_as(module, &PyramidalFeatureGating::tensor_layout())?;
        let current = [evaluation.float("rgb")?, evaluation.float("ir")?];
        let finer = [evaluation.float("rgb_prev")?, evaluation.float("ir_prev")?];
        let result = module.forward(current, finer, None, statistics);
        evaluation.output("y", result.fused)?;
        evaluation.output("spatial_gate", result.spatial_gate)?;
        evaluation.output("modality_weights", result.modality_weights)
    })
}

fn run_network(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    once(case, device, |evaluation| {
        let mut fields = evaluation.config();
        let config = PacgNetConfig::new(fields.required("num_classes")?)
            .with_channels(fields.required("channels")?)
            .with_depths(fields.required("depths")?)
            .with_neck_depth(fields.with_default("neck_depth", 1)?)
            .with_reg_max(fields.with_default("reg_max", 16)?)
            .with_scg_layers(fields.with_default("scg_layers", 1)?)
            .with_scg_bottlenecks(fields.with_default("scg_bottlenecks", 1)?)
            .with_scg_reduction(fields.with_default("scg_reduction", 4)?)
            .with_min_gate_channels(fields.with_default("min_gate_channels", 16)?)
            .with_gate_ratio(fields.with_default("gate_ratio", 2)?)
            .with_interaction_ratio(fields.with_default("interaction_ratio", 2)?)
            .with_min_head_channels(fields.with_default("min_head_channels", 16)?)
            .with_norm_epsilon(fields.with_default("norm_epsilon", 1e-3)?)
            .with_dropout(0.0);
        let statistics = statistics(&mut fields)?;
        fields.finish()?;
        let module = config.try_init(evaluation.device())?;
        let module = evaluation.load_as(module, &PacgNet::tensor_layout())?;
        let (rgb, ir) = (evaluation.float("rgb")?, evaluation.float("ir")?);
        let output = module.forward(rgb, ir, None, statistics);
        for (name, level) in ["fused_p3", "fused_p4", "fused_p5"].into_iter().zip(output.fused.levels) {
            evaluation.output(name, level)?;
        }
        for (name, map) in ["p3", "p4", "p5"].into_iter().zip(output.detections.maps) {
            evaluation.output(name, map)?;
        }
        evaluation.output("angle", output.detections.angle)
    })
}

fn run_detection(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    once(case, device, |evaluation| {
        let mut fields = evaluation.config();
        let num_classes = fields.required("num_classes")?;
        let (reg_max, strides) = (fields.required("reg_max")?, fields.with_default("strides", [8, 16, 32])?);
        let gains = LossGains {
            boxes: fields.with_default("box_gain", 7.5)?,
            cls: fields.with_default("cls_gain", 0.5)?,
            dfl: fields.with_default("dfl_gain", 1.5)?,
        };
        let assigner = TaskAlignedAssigner {
            topk: fields.with_default("tal_topk", 10)?,
            alpha: fields.with_default("tal_alpha", 0.5)?,
            beta: fields.with_default("tal_beta", 6.0)?,
        };
        fields.finish()?;
        let maps = [evaluation.float("p3")?, evaluation.float("p4")?, evaluation.float("p5")?];
        let decoded = Detections { maps, angle: evaluation.float("angle")? }.decode(reg_max, strides);
        let boxes = evaluation.float::<3>("gt_boxes")?.detach();
        let mask = evaluation.optional_bool::<2>("gt_mask")?;
        let mask = mask.ok_or_else(|| Failure("the case lacks `input.gt_mask`".into()))?;
        let targets = DetectionTargets::new(boxes, evaluation.int("gt_labels")?, mask, num_classes)?;
        let loss = detection_loss(&decoded, &targets, &assigner, &gains);
        evaluation.output("loss_box", loss.boxes.clone())?;
        evaluation.output("loss_cls", loss.cls.clone())?;
        evaluation.output("loss_dfl", loss.dfl.clone())?;
        evaluation.output("boxes", decoded.pixels())?;
        evaluation.output("scores", decoded.scores())?;
        let cells = decoded.cells.len();
        let images = loss.assignment.objects.len();
        let device = evaluation.device().clone();
        let assigned: Vec<i64> = (loss.assignment.objects.iter().flatten())
            .map(|object| object.map_or(-1, |object| object as i64))
            .collect();
        let assigned = Tensor::<1, burn::tensor::Int>::from_data(assigned.as_slice(), &device);
        evaluation.int_output("assigned", assigned.reshape([images, cells]))?;
        evaluation.output("target_scores", loss.target_scores(&targets, num_classes, &device))
    })
}

/// Numbers of an input on the host.
fn list<T>(values: Vec<T>, name: &str) -> Result<Vec<usize>>
where
    usize: TryFrom<T>,
{
    let read = |value| usize::try_from(value).map_err(|_| Failure(format!("`input.{name}` is negative")));
    values.into_iter().map(read).collect()
}

fn boxes(evaluation: &mut Evaluation<'_>, prefix: &str, scored: bool) -> Result<BoxList> {
    let name = |field: &str| format!("{prefix}{field}");
    let unread = |_| Failure("a tensor cannot be read".into());
    let values: Vec<f64> =
        evaluation.float::<2>(&name("boxes"))?.into_data().convert::<f64>().try_into_vec().map_err(unread)?;
    let mut ints = |field: &str| -> Result<Vec<usize>> {
        let tensor = evaluation.int::<1>(&name(field))?;
        list(tensor.into_data().convert::<i64>().try_into_vec::<i64>().map_err(unread)?, field)
    };
    let (labels, image) = (ints("labels")?, ints("image")?);
    let scores = match scored {
        false => Vec::new(),
        true => {
            let scores = evaluation.float::<1>("scores")?;
            scores.into_data().convert::<f64>().try_into_vec().map_err(unread)?
        }
    };
    let boxes = values.chunks_exact(5).map(|one| std::array::from_fn(|side| one[side])).collect();
    Ok(BoxList { boxes, labels, image, scores })
}

fn run_evaluation(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    once(case, device, |evaluation| {
        let mut fields = evaluation.config();
        let num_classes = fields.required("num_classes")?;
        let suppress = fields.with_default("nms_threshold", 0.7)?;
        let found = fields.with_default("match_threshold", 0.5)?;
        fields.finish()?;
        let detections = boxes(evaluation, "", true)?;
        let objects = boxes(evaluation, "gt_", false)?;
        let kept = non_maximum_suppression(&detections, suppress, detections.boxes.len())?;
        let survivors = detections.retain(&kept);
        let matched = match_detections(&survivors, &objects, found)?;
        let precision = average_precision(&survivors, &matched, &objects, num_classes)?;
        let mean = mean_average_precision(&precision);
        let mut matched = matched.into_iter();
        let positive: Vec<bool> =
            kept.iter().map(|kept| *kept && matched.next().unwrap_or_default()).collect();
        let device = evaluation.device().clone();
        let flags = |values: &[bool]| {
            Tensor::<1, burn::tensor::Bool>::from_data(burn::tensor::TensorData::from(values), &device)
        };
        evaluation.bool_output("kept", flags(&kept))?;
        evaluation.bool_output("true_positive", flags(&positive))?;
        evaluation.output("average_precision", Tensor::<1>::from_data(precision.as_slice(), &device))?;
        evaluation.output("mean_average_precision", Tensor::<1>::from_data([mean], &device))
    })
}
