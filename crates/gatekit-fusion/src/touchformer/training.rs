//! The steps and the schedule of a training.

use burn::config::Config;
use burn::module::Module;
use burn::optim::{AdamConfig, GradientsParams, ModuleOptimizer};
use burn::tensor::{Int, Tensor};
use gatekit_core::cross_modal::ModalityMask;
use gatekit_core::{ConfigError, InputError};

use super::check_positive;
use super::evaluation::Evaluation;
use super::loss::TouchFormerLoss;
use super::model::TouchFormer;

/// Instances and what they are.
#[derive(Debug, Clone)]
pub struct TouchBatch {
    /// M sequences `[B, T_m, d_m]`.
    pub inputs: Vec<Tensor<3>>,
    /// Which sensors are there, and which steps.
    pub mask: ModalityMask,
    /// Classes, `[B]`.
    pub labels: Tensor<1, Int>,
}

/// Configuration of [`TouchFormerTrainer`].
#[derive(Config, Debug)]
pub struct TouchFormerTrainingConfig {
    /// Adam's, above 0. Default 1e-3.
    #[config(default = 1e-3)]
    pub learning_rate: f64,
    /// What the learning rate is multiplied with when the validation loss stalls, in (0, 1]. Default 0.1.
    #[config(default = 0.1)]
    pub decay: f64,
    /// Epochs without a lower validation loss until it does, at least 1. Default 3.
    #[config(default = 3)]
    pub patience: usize,
}

/// What an epoch brought.
#[derive(Debug, Clone, PartialEq)]
pub struct EpochReport {
    /// Mean total loss of the epoch's steps; NaN without a step.
    pub loss: f64,
    /// On the validation instances.
    pub validation: Evaluation,
    /// Whether the macro F1 is the best so far.
    pub best: bool,
    /// Of the next epoch.
    pub learning_rate: f64,
}

/// Adam, with a learning rate that falls when the validation loss stalls, and the weights with the best macro F1 kept.
///
/// The released code's loop: batches of 64, 50 epochs, rate 1e-3 divided by 10 after 3 epochs without a lower loss.
/// TouchFormer (arXiv 2511.19509).
pub struct TouchFormerTrainer {
    /// With autodiff.
    model: TouchFormer,
    loss: TouchFormerLoss,
    optimizer: ModuleOptimizer,
    learning_rate: f64,
    decay: f64,
    patience: usize,
    losses: Vec<f64>,
    lowest: f64,
    stalled: usize,
    best: Option<(f64, TouchFormer)>,
}

impl TouchFormerTrainer {
    /// Begins with `model`, whose parameters are drawn now.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the field.
    pub fn new(
        model: TouchFormer,
        loss: TouchFormerLoss,
        config: &TouchFormerTrainingConfig,
    ) -> Result<Self, ConfigError> {
        check_positive(&[("learning_rate", config.learning_rate), ("decay", config.decay)])?;
        if config.decay > 1.0 {
            return Err(ConfigError::new("decay", config.decay, "at most 1"));
        }
        if config.patience == 0 {
            return Err(ConfigError::new("patience", 0, "at least 1"));
        }
        Ok(Self {
            model: model.materialize().train(),
            loss,
            optimizer: AdamConfig::new().init(),
            learning_rate: config.learning_rate,
            decay: config.decay,
            patience: config.patience,
            losses: Vec::new(),
            lowest: f64::INFINITY,
            stalled: 0,
            best: None,
        })
    }

    /// One step; returns the total loss. After a loss that is not finite the model is left as it is. The batch may lie on
    /// the device with or without autodiff.
    ///
    /// # Errors
    ///
    /// [`InputError`] for a batch of one, and labels that are no class.
    ///
    /// # Panics
    ///
    /// When the batch does not fit the model.
    pub fn step(&mut self, batch: &TouchBatch) -> Result<f64, InputError> {
        let inputs: Vec<Tensor<3>> = batch.inputs.iter().map(|x| x.clone().autodiff()).collect();
        let output = self.model.forward(&inputs, &batch.mask);
        let loss = self.loss.forward(output.logits, output.embedding, &batch.labels)?.total;
        let value = loss.clone().into_scalar::<f64>();
        self.losses.push(value);
        if value.is_finite() {
            let gradients = GradientsParams::from_grads(loss.backward(), &self.model);
            self.model = self.optimizer.step(self.learning_rate, self.model.clone(), gradients);
        }
        Ok(value)
    }

    /// Judges the model on the validation instances, keeps it if its macro F1 is the best so far, and sets the learning
    /// rate of the next epoch.
    ///
    /// # Errors
    ///
    /// As [`Evaluation::of`].
    pub fn end_epoch(&mut self, validation: &[TouchBatch]) -> Result<EpochReport, InputError> {
        let model = self.model();
        let validation = Evaluation::of(&model, validation)?;
        let best = self.best.as_ref().is_none_or(|(f1, _)| validation.macro_f1 > *f1);
        if best {
            self.best = Some((validation.macro_f1, model));
        }
        if validation.loss < self.lowest {
            (self.lowest, self.stalled) = (validation.loss, 0);
        } else {
            self.stalled += 1;
            if self.stalled == self.patience {
                self.learning_rate *= self.decay;
                self.stalled = 0;
            }
        }
        let loss = self.losses.iter().sum::<f64>() / self.losses.len() as f64;
        self.losses.clear();
        Ok(EpochReport { loss, validation, best, learning_rate: self.learning_rate })
    }

    /// The model as it is, without autodiff.
    pub fn model(&self) -> TouchFormer {
        self.model.valid()
    }

    /// The model with the best macro F1 of the epochs that ended, without autodiff; as it is before the first.
    pub fn best(&self) -> TouchFormer {
        self.best.as_ref().map_or_else(|| self.model(), |(_, model)| model.clone())
    }
}
