//! The system's configuration.

use burn::config::Config;
use burn::nn::Linear;
use burn::tensor::Device;
use gatekit_core::gate::SequentialExit;
use gatekit_core::probe::BinStrategy;
use gatekit_core::{ConfigError, ModuleConfig, check_sizes, init};
use serde::{Deserialize, Serialize};

use super::exits::EarlyExits;
use super::gate::UncertaintyGate;

/// More exits than any network has blocks.
const MAX_EXITS: usize = 10_000;

/// What makes an exit good enough, before its cost is added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GateObjective {
    /// The cross entropy of its answer.
    CrossEntropy,
    /// -1 where its answer is right, else 0.
    ZeroOne,
    /// Minus its confidence where its answer is right, else 0.
    Probability,
}

/// How the exits' cross entropies are weighed in the classifiers' loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ModuleWeighting {
    /// By the exit distribution, with every sample's total loss kept.
    Rescaled,
    /// By the exit distribution: the paper's objective.
    ExitProbability,
    /// All alike.
    Uniform,
}

/// Configuration of [`EarlyExits`] and their training.
///
/// Defaults are the paper's (section 5 and appendix B).
#[derive(Config, Debug)]
pub struct JeiDnnConfig {
    /// Exits L before the final head, which is exit L: blocks - 1.
    pub num_exits: usize,
    /// Width of the features.
    pub embed_dim: usize,
    /// Classes C, at least 2.
    pub num_classes: usize,
    /// Multiply-adds up to and with every exit over those of the whole network, L + 1 numbers that rise
    /// to 1; see [`normalised_costs`](super::normalised_costs).
    pub cost_per_exit: Vec<f64>,
    /// Hazard from which a sample leaves, in (0, 1].
    #[config(default = 0.5)]
    pub exit_threshold: f64,
    /// Price lambda of the whole network's cost, in nats; 0.01 to 10 sweep the accuracy-cost curve.
    #[config(default = 0.7)]
    pub cost_tradeoff: f64,
    /// What "good enough" means to the gates.
    #[config(default = "GateObjective::CrossEntropy")]
    pub gate_objective: GateObjective,
    /// Weights of the positive class in the gates' loss, L numbers; `None` (the default): 1 until the
    /// first validation sets them.
    #[config(default = "None")]
    pub pos_weights: Option<Vec<f64>>,
    /// How the classifiers' loss weighs the exits.
    #[config(default = "ModuleWeighting::Rescaled")]
    pub module_weighting: ModuleWeighting,
    /// Batches before gates and classifiers take turns.
    #[config(default = 200)]
    pub phase_batches: usize,
    /// Most epochs of the warm-up.
    #[config(default = 6)]
    pub max_warmup_epochs: usize,
    /// Epochs of the warm-up without gain after which a classifier stops.
    #[config(default = 2)]
    pub warmup_patience: usize,
    /// Epochs in turns after the warm-up; 10 to 30 in the paper.
    #[config(default = 15)]
    pub epochs: usize,
    /// Whether the classifiers stay as the warm-up left them, so that the gates alone learn after it.
    #[config(default = false)]
    pub freeze_classifiers: bool,
    /// SGD's learning rate at first, in (0, 1].
    #[config(default = 0.01)]
    pub learning_rate: f64,
    /// And in the last epoch, after a cosine.
    #[config(default = 2e-4)]
    pub min_learning_rate: f64,
    /// SGD's momentum, in [0, 1).
    #[config(default = 0.9)]
    pub momentum: f64,
    /// SGD's weight decay.
    #[config(default = 5e-4)]
    pub weight_decay: f64,
    /// Bins of the calibration error.
    #[config(default = 15)]
    pub bins: usize,
    /// Where its bins end.
    #[config(default = "BinStrategy::Quantile")]
    pub strategy: BinStrategy,
}

impl JeiDnnConfig {
    /// The exits that this configuration describes.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] for a threshold outside (0, 1].
    pub fn sequential_exit(&self) -> Result<SequentialExit, ConfigError> {
        SequentialExit::new(self.exit_threshold)
    }

