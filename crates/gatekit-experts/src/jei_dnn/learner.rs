//! Exits under stochastic gradient descent.

use burn::module::{Module, ParamId, list_param_ids};
use burn::nn::Linear;
use burn::optim::decay::WeightDecayConfig;
use burn::optim::momentum::MomentumConfig;
use burn::optim::{GradientsParams, ModuleOptimizer, SgdConfig};
use burn::tensor::{Int, Tensor};
use gatekit_core::InputError;

use super::config::JeiDnnConfig;
use super::evaluation::{ConformalThresholds, ExitReport};
use super::exits::EarlyExits;
use super::losses::{exit_gate_loss, inference_module_loss, positive_weights, warmup_loss};
use super::training::{ExitLearner, ExitPhase};

/// Probability that conformal sets miss the truth.
const ALPHA: f64 = 0.1;

/// Features of all stages and labels.
#[derive(Debug, Clone)]
pub struct ExitSamples {
    /// `[samples, L + 1, embed_dim]`, from [`DynamicNetwork::features`](super::DynamicNetwork::features).
    pub features: Tensor<3>,
    /// `[samples]`.
    pub labels: Tensor<1, Int>,
}

impl ExitSamples {
    /// The samples of these positions.
    pub fn select(&self, rows: &[usize]) -> Self {
        use gatekit_core::dispatch::Rows;
        Self { features: self.features.select_rows(rows), labels: self.labels.select_rows(rows) }
    }
}

/// Trains [`EarlyExits`] by SGD with momentum, weight decay and a cosine over the epochs.
///
/// The final head is never moved. During the warm-up the learning rate stays at its start.
pub struct SgdExitLearner {
    /// With autodiff.
    exits: EarlyExits,
    optimizer: ModuleOptimizer,
    learning_rate: f64,
    frozen: Vec<bool>,
    best: Vec<Option<Linear>>,
    validation: ExitSamples,
    conformal: Option<ConformalThresholds>,
}

impl SgdExitLearner {
    /// Begins with `exits`; `validation` judges them.
    ///
    /// # Errors
    ///
    /// [`InputError`] when there is no validation sample, or its labels are no classes.
    pub fn new(exits: EarlyExits, validation: ExitSamples) -> Result<Self, InputError> {
        let validation =
            ExitSamples { features: validation.features.inner(), labels: validation.labels.inner() };
        // The parameters are drawn now, so that they depend on the device's seed alone.
        let exits = exits.materialize();
        ExitReport::of(&exits.clone().valid(), validation.features.clone(), &validation.labels)?;
        let config = exits.config().clone();
        Ok(Self {
            optimizer: optimizer(&config),
            learning_rate: config.learning_rate,
            frozen: vec![false; config.num_exits],
            best: vec![None; config.num_exits],
            exits: exits.train(),
            validation,
            conformal: None,
        })
    }

    /// The exits as they are, without autodiff.
    pub fn exits(&self) -> EarlyExits {
        self.exits.valid()
    }

    /// Conformal thresholds for sets that hold the truth nine times out of ten, from the last validation.
    pub fn conformal(&self) -> Option<&ConformalThresholds> {
        self.conformal.as_ref()
    }

    /// How the exits do on the validation samples.
    ///
    /// # Errors
    ///
    /// [`InputError`] names an exit whose logits hold NaN.
    pub fn validate(&self) -> Result<ExitReport, InputError> {
        ExitReport::of(&self.exits(), self.validation.features.clone(), &self.validation.labels)
    }

    /// The parameters that a phase moves.
    fn parameters(&self, phase: ExitPhase) -> Vec<ParamId> {
        match phase {
            ExitPhase::Gates => self.exits.gates.iter().flat_map(list_param_ids).collect(),
            ExitPhase::WarmUp | ExitPhase::Classifiers => (self.exits.intermediate_heads.iter())
                .zip(&self.frozen)
                .filter(|(_, frozen)| !**frozen)
                .flat_map(|(head, _)| list_param_ids(head))
                .collect(),
        }
    }
}

fn optimizer(config: &JeiDnnConfig) -> ModuleOptimizer {
    let momentum = MomentumConfig::new().with_momentum(config.momentum).with_dampening(0.0);
    SgdConfig::new()
        .with_momentum((config.momentum > 0.0).then_some(momentum))
        .with_weight_decay(
            (config.weight_decay > 0.0).then(|| WeightDecayConfig::new(config.weight_decay as f32)),
        )
        .init()
}

impl ExitLearner for SgdExitLearner {
    type Batch = ExitSamples;

    fn num_exits(&self) -> usize {
        self.exits.config().num_exits
    }

    fn step(&mut self, phase: ExitPhase, batch: ExitSamples) -> Result<f64, InputError> {
        let config = self.exits.config();
        let labels = batch.labels.autodiff();
        let exit_logits = self.exits.exit_logits(batch.features.autodiff());
        let loss = match phase {
            ExitPhase::WarmUp => warmup_loss(exit_logits, &labels)?,
            ExitPhase::Gates => {
                let exit_logits = exit_logits.detach();
                let gate_logits = self.exits.gate_logits(exit_logits.clone());
                exit_gate_loss(gate_logits, &exit_logits, &labels, config)?.loss
            }
            ExitPhase::Classifiers => {
                let gate_logits = self.exits.gate_logits(exit_logits.clone()).detach();
                let probs = self.exits.sequential_exit().forward(gate_logits).probs;
                inference_module_loss(exit_logits, probs, &labels, config.module_weighting)?
            }
        };
        let value = loss.clone().into_scalar::<f64>();
        let parameters = self.parameters(phase);
        if value.is_finite() && !parameters.is_empty() {
            let mut gradients = loss.backward();
            let own = GradientsParams::from_params(&mut gradients, &self.exits, &parameters);
            self.exits = self.optimizer.step(self.learning_rate, self.exits.clone(), own);
        }
        Ok(value)
    }

    fn accuracies(&mut self) -> Result<Vec<f64>, InputError> {
        let mut accuracies = self.validate()?.exit_accuracies;
        accuracies.pop();
        Ok(accuracies)
    }

    fn keep_best(&mut self, exit: usize) {
        self.best[exit] = Some(self.exits.intermediate_heads[exit].clone());
    }

    fn freeze_best(&mut self, exit: usize) {
        if let Some(best) = self.best[exit].take() {
            self.exits.intermediate_heads[exit] = best;
        }
        self.frozen[exit] = true;
    }

    fn begin_phases(&mut self, frozen: bool) {
        self.frozen.fill(frozen);
        // The warm-up's momentum belongs to another loss.
        self.optimizer = optimizer(self.exits.config());
    }

    fn end_epoch(&mut self, epoch: usize) -> Result<ExitReport, InputError> {
        let report = self.validate()?;
        let mut config = self.exits.config().clone();
        config.pos_weights = Some(positive_weights(&report.best_exits));
        self.conformal = Some(ConformalThresholds::fit(&report, ALPHA)?);
        // Half a cosine from the first epoch's rate to the last one's.
        let way = (epoch + 1) as f64 / config.epochs.saturating_sub(1).max(1) as f64;
        let cosine = 0.5 * (1.0 + (std::f64::consts::PI * way.min(1.0)).cos());
        self.learning_rate =
            config.min_learning_rate + (config.learning_rate - config.min_learning_rate) * cosine;
        self.exits = (self.exits.clone().with_config(config)).expect("positive weights are finite");
        Ok(report)
    }
}
