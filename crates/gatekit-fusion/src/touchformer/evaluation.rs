//! How well materials are told apart.

use burn::tensor::{Int, Tensor};
use gatekit_core::InputError;
use gatekit_core::cross_entropy::{check_labels, cross_entropies};

use super::model::TouchFormer;
use super::training::TouchBatch;

/// What a network reaches on given instances.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluation {
    /// Mean cross entropy, nats.
    pub loss: f64,
    /// Share of right answers.
    pub accuracy: f64,
    /// See [`macro_f1`].
    pub macro_f1: f64,
    /// The class with the largest logit, one an instance.
    pub predictions: Vec<usize>,
    /// Mean gate of every sensor over the instances where it is present; NaN where it is in none.
    pub mean_gates: Vec<f64>,
    /// Share of the instances in which a sensor is present that keep it; NaN where it is in none.
    pub kept: Vec<f64>,
}

impl Evaluation {
    /// Of `model` (without autodiff) on `batches`.
    ///
    /// # Errors
    ///
    /// [`InputError`] without an instance, and for labels that are no class.
    ///
    /// # Panics
    ///
    /// When a batch does not fit the model.
    pub fn of(model: &TouchFormer, batches: &[TouchBatch]) -> Result<Self, InputError> {
        let (mut labels, mut predictions, mut loss) = (Vec::new(), Vec::new(), 0.0);
        let sensors = model.proj.len();
        let (mut gates, mut kept, mut present) = (vec![0.0; sensors], vec![0.0; sensors], vec![0.0; sensors]);
        for batch in batches {
            let output = model.forward(&batch.inputs, &batch.mask);
            let [count, classes] = output.logits.dims();
            labels.extend(check_labels(&batch.labels, count, classes)?);
            predictions.extend(classes_of(output.logits.clone()));
            let losses = cross_entropies(output.logits, batch.labels.clone());
            loss += losses.sum().into_scalar::<f64>();
            let sums = |x: Tensor<2>| x.sum_dim(0).into_data().iter::<f64>().collect::<Vec<_>>();
            let there = sums(batch.mask.present().float());
            let parts = [sums(output.weights.gates), sums(output.weights.kept.float()), there];
            for (total, part) in [&mut gates, &mut kept, &mut present].into_iter().zip(parts) {
                total.iter_mut().zip(part).for_each(|(total, part)| *total += part);
            }
        }
        if labels.is_empty() {
            return Err(InputError::new("batches", "no instance", "at least one"));
        }
        let count = labels.len() as f64;
        let right = labels.iter().zip(&predictions).filter(|(label, prediction)| label == prediction).count();
        let share = |sums: Vec<f64>| sums.iter().zip(&present).map(|(sum, there)| sum / there).collect();
        Ok(Self {
            loss: loss / count,
            accuracy: right as f64 / count,
            macro_f1: macro_f1(&labels, &predictions),
            predictions,
            mean_gates: share(gates),
            kept: share(kept),
        })
    }
}

/// The class with the largest logit, one a row.
fn classes_of(logits: Tensor<2>) -> Vec<usize> {
    let classes: Tensor<2, Int> = logits.argmax(1);
    classes.into_data().iter::<i64>().map(|class| class as usize).collect()
}

/// Mean over the classes that occur, as labels or as predictions, of `2 hits / (labels + predictions)`; 0 without any.
///
/// # Panics
///
/// When there is not one prediction a label.
pub fn macro_f1(labels: &[usize], predictions: &[usize]) -> f64 {
    assert!(
        labels.len() == predictions.len(),
        "macro_f1: {} `labels`, {} `predictions`",
        labels.len(),
        predictions.len()
    );
    let classes = labels.iter().chain(predictions).max().map_or(0, |largest| largest + 1);
    let (mut hits, mut occurrences) = (vec![0.0; classes], vec![0.0; classes]);
    for (&label, &prediction) in labels.iter().zip(predictions) {
        occurrences[label] += 1.0;
        occurrences[prediction] += 1.0;
        if label == prediction {
            hits[label] += 1.0;
        }
    }
    let occurring: Vec<f64> = (hits.iter().zip(&occurrences))
        .filter(|(_, occurrences)| **occurrences > 0.0)
        .map(|(hits, occurrences)| 2.0 * hits / occurrences)
        .collect();
    occurring.iter().sum::<f64>() / occurring.len().max(1) as f64
}
