//! Ways to decide where a sample leaves, and what they come to.

use burn::tensor::{Tensor, activation::softmax};
use gatekit::core::InputError;
use gatekit::core::probe::calibration_error;
use gatekit::experts::jei_dnn::{EarlyExits, ExitReport};

use crate::spiral::Points;

/// What a policy comes to on test points.
#[derive(Clone)]
pub struct Outcome {
    pub accuracy: f64,
    pub cost: f64,
    pub ece: f64,
    /// The exit of every point.
    pub levels: Vec<usize>,
}

/// By the gates: exits at their hazard.
pub fn gates(exits: &EarlyExits, features: Tensor<3>, points: &Points) -> Result<Outcome, InputError> {
    let report = ExitReport::of(exits, features, &points.labels)?;
    Ok(Outcome {
        accuracy: report.accuracy,
        cost: report.mean_cost,
        ece: report.calibration_error,
        levels: report.exit_levels,
    })
}

/// By confidence: the first exit whose largest probability reaches `threshold`, else the last.
pub fn confidence(
    exits: &EarlyExits,
    features: Tensor<3>,
    points: &Points,
    threshold: f64,
) -> Result<Outcome, InputError> {
    let config = exits.config();
    let logits = exits.forward(features).exit_logits;
    let [count, stages, _] = logits.dims();
    let (largest, answers) = softmax(logits, 2).max_dim_with_indices(2);
    let largest: Vec<f64> = largest.into_data().iter::<f64>().collect();
    let answers: Vec<i64> = answers.into_data().iter::<i64>().collect();
    let labels: Vec<i64> = points.labels.to_data().iter::<i64>().collect();
    let (mut levels, mut sure, mut correct, mut cost) = (Vec::new(), Vec::new(), Vec::new(), 0.0);
    for (point, label) in labels.iter().enumerate() {
        let of = |exit: usize| point * stages + exit;
        let level = (0..stages - 1).find(|exit| largest[of(*exit)] >= threshold).unwrap_or(stages - 1);
        levels.push(level);
        sure.push(largest[of(level)].min(1.0));
        correct.push(answers[of(level)] == *label);
        cost += config.cost_per_exit[level] / count as f64;
    }
    let right = correct.iter().filter(|correct| **correct).count();
    let ece = calibration_error(&sure, &correct, config.bins, config.strategy)?;
    Ok(Outcome { accuracy: right as f64 / count as f64, cost, ece, levels })
}

/// The value of a curve of points (x, y) at `x`, straight between them; `None` outside.
pub fn at(curve: &[(f64, f64)], x: f64) -> Option<f64> {
    let mut curve = curve.to_vec();
    curve.sort_by(|a, b| a.0.total_cmp(&b.0));
    curve.windows(2).find(|pair| pair[0].0 <= x && x <= pair[1].0).map(|pair| {
        let ((x0, y0), (x1, y1)) = (pair[0], pair[1]);
        if x1 > x0 { y0 + (y1 - y0) * (x - x0) / (x1 - x0) } else { y0.max(y1) }
    })
}
