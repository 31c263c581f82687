//! Modalities that vote on one another.

use burn::config::Config;
use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::activation::relu;
use burn::tensor::{Bool, Device, Tensor};

use super::modality::{masked_softmax, weighted_sum};
use crate::config::{ModuleConfig, check_sizes};
use crate::error::ConfigError;

/// Configuration of [`VoteGate`].
#[derive(Config, Debug)]
pub struct VoteGateConfig {
    /// Channels C of every modality, at least 1.
    pub channels: usize,
    /// Modalities M, at least 1.
    pub num_modalities: usize,
    /// Inner width of a voter. `None` (the default): C.
    #[config(default = "None")]
    pub hidden: Option<usize>,
    /// One voter for all modalities instead of one each. Default false.
    #[config(default = false)]
    pub shared: bool,
}

impl ModuleConfig for VoteGateConfig {
    type Module = VoteGate;

    fn try_init(&self, device: &Device) -> Result<VoteGate, ConfigError> {
        let (channels, modalities) = (self.channels, self.num_modalities);
        let hidden = self.hidden.unwrap_or(channels);
        check_sizes(&[("channels", channels), ("num_modalities", modalities), ("hidden", hidden)])?;
        let voters = if self.shared { 1 } else { modalities };
        let votes = (0..voters)
            .map(|_| Voter {
                fc1: LinearConfig::new(channels, hidden).init(device),
                fc2: LinearConfig::new(hidden, modalities).init(device),
            })
            .collect();
        Ok(VoteGate { votes, num_modalities: modalities })
    }
}

/// Every modality votes on the weight of every one, itself included:
/// `w = softmax over m of sum_n f_n(u_n)`, `f(u) = W2 relu(W1 u + b1) + b2`, `y = sum_m w_m u_m`.
///
/// The local gate of bidirectional hierarchical fusion (arXiv 2504.04770).
#[derive(Module, Debug)]
pub struct VoteGate {
    /// One a modality, or one for all.
    pub votes: Vec<Voter>,
    num_modalities: usize,
}

/// The votes of one modality.
#[derive(Module, Debug)]
pub struct Voter {
    /// `[C, hidden]`.
    pub fc1: Linear,
    /// `[hidden, M]`.
    pub fc2: Linear,
}

impl VoteGate {
    /// The weights for M modalities `[.., C]`: `[.., M]`. What is not `admissible` (`[.., M]`) has none.
    ///
    /// # Panics
    ///
    /// When there are not M modalities, or their shapes do not fit.
    pub fn weights<const D: usize>(
        &self,
        modalities: &[Tensor<D>],
        admissible: Option<Tensor<D, Bool>>,
    ) -> Tensor<D> {
        assert!(
            modalities.len() == self.num_modalities,
            "VoteGate: {} modalities, need {}",
            modalities.len(),
            self.num_modalities
        );
        let votes = modalities.iter().enumerate().map(|(index, u)| {
            let voter = &self.votes[index % self.votes.len()];
            voter.fc2.forward(relu(voter.fc1.forward(u.clone())))
        });
        let votes = votes.reduce(|sum, votes| sum + votes).expect("at least one modality");
        masked_softmax(votes, D - 1, admissible)
    }

    /// The mixture `[.., C]` and the weights `[.., M]`.
    ///
    /// # Panics
    ///
    /// As [`weights`](Self::weights).
    pub fn forward<const D: usize>(
        &self,
        modalities: &[Tensor<D>],
        admissible: Option<Tensor<D, Bool>>,
    ) -> (Tensor<D>, Tensor<D>) {
        let weights = self.weights(modalities, admissible);
        (weighted_sum(modalities, weights.clone(), D - 1), weights)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_util::{devices, float32, ramp, values};

    #[test]
    fn all_modalities_vote_and_the_weights_sum_to_one() {
        for device in devices() {
            for shared in [false, true] {
                let gate = VoteGateConfig::new(3, 2).with_hidden(Some(5)).with_shared(shared).init(&device);
                assert_eq!(gate.votes.len(), if shared { 1 } else { 2 });
                let u = [0.7, -1.3].map(|amplitude| float32(&ramp(12, amplitude), [2, 2, 3], &device));
                let (mixed, weights) = gate.forward(&u, None);
                let (mixed, weights) = (values(mixed), values(weights));
                let [a, b] = u.map(values);
                for row in 0..4 {
                    assert!((weights[2 * row] + weights[2 * row + 1] - 1.0).abs() < 1e-6);
                    let want = weights[2 * row] * a[3 * row] + weights[2 * row + 1] * b[3 * row];
                    assert!((mixed[3 * row] - want).abs() < 1e-6);
                }
            }
        }
    }

    #[test]
    fn refuses_sizes_of_zero() {
        let device = devices().remove(0);
        assert_eq!(VoteGateConfig::new(0, 2).try_init(&device).unwrap_err().field, "channels");
        let none = VoteGateConfig::new(2, 2).with_hidden(Some(0));
        assert_eq!(none.try_init(&device).unwrap_err().field, "hidden");
    }
}
