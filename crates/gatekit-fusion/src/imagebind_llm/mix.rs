//! Arithmetic in the embedding space.

use burn::tensor::Tensor;
use gatekit_core::{InputError, widen};

/// A weighted mean of unit embeddings: `u_m = e_m / max(|e_m|, 1e-12)`, `x = sum_m w_m u_m / (sum w + 1e-6)`.
///
/// The mean is not normalised again: of one modality it is `1 / (1 + 1e-6)` long at weight 1. A modality of weight 0 is
/// absent, and its embedding is not read: it may be anything. Paper, section 3.5, in the released form.
#[derive(Debug, Clone, PartialEq)]
pub struct ModalityMix {
    weights: Vec<f64>,
}

impl ModalityMix {
    /// With a weight a modality.
    ///
    /// # Errors
    ///
    /// [`InputError`] for weights that are negative or not finite, and when none is above 0.
    pub fn new(weights: Vec<f64>) -> Result<Self, InputError> {
        let refuse = |got: String| Err(InputError::new("weights", got, "finite, not negative, one above 0"));
        if let Some(place) = weights.iter().position(|weight| !(weight.is_finite() && *weight >= 0.0)) {
            return refuse(format!("{} at {place}", weights[place]));
        }
        match weights.iter().any(|weight| *weight > 0.0) {
            true => Ok(Self { weights }),
            false => refuse(format!("{weights:?}")),
        }
    }

    /// Embeddings `[modalities, B, M]` to their mean `[B, M]`. A zero embedding stays zero and only shortens the mean.
    ///
    /// # Errors
    ///
    /// [`InputError`] for another number of modalities than weights.
    pub fn forward(&self, embeddings: Tensor<3>) -> Result<Tensor<2>, InputError> {
        let [modalities, batch, width] = embeddings.dims();
        if modalities != self.weights.len() {
            let got = format!("{modalities} modalities");
            return Err(InputError::new("embeddings", got, format!("{}, one a weight", self.weights.len())));
        }
        let (dtype, total) = (embeddings.dtype(), self.weights.iter().sum::<f64>() + 1e-6);
        let embeddings = widen(embeddings);
        let part = |(modality, weight): (usize, &f64)| {
            let embedding = embeddings.clone().narrow(0, modality, 1).reshape([batch, width]);
            unit(embedding).mul_scalar(weight / total)
        };
        let present = self.weights.iter().enumerate().filter(|(_, weight)| **weight > 0.0);
        let sum = present.map(part).reduce(|sum, part| sum + part);
        Ok(sum.expect("a weight is above 0").cast(dtype))
    }
}

/// Rows `[B, M]` over their norms, which count as 1e-12 at least: a zero row stays zero.
fn unit(x: Tensor<2>) -> Tensor<2> {
    // The bound is on the square, so that the gradient of the root is finite where it binds.
    let norm = x.clone().square().sum_dim(1).clamp_min(1e-24).sqrt();
    x / norm
}
