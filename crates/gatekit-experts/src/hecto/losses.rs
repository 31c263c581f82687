//! Task, decided inputs, and experts that are all used.

use burn::config::Config;
use burn::tensor::{Int, Tensor};
use gatekit_core::cross_entropy::{check_labels, cross_entropies};
use gatekit_core::{ConfigError, InputError, widen};
use serde::{Deserialize, Serialize};

/// Added to probabilities before their logarithm.
const EPSILON: f64 = 1e-8;

/// What the outputs are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HectoTask {
    /// Logits of classes: mean cross entropy.
    Classification,
    /// One number: mean squared error.
    Regression,
}

/// Configuration of [`HectoLoss`].
#[derive(Config, Debug)]
pub struct HectoLossConfig {
    /// What the outputs are.
    #[config(default = "HectoTask::Classification")]
    pub task: HectoTask,
    /// Weight of the entropy of each input's probabilities.
    #[config(default = 0.01)]
    pub entropy_weight: f64,
    /// Weight of the negative entropy of their mean.
    #[config(default = 0.01)]
    pub diversity_weight: f64,
}

impl HectoLossConfig {
    /// The loss of a head with `num_outputs` channels.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] for a weight that is negative or not finite, and for regression with more than
    /// one output.
    pub fn try_init(&self, num_outputs: usize) -> Result<HectoLoss, ConfigError> {
        for (field, weight) in
            [("entropy_weight", self.entropy_weight), ("diversity_weight", self.diversity_weight)]
        {
            if !(weight >= 0.0 && weight.is_finite()) {
                return Err(ConfigError::new(field, weight, "a finite number, at least 0"));
            }
        }
        if self.task == HectoTask::Regression && num_outputs != 1 {
            return Err(ConfigError::new("num_outputs", num_outputs, "1 for regression"));
        }
        Ok(HectoLoss { config: self.clone(), num_outputs })
    }
}

/// `L = L_task + w_e L_ent + w_d L_div`.
///
/// `L_ent = mean_b -sum_i p_bi log(p_bi + 1e-8)` decides each input; `L_div = sum_i q_i log(q_i + 1e-8)`
/// with `q = mean_b p_b` keeps all experts in use. With one expert both are 0.
#[derive(Debug, Clone)]
pub struct HectoLoss {
    config: HectoLossConfig,
    num_outputs: usize,
}

/// What the outputs should be.
#[derive(Debug, Clone)]
pub enum HectoTargets {
    /// Classes `[batch]`.
    Labels(Tensor<1, Int>),
    /// Numbers `[batch]`.
    Values(Tensor<1>),
}

/// The parts of the loss, each `[1]`; only the total is weighted.
#[derive(Debug, Clone)]
pub struct HectoLosses {
    /// Cross entropy or squared error.
    pub task: Tensor<1>,
    /// Mean entropy of the probabilities, in nats.
    pub entropy: Tensor<1>,
    /// Negative entropy of the mean probabilities.
    pub diversity: Tensor<1>,
    /// What is minimised.
    pub total: Tensor<1>,
}

impl HectoLoss {
    /// The losses of a batch, in at least float32.
    ///
    /// # Shapes
    ///
    /// - `y`: `[batch, num_outputs]`
    /// - `probs`: `[batch, E]`
    /// - `targets`: `[batch]`
    ///
    /// # Errors
    ///
    /// [`InputError`] for a label that is no class, for targets of the other task or of another number
    /// than the batch, and for an empty batch.
    ///
    /// # Panics
    ///
    /// When `y` has not `num_outputs` channels or `probs` another batch.
    pub fn forward(
        &self,
        y: Tensor<2>,
        probs: Tensor<2>,
        targets: &HectoTargets,
    ) -> Result<HectoLosses, InputError> {
        let ([batch, outputs], need) = (y.dims(), self.num_outputs);
        assert!(
            outputs == need && probs.dims()[0] == batch,
            "HectoLoss: `y` {:?} with `probs` {:?}, need [batch, {need}] and [batch, experts]",
            [batch, outputs],
            probs.dims()
        );
        if batch == 0 {
            return Err(InputError::new("y", "an empty batch", "at least one row"));
        }
        let task = match (self.config.task, targets) {
            (HectoTask::Classification, HectoTargets::Labels(labels)) => {
                check_labels(labels, batch, outputs)?;
                cross_entropies(y, labels.clone()).mean()
            }
            (HectoTask::Regression, HectoTargets::Values(values)) => {
                let [count] = values.dims();
                if count != batch {
                    return Err(InputError::new("targets", format!("{count} numbers"), batch));
                }
                let y = widen(y).squeeze_dim::<1>(1);
                let values = values.clone().cast(y.dtype());
                (y - values).square().mean()
            }
            (HectoTask::Classification, _) => return Err(InputError::new("targets", "numbers", "labels")),
            (HectoTask::Regression, _) => return Err(InputError::new("targets", "labels", "numbers")),
        };
        let probs = widen(probs);
        let negative = |p: Tensor<2>| (p.clone() * p.add_scalar(EPSILON).log()).sum_dim(1).mean();
        let entropy = negative(probs.clone()).neg();
        let diversity = negative(probs.mean_dim(0));
        let total = task.clone()
            + entropy.clone().mul_scalar(self.config.entropy_weight).cast(task.dtype())
            + diversity.clone().mul_scalar(self.config.diversity_weight).cast(task.dtype());
        Ok(HectoLosses { task, entropy, diversity, total })
    }
}
