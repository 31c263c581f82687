//! The published recipe.

use burn::config::Config;
use burn::lr_scheduler::module_lr_scheduler::{ModuleLearningRate, ModuleLrScheduler};
use burn::module::{Module, ParamGroup};
use burn::optim::{AdamConfig, GradientsAccumulator, GradientsParams, ModuleOptimizer};
use burn::tensor::Device;
use gatekit_core::{ConfigError, InputError, check_sizes};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

use super::loader::{Stay, StayLoader};
use super::model::{EhrBatch, IrregularEhrModel};
use super::notes::NoteEncoder;
use super::score::F1Score;

/// How the model and its note encoder are trained; defaults are those of the paper.
#[derive(Config, Debug)]
pub struct EhrTrainingConfig {
    /// Adam's rate for all but the note encoder. Default 4e-4.
    #[config(default = 4e-4)]
    pub learning_rate: f64,
    /// Adam's rate for the note encoder. Default 2e-5.
    #[config(default = 2e-5)]
    pub note_learning_rate: f64,
    /// Passes over the training stays. Default 6.
    #[config(default = 6)]
    pub epochs: usize,
    /// Epochs, from 0, in which the note encoder learns too. Default 0, 2 and 4.
    #[config(default = "vec![0, 2, 4]")]
    pub unfrozen_epochs: Vec<usize>,
    /// Stays that go through the model together. Default 2.
    #[config(default = 2)]
    pub batch_size: usize,
    /// Batches whose gradients make one step. Default 16.
    #[config(default = 16)]
    pub accumulation: usize,
    /// Probability from which an answer is positive. Default 0.5.
    #[config(default = 0.5)]
    pub threshold: f64,
}

impl EhrTrainingConfig {
    fn check(&self) -> Result<(), ConfigError> {
        check_sizes(&[
            ("epochs", self.epochs),
            ("batch_size", self.batch_size),
            ("accumulation", self.accumulation),
        ])?;
        let rates = [("learning_rate", self.learning_rate), ("note_learning_rate", self.note_learning_rate)];
        if let Some((field, rate)) = rates.into_iter().find(|(_, rate)| !(*rate > 0.0 && *rate <= 1.0)) {
            return Err(ConfigError::new(field, rate, "above 0, at most 1"));
        }
        match (0.0..=1.0).contains(&self.threshold) {
            true => Ok(()),
            false => Err(ConfigError::new("threshold", self.threshold, "a probability")),
        }
    }
}

/// The model and the encoder of its notes.
#[derive(Module, Debug)]
pub struct EhrNetwork<N> {
    /// Reads the notes.
    pub encoder: N,
    /// Reads all else.
    pub model: IrregularEhrModel,
}

impl<N: NoteEncoder> EhrNetwork<N> {
    /// Probabilities and truths of stays, one a label (of a binary task that of class 1), `batch_size` stays at a time.
    ///
    /// # Errors
    ///
    /// What the loader refuses.
    pub fn answers(
        &self,
        stays: &[&Stay],
        loader: &StayLoader,
        batch_size: usize,
        device: &Device,
    ) -> Result<Vec<Vec<(f64, u8)>>, InputError> {
        self.answers_to(stays, loader, batch_size, device, |batch| batch)
    }

    /// As [`answers`](Self::answers), with every batch changed before the model sees it: a modality removed, say.
    ///
    /// # Errors
    ///
    /// What the loader refuses.
    pub fn answers_to(
        &self,
        stays: &[&Stay],
        loader: &StayLoader,
        batch_size: usize,
        device: &Device,
        mut change: impl FnMut(EhrBatch) -> EhrBatch,
    ) -> Result<Vec<Vec<(f64, u8)>>, InputError> {
        let mut answers = Vec::with_capacity(stays.len());
        for part in stays.chunks(batch_size.max(1)) {
            loader.labels(part, device)?;
            let output = self.model.forward(&change(loader.batch(part, &self.encoder, device)?));
            let [_, labels] = output.probability.dims();
            let probabilities: Vec<f64> = output.probability.into_data().iter::<f64>().collect();
            let rows = probabilities.chunks_exact(labels).zip(part);
            answers.extend(
                rows.map(|(row, stay)| {
                    row.iter().copied().zip(stay.labels.iter().copied()).collect::<Vec<_>>()
                }),
            );
        }
        Ok(answers)
    }
}

/// What an epoch did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EhrEpoch {
    /// Which, from 0.
    pub epoch: usize,
    /// Mean loss of the training stays, each before its step.
    pub loss: f64,
    /// F1 of the validation stays (the mean over labels).
    pub validation_f1: f64,
}

