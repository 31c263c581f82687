//! The losses of the first two phases over a whole model.

use burn::tensor::Tensor;
use gatekit_core::InputError;
use gatekit_core::router::Phase;

use super::acmize::Recorded;
use super::layer::Acm;
use super::losses::{distill, gate_labels, gate_loss};

/// Phase 1: the mean of [`distill`] over the modules, `[1]`. Trains learners alone.
///
/// Module l is `acms[l]` ([`HasAcms::acms`](super::HasAcms::acms)) and what it replaced is `records[l]`
/// ([`Acmize::record`](super::Acmize::record)): each sees the base model's own activations, so they learn independently
/// of one another. Paper: Adam, learning rate 1e-3 with a cosine to 1e-6, batch 64, 2 epochs, no weight decay.
///
/// # Errors
///
/// [`InputError`] unless there is one record a module, and at least one.
///
/// # Panics
///
/// When a record is of another width than its module.
pub fn distillation_loss(acms: &[&Acm], records: &[Recorded]) -> Result<Tensor<1>, InputError> {
    mean_over(acms, records, |acm, Recorded { input, output }| {
        Ok(distill(acm.learners.forward(input.clone().detach()), output.clone().detach()))
    })
}

/// Phase 2: the mean of [`gate_loss`] over the modules, `[1]`, with the labels of [`gate_labels`], which are held at
/// `min_choice` and above. Trains gates alone: labels carry no gradient.
///
/// The gate's probabilities are judged, in `phase`: with Gumbel noise in training. Paper: Adam, learning rate 0.01,
/// batch 64, 1 epoch, gradient norm clipped at 1, `gating_error_factor` 1.2.
///
/// # Errors
///
/// [`InputError`] unless there is one record a module, and at least one; for a module without a gate; for a factor
/// that is no finite number above 0.
///
/// # Panics
///
/// As [`distillation_loss`].
pub fn gate_pretraining_loss(
    acms: &[&Acm],
    records: &[Recorded],
    gating_error_factor: f64,
    phase: Phase,
) -> Result<Tensor<1>, InputError> {
    if !(gating_error_factor > 0.0 && gating_error_factor.is_finite()) {
        return Err(InputError::new("gating_error_factor", gating_error_factor, "a finite number above 0"));
    }
    mean_over(acms, records, |acm, Recorded { input, output }| {
        let (input, output) = (input.clone().detach(), output.clone().detach());
        let noise = acm.gating_network.as_ref().and_then(|gate| gate.draw(&input));
        let gate = acm.gate_of(input.clone(), noise.filter(|_| phase == Phase::Training), phase)?;
        let fewest = acm.gating_network.as_ref().map_or(0, |gate| gate.min_choice());
        let labels = gate_labels(acm.learners.forward(input), output, gating_error_factor);
        Ok(gate_loss(gate.probs, labels.clamp_min(fewest as i64)))
    })
}

fn mean_over(
    acms: &[&Acm],
    records: &[Recorded],
    loss: impl Fn(&Acm, &Recorded) -> Result<Tensor<1>, InputError>,
) -> Result<Tensor<1>, InputError> {
    if acms.is_empty() || acms.len() != records.len() {
        let need = format!("one for each of {} modules, and at least one", acms.len());
        return Err(InputError::new("records", records.len(), need));
    }
    let losses =
        acms.iter().zip(records).map(|(acm, record)| loss(acm, record)).collect::<Result<Vec<_>, _>>()?;
    let count = losses.len() as f64;
    Ok(losses.into_iter().reduce(|sum, loss| sum + loss).expect("at least one").div_scalar(count))
}
