//! Accuracy, cost and calibration of exits; sets of labels that hold the truth.

use burn::tensor::activation::softmax;
use burn::tensor::{Int, Tensor};
use gatekit_core::cross_entropy::check_labels;
use gatekit_core::probe::{calibration_error, conformal_threshold};
use gatekit_core::{InputError, widen};

use super::exits::{EarlyExits, ExitDecision};
use super::losses::{BestExits, best_exits};

/// Least samples of an exit for a conformal threshold of its own, less one.
const OWN_THRESHOLD: usize = 20;

/// How exits do on labelled samples.
#[derive(Debug, Clone)]
pub struct ExitReport {
    /// Share of right answers at the exits taken.
    pub accuracy: f64,
    /// Mean cost of the exits taken.
    pub mean_cost: f64,
    /// Calibration error of the answers' confidences, with the configuration's bins.
    pub calibration_error: f64,
    /// Samples that took every exit, L + 1 numbers.
    pub exit_counts: Vec<usize>,
    /// Share of right answers of every exit if all samples took it.
    pub exit_accuracies: Vec<f64>,
    /// The exits that would have been worth their cost.
    pub best_exits: BestExits,
    /// The exit that every sample took.
    pub exit_levels: Vec<usize>,
    /// The answering exit's probabilities, `[samples][classes]`.
    pub probabilities: Vec<Vec<f64>>,
    /// The labels.
    pub labels: Vec<usize>,
}

impl ExitReport {
    /// From the features `[samples, L + 1, embed_dim]` and labels `[samples]`.
    ///
    /// # Errors
    ///
    /// [`InputError`] without samples, for labels that are no classes, and names an exit whose logits
    /// hold NaN.
    ///
    /// # Panics
    ///
    /// When `features` has another shape.
    pub fn of(exits: &EarlyExits, features: Tensor<3>, labels: &Tensor<1, Int>) -> Result<Self, InputError> {
        let config = exits.config();
        let output = exits.forward(features);
        let decision = exits.decide(&output)?;
        let best_exits = best_exits(&output.exit_logits, labels, config)?;
        let labels = check_labels(labels, decision.logits.dims()[0], config.num_classes)?;
        let answers = output.exit_logits.argmax(2).into_data();
        let mut exit_accuracies = vec![0.0; config.num_exits + 1];
        for (place, answer) in answers.iter::<i64>().enumerate() {
            let (sample, exit) = (place / (config.num_exits + 1), place % (config.num_exits + 1));
            exit_accuracies[exit] += f64::from(answer == labels[sample] as i64) / labels.len() as f64;
        }
        let exit_levels: Vec<usize> =
            decision.exit_level.clone().into_data().iter::<i64>().map(|level| level as usize).collect();
        let mut exit_counts = vec![0; config.num_exits + 1];
        exit_levels.iter().for_each(|level| exit_counts[*level] += 1);
        let probabilities = probabilities(&decision);
        let confidence: Vec<f64> = probabilities.iter().map(|row| row[likeliest(row)].min(1.0)).collect();
        let correct: Vec<bool> =
            probabilities.iter().zip(&labels).map(|(row, label)| likeliest(row) == *label).collect();
        let count = labels.len() as f64;
        Ok(Self {
            accuracy: correct.iter().filter(|correct| **correct).count() as f64 / count,
            mean_cost: exit_levels.iter().map(|level| config.cost_per_exit[*level]).sum::<f64>() / count,
            calibration_error: calibration_error(&confidence, &correct, config.bins, config.strategy)?,
            exit_counts,
            exit_accuracies,
            best_exits,
            exit_levels,
            probabilities,
            labels,
        })
    }
}

fn probabilities(decision: &ExitDecision) -> Vec<Vec<f64>> {
    let [_, classes] = decision.logits.dims();
    let flat: Vec<f64> = softmax(widen(decision.logits.clone()), 1).into_data().iter::<f64>().collect();
    flat.chunks(classes).map(<[f64]>::to_vec).collect()
}

/// The first of the largest.
fn likeliest(row: &[f64]) -> usize {
    (1..row.len()).fold(0, |best, class| if row[class] > row[best] { class } else { best })
}

/// Thresholds of conformal sets, one an exit where enough samples left.
///
/// See [`conformal_threshold`]; scores are `1 - p_label` of the answering exit.
#[derive(Debug, Clone, PartialEq)]
pub struct ConformalThresholds {
    /// Of all samples together.
    pub overall: f64,
    /// Of those that took an exit, where they are more than 20; L + 1 entries.
    pub by_exit: Vec<Option<f64>>,
}

impl ConformalThresholds {
    /// From validation samples: sets of new ones hold the truth with probability `1 - alpha`.
    ///
    /// # Errors
    ///
    /// [`InputError`] for `alpha` outside (0, 1).
    pub fn fit(report: &ExitReport, alpha: f64) -> Result<Self, InputError> {
        let score =
            |sample: usize| (1.0 - report.probabilities[sample][report.labels[sample]]).clamp(0.0, 1.0);
        let samples = 0..report.labels.len();
        let of_exit = |exit: usize| {
            let scores: Vec<f64> =
                samples.clone().filter(|sample| report.exit_levels[*sample] == exit).map(score).collect();
            match scores.len() > OWN_THRESHOLD {
                true => conformal_threshold(&scores, alpha).map(Some),
                false => Ok(None),
            }
        };
        let overall = conformal_threshold(&samples.clone().map(score).collect::<Vec<_>>(), alpha)?;
        let by_exit = (0..report.exit_counts.len()).map(of_exit).collect::<Result<_, _>>()?;
        Ok(Self { overall, by_exit })
    }

    /// The classes `{c : p_c >= 1 - q}` of an answer given at `exit`.
    ///
    /// # Panics
    ///
    /// When there is no such exit.
    pub fn set(&self, exit: usize, probabilities: &[f64]) -> Vec<usize> {
        let q = self.by_exit[exit].unwrap_or(self.overall);
        (0..probabilities.len()).filter(|class| probabilities[*class] >= 1.0 - q).collect()
    }

    /// Mean size of the sets of a report's samples, and the share of them that holds the truth.
    pub fn size_and_coverage(&self, report: &ExitReport) -> (f64, f64) {
        let (mut size, mut held) = (0, 0);
        for (sample, probabilities) in report.probabilities.iter().enumerate() {
            let set = self.set(report.exit_levels[sample], probabilities);
            size += set.len();
            held += usize::from(set.contains(&report.labels[sample]));
        }
        let count = report.labels.len() as f64;
        (size as f64 / count, held as f64 / count)
    }
}
