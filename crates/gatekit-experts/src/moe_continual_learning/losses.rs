//! What the gate learns from.

use burn::tensor::{Tensor, TensorData};
use gatekit_core::ConfigError;

/// `L_loc = mean over n of sum_m pi_nm drift_m`: away from experts that had to move.
///
/// Li et al. (arXiv 2406.16437), eq. of the locality loss; a round has one decision there, n = 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalityLoss;

impl LocalityLoss {
    /// From the gate's probabilities `[N, M]` and how far every expert moved, `[M]`: 0 for those that did not.
    /// The result is `[1]`; the drifts are usually constants ([`Tensor::detach`]).
    ///
    /// # Panics
    ///
    /// When there is not one drift an expert.
    pub fn forward(&self, probabilities: Tensor<2>, drift: Tensor<1>) -> Tensor<1> {
        let [tokens, experts] = probabilities.dims();
        assert!(drift.dims() == [experts], "LocalityLoss: {:?} drifts for {experts} experts", drift.dims());
        (probabilities * drift.unsqueeze_dim(0)).sum().div_scalar(tokens.max(1) as f64)
    }
}

/// `L_aux = alpha M sum_m f_m P_m` over all rounds so far.
///
/// With the rounds c that each expert had before, the sums q of its probabilities in these, and the present
/// round t: `f_m = (c_m + [m = m_t]) / t` and `P_m = (q_m + pi_m [m = m_t]) / t`. Li et al. (arXiv 2406.16437);
/// Fedus et al. (arXiv 2101.03961), eq. 4, within one batch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CumulativeLoadLoss {
    /// Weight alpha.
    pub weight: f64,
    /// Whether f is as above; else 1 for all experts.
    pub with_counts: bool,
}

impl CumulativeLoadLoss {
    /// With weight alpha.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] for a negative weight, or one that is not finite.
    pub fn new(weight: f64) -> Result<Self, ConfigError> {
        match weight.is_finite() && weight >= 0.0 {
            true => Ok(Self { weight, with_counts: true }),
            false => Err(ConfigError::new("aux_weight", weight, "a finite number, at least 0")),
        }
    }

    /// From the present probabilities `[M]`, the chosen expert, counts and sums `[M]` of the rounds before, and
    /// the round `t`, from 1; `[1]`. Counts and sums are constants.
    ///
    /// # Panics
    ///
    /// When the sizes differ or the expert is none.
    pub fn forward(
        &self,
        probabilities: Tensor<1>,
        chosen: usize,
        counts: Tensor<1>,
        prob_sums: Tensor<1>,
        round: usize,
    ) -> Tensor<1> {
        let [experts] = probabilities.dims();
        for (name, dims) in [("counts", counts.dims()), ("prob_sums", prob_sums.dims())] {
            assert!(dims == [experts], "CumulativeLoadLoss: `{name}` {dims:?} for {experts} experts");
        }
        let chosen = one_hot(&probabilities, chosen);
        let shares = prob_sums.detach() + probabilities * chosen.clone();
        let weighted = match self.with_counts {
            true => shares * (counts.detach() + chosen).div_scalar(round as f64),
            false => shares,
        };
        weighted.sum().mul_scalar(self.weight * experts as f64 / round as f64)
    }

    /// `f` of the chosen expert.
    pub(super) fn share(&self, count: f64, round: usize) -> f64 {
        if self.with_counts { (count + 1.0) / round as f64 } else { 1.0 }
    }
}

/// 1 at `expert`, else 0, of the shape, type and device of `like`.
pub(super) fn one_hot(like: &Tensor<1>, expert: usize) -> Tensor<1> {
    let [experts] = like.dims();
    assert!(expert < experts, "expert {expert} of {experts}");
    let mut values = vec![0.0f32; experts];
    values[expert] = 1.0;
    Tensor::from_data(TensorData::new(values, [experts]), (&like.device(), like.dtype()))
}