/// Trains an [`EhrNetwork`] with Adam: one rate for the model, one for the note encoder, which learns in some epochs
/// only; gradients of several small batches make one step; the epoch with the best F1 of the validation stays is kept.
pub struct EhrTrainer<N> {
    /// On the device's autodiff form.
    pub network: EhrNetwork<N>,
    loader: StayLoader,
    config: EhrTrainingConfig,
    optimizer: ModuleOptimizer,
    rates: ModuleLearningRate,
    device: Device,
}

impl<N: NoteEncoder> EhrTrainer<N> {
    /// Begins with `network` on `device` (without autodiff), moved to its autodiff form.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the field.
    pub fn new(
        network: EhrNetwork<N>,
        loader: StayLoader,
        config: EhrTrainingConfig,
        device: &Device,
    ) -> Result<Self, ConfigError> {
        config.check()?;
        let network = network.materialize().train();
        // Rates are looked up anew for every step, constants though they are.
        let of_encoder = ParamGroup::ids_from_module(network.encoder.clone());
        let rates = ModuleLrScheduler::new(config.learning_rate)
            .with_group(of_encoder, config.note_learning_rate)
            .step();
        let optimizer = AdamConfig::new().with_epsilon(1e-8).init();
        Ok(Self { network, loader, config, optimizer, rates, device: device.clone().autodiff() })
    }

    /// One pass over `stays` in an order drawn from `random`; returns the mean loss.
    ///
    /// After a loss that is not finite the network is left as it is and the epoch ends.
    ///
    /// # Errors
    ///
    /// What the loader refuses; a batch needs a stay with a row.
    pub fn epoch(&mut self, epoch: usize, stays: &[&Stay], random: &mut StdRng) -> Result<f64, InputError> {
        let mut order: Vec<&Stay> = stays.to_vec();
        order.shuffle(random);
        let mut sum = 0.0;
        for step in order.chunks(self.config.batch_size * self.config.accumulation) {
            let loss = self.step(epoch, step)?;
            sum += loss * step.len() as f64;
            if !loss.is_finite() {
                break;
            }
        }
        Ok(sum / stays.len().max(1) as f64)
    }

    /// One step of the optimiser on the mean loss of `stays`, a few at a time; returns that loss.
    ///
    /// # Errors
    ///
    /// As [`epoch`](Self::epoch).
    pub fn step(&mut self, epoch: usize, stays: &[&Stay]) -> Result<f64, InputError> {
        let frozen = !self.config.unfrozen_epochs.contains(&epoch);
        let mut gradients = GradientsAccumulator::new();
        let mut sum = 0.0;
        for part in stays.chunks(self.config.batch_size) {
            let network = &self.network;
            let mut batch = self.loader.batch(part, &network.encoder, &self.device)?;
            if frozen {
                batch.notes = batch.notes.detach();
            }
            let labels = self.loader.labels(part, &self.device)?;
            let loss = network.model.loss(network.model.forward(&batch).logits, &labels)?;
            let loss = loss * (part.len() as f64 / stays.len() as f64);
            sum += loss.clone().into_scalar::<f64>();
            if !sum.is_finite() {
                return Ok(sum);
            }
            gradients.accumulate(network, GradientsParams::from_grads(loss.backward(), network));
        }
        self.network = self.optimizer.step(self.rates.clone(), self.network.clone(), gradients.grads());
        Ok(sum)
    }

    /// All epochs; returns the network of the best one, without autodiff, and what every epoch did. `each` hears of
    /// them on the way.
    ///
    /// # Errors
    ///
    /// As [`epoch`](Self::epoch).
    pub fn fit(
        mut self,
        train: &[&Stay],
        validation: &[&Stay],
        random: &mut StdRng,
        mut each: impl FnMut(&EhrEpoch),
    ) -> Result<(EhrNetwork<N>, Vec<EhrEpoch>), InputError> {
        let device = self.device.clone().inner();
        let mut best: Option<(f64, EhrNetwork<N>)> = None;
        let mut history = Vec::with_capacity(self.config.epochs);
        for epoch in 0..self.config.epochs {
            let loss = self.epoch(epoch, train, random)?;
            let network = self.network.valid();
            let answers =
                network.answers(validation, &self.loader, 32.max(self.config.batch_size), &device)?;
            let validation_f1 = F1Score::macro_mean(&answers, self.config.threshold);
            let report = EhrEpoch { epoch, loss, validation_f1 };
            each(&report);
            history.push(report);
            if best.as_ref().is_none_or(|(score, _)| validation_f1 > *score) {
                best = Some((validation_f1, network));
            }
            if !loss.is_finite() {
                break;
            }
        }
        let (_, network) = best.expect("there is an epoch");
        Ok((network, history))
    }
}
