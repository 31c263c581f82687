//! Cross entropy and regularisation across the instances of a batch.

use burn::config::Config;
use burn::tensor::{Bool, Int, Tensor};
use gatekit_core::cross_entropy::{check_labels, cross_entropies};
use gatekit_core::{ConfigError, InputError, widen};

use super::check_positive;

/// Below it both sums of the regulariser are held.
const FLOOR: f64 = 1e-8;

/// Configuration of [`TouchFormerLoss`].
#[derive(Config, Debug)]
pub struct TouchFormerLossConfig {
    /// Divides the similarities, above 0. Default 0.2.
    #[config(default = 0.2)]
    pub temperature: f64,
    /// Weight of the regularisation, at least 0. Default 0.1.
    #[config(default = 0.1)]
    pub regularization_weight: f64,
}

impl TouchFormerLossConfig {
    /// The loss.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] for a temperature that is not above 0, and a weight below 0.
    pub fn try_init(&self) -> Result<TouchFormerLoss, ConfigError> {
        check_positive(&[("temperature", self.temperature)])?;
        let weight = self.regularization_weight;
        if !(weight.is_finite() && weight >= 0.0) {
            return Err(ConfigError::new("regularization_weight", weight, "a finite number, at least 0"));
        }
        Ok(TouchFormerLoss { temperature: self.temperature, regularization_weight: weight })
    }
}

/// Mean cross entropy plus [`cross_instance_regularization`].
#[derive(Debug, Clone)]
pub struct TouchFormerLoss {
    temperature: f64,
    regularization_weight: f64,
}

/// A loss and its parts, each `[1]`, in nats.
#[derive(Debug, Clone)]
pub struct TouchFormerLosses {
    /// `cross_entropy + regularization_weight * regularization`.
    pub total: Tensor<1>,
    /// Mean over the batch.
    pub cross_entropy: Tensor<1>,
    /// Before its weight.
    pub regularization: Tensor<1>,
}

impl TouchFormerLoss {
    /// The loss of `logits` `[B, classes]` and `embedding` `[B, width]` (of any length) against `labels` `[B]`.
    ///
    /// # Errors
    ///
    /// [`InputError`] for labels that are no class, and as [`cross_instance_regularization`].
    ///
    /// # Panics
    ///
    /// When logits and embedding differ in batch.
    pub fn forward(
        &self,
        logits: Tensor<2>,
        embedding: Tensor<2>,
        labels: &Tensor<1, Int>,
    ) -> Result<TouchFormerLosses, InputError> {
        let [batch, classes] = logits.dims();
        assert!(
            embedding.dims()[0] == batch,
            "TouchFormerLoss: `embedding` {:?} and `logits` {:?} differ in batch",
            embedding.dims(),
            logits.dims()
        );
        check_labels(labels, batch, classes)?;
        let regularization = cross_instance_regularization(embedding, labels, self.temperature)?;
        let cross_entropy = cross_entropies(logits, labels.clone()).mean();
        let total = cross_entropy.clone() + regularization.clone() * self.regularization_weight;
        Ok(TouchFormerLosses { total, cross_entropy, regularization })
    }
}

/// Instances of a class are drawn together:
/// `L = - mean_i log((sum over j of i's class S_ij + 1e-8) / (sum over all j S_ij + 1e-8))`, j != i, with
/// `S_ij = exp(z_i . z_j / temperature)` of embeddings `[B, width]` that are brought to length 1 first; `[1]`, in
/// nats, in at least float32.
///
/// An instance alone in its class gives `-log(1e-8 / (..))`, about 20, with next to no useful gradient. Both logarithms
/// are taken as log-sum-exp, so that no temperature overflows. TouchFormer (arXiv 2511.19509) and its released code.
///
/// # Errors
///
/// [`InputError`] for a batch of less than 2, and for labels of another number.
///
/// # Panics
///
/// When `temperature` is not above 0.
pub fn cross_instance_regularization(
    embedding: Tensor<2>,
    labels: &Tensor<1, Int>,
    temperature: f64,
) -> Result<Tensor<1>, InputError> {
    assert!(temperature > 0.0, "cross_instance_regularization: `temperature` is {temperature}, need above 0");
    let [batch, _] = embedding.dims();
    if batch < 2 {
        return Err(InputError::new("embedding", format!("a batch of {batch}"), "at least 2 instances"));
    }
    if labels.dims() != [batch] {
        return Err(InputError::new("labels", format!("{:?}", labels.dims()), format!("[{batch}]")));
    }
    let z = unit(embedding);
    let scores = z.clone().matmul(z.transpose()) / temperature;
    let square = [batch, batch];
    let others = Tensor::<2, Bool>::diag_mask(square, 0, &labels.device());
    let rows = labels.clone().unsqueeze_dim::<2>(1).expand(square);
    let alike = rows.clone().equal(rows.transpose()).bool_and(others.clone());
    let share = log_sum(scores.clone(), alike) - log_sum(scores, others);
    Ok(share.mean().neg())
}

/// Length 1, or 0 for a vector without length: `z / max(|z|, 1e-12)`.
pub(super) fn unit(z: Tensor<2>) -> Tensor<2> {
    let z = widen(z);
    let length = z.clone().square().sum_dim(1).clamp_min(1e-24).sqrt();
    z / length
}

/// `log(sum over the taken j of exp(s_ij) + 1e-8)`, `[B, 1]`.
fn log_sum(scores: Tensor<2>, taken: Tensor<2, Bool>) -> Tensor<2> {
    let left_out = taken.bool_not();
    let known = scores.mask_fill(left_out.clone(), 0.0);
    let largest =
        known.clone().detach().mask_fill(left_out.clone(), FLOOR.ln()).max_dim(1).clamp_min(FLOOR.ln());
    let powers = (known - largest.clone()).mask_fill(left_out.clone(), 0.0).exp().mask_fill(left_out, 0.0);
    let floor = largest.clone().neg().add_scalar(FLOOR.ln()).exp();
    (powers.sum_dim(1) + floor).log() + largest
}