    /// The weights of the gates' positive classes, L numbers.
    pub fn positive_weights(&self) -> Vec<f64> {
        self.pos_weights.clone().unwrap_or_else(|| vec![1.0; self.num_exits])
    }

    /// Refuses what describes no exits or no training.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the first field that cannot be used.
    pub fn check(&self) -> Result<(), ConfigError> {
        check_sizes(&[
            ("num_exits", self.num_exits),
            ("embed_dim", self.embed_dim),
            ("num_classes", self.num_classes),
            ("phase_batches", self.phase_batches),
            ("warmup_patience", self.warmup_patience),
            ("bins", self.bins),
        ])?;
        if self.num_exits > MAX_EXITS {
            return Err(ConfigError::new("num_exits", self.num_exits, format!("at most {MAX_EXITS}")));
        }
        if self.num_classes < 2 {
            return Err(ConfigError::new("num_classes", 1, "at least 2: one class has no margin"));
        }
        check_costs(&self.cost_per_exit, self.num_exits)?;
        self.sequential_exit()?;
        let not_negative = |field: &str, value: f64| match value >= 0.0 && value.is_finite() {
            true => Ok(()),
            false => Err(ConfigError::new(field, value, "a finite number, at least 0")),
        };
        not_negative("cost_tradeoff", self.cost_tradeoff)?;
        not_negative("weight_decay", self.weight_decay)?;
        if let Some(weights) = &self.pos_weights {
            let usable = weights.iter().all(|weight| weight.is_finite() && *weight >= 0.0);
            if weights.len() != self.num_exits || !usable {
                let need = format!("{} finite numbers, at least 0", self.num_exits);
                return Err(ConfigError::new("pos_weights", format!("{weights:?}"), need));
            }
        }
        if !(self.learning_rate > 0.0 && self.learning_rate <= 1.0) {
            return Err(ConfigError::new("learning_rate", self.learning_rate, "a number in (0, 1]"));
        }
        if !(0.0..=self.learning_rate).contains(&self.min_learning_rate) {
            let need = format!("0 to `learning_rate` ({})", self.learning_rate);
            return Err(ConfigError::new("min_learning_rate", self.min_learning_rate, need));
        }
        match (0.0..1.0).contains(&self.momentum) {
            true => Ok(()),
            false => Err(ConfigError::new("momentum", self.momentum, "a share in [0, 1)")),
        }
    }
}

/// Refuses costs that are not `num_exits + 1` numbers above 0 that rise to 1.
pub(super) fn check_costs(costs: &[f64], num_exits: usize) -> Result<(), ConfigError> {
    let refused = |need: String| Err(ConfigError::new("cost_per_exit", format!("{costs:?}"), need));
    if costs.len() != num_exits + 1 {
        return refused(format!("{} numbers, one an exit and one for the final head", num_exits + 1));
    }
    if !costs.iter().all(|cost| *cost > 0.0 && cost.is_finite()) {
        return refused("finite numbers above 0".into());
    }
    if costs.windows(2).any(|pair| pair[0] >= pair[1]) {
        return refused("numbers that rise from exit to exit".into());
    }
    match costs.last() {
        Some(last) if (last - 1.0).abs() <= 1e-6 => Ok(()),
        _ => refused("a last cost of 1".into()),
    }
}

impl ModuleConfig for JeiDnnConfig {
    type Module = EarlyExits;

    fn try_init(&self, device: &Device) -> Result<EarlyExits, ConfigError> {
        self.check()?;
        let head = || head(self.embed_dim, self.num_classes, device);
        Ok(EarlyExits::new(
            (0..self.num_exits).map(|_| head()).collect(),
            head(),
            (0..self.num_exits).map(|_| UncertaintyGate::new(device)).collect(),
            self,
        ))
    }
}

/// A classifier: weights truncated normal(0, 0.02), biases 0.
fn head(embed_dim: usize, num_classes: usize, device: &Device) -> Linear {
    Linear {
        weight: init::truncated_normal([embed_dim, num_classes], init::STANDARD_DEVIATION, device),
        ..init::linear(embed_dim, num_classes, true, device)
    }
}
