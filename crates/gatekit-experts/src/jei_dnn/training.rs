//! Warm-up, then gates and classifiers in turns.

use gatekit_core::{ConfigError, InputError};

use super::config::JeiDnnConfig;
use super::evaluation::ExitReport;

/// What a step trains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitPhase {
    /// The classifiers, all on all samples.
    WarmUp,
    /// The gates, against the classifiers as they are.
    Gates,
    /// The classifiers, against the gates as they are.
    Classifiers,
}

/// What [`AlternatingTrainer`] drives: exits, their optimiser and their validation samples.
///
/// [`SgdExitLearner`](super::SgdExitLearner) is one.
pub trait ExitLearner {
    /// What a step learns from.
    type Batch;

    /// Exits with a classifier that is trained, L.
    fn num_exits(&self) -> usize;

    /// One step of a phase; returns its loss. Classifiers that are frozen stay as they are.
    ///
    /// # Errors
    ///
    /// [`InputError`] for a batch that cannot be learned from.
    fn step(&mut self, phase: ExitPhase, batch: Self::Batch) -> Result<f64, InputError>;

    /// Share of right answers on the validation samples, one an exit 0 .. L.
    ///
    /// # Errors
    ///
    /// [`InputError`] when the exits cannot be judged.
    fn accuracies(&mut self) -> Result<Vec<f64>, InputError>;

    /// Remembers the weights of an exit's classifier as its best.
    fn keep_best(&mut self, exit: usize);

    /// Gives an exit's classifier its best weights back and trains it no more.
    fn freeze_best(&mut self, exit: usize);

    /// Begins the phases after the warm-up: classifiers are trained again, unless `frozen`.
    fn begin_phases(&mut self, frozen: bool);

    /// Validates after epoch `epoch` of the phases, sets positive weights and conformal thresholds
    /// anew and the learning rate of the next.
    ///
    /// # Errors
    ///
    /// [`InputError`] when the exits cannot be judged.
    fn end_epoch(&mut self, epoch: usize) -> Result<ExitReport, InputError>;
}

/// What a training did.
#[derive(Debug, Clone, Default)]
pub struct TrainingReport {
    /// Validation accuracies of the exits after every epoch of the warm-up.
    pub warmup: Vec<Vec<f64>>,
    /// Mean loss of the gates' and of the classifiers' steps, a pair an epoch; NaN without a step.
    pub losses: Vec<(f64, f64)>,
    /// What every epoch's validation said.
    pub epochs: Vec<ExitReport>,
}

/// The order in which exits are trained.
///
/// 1. Warm-up: the classifiers alone. After every epoch each exit's validation accuracy is compared
///    with its best; after `warmup_patience` epochs without gain its best weights return and it stops.
///    The warm-up ends with the last of them, or after `max_warmup_epochs`.
/// 2. `epochs` epochs of phases of `phase_batches` batches, the gates' first; the count runs on from
///    epoch to epoch. With `freeze_classifiers` all phases are the gates'.
///
/// Regol et al. (arXiv 2310.09163), section 4.3 and appendix B.
#[derive(Debug, Clone)]
pub struct AlternatingTrainer {
    phase_batches: usize,
    max_warmup_epochs: usize,
    warmup_patience: usize,
    epochs: usize,
    freeze_classifiers: bool,
}

impl AlternatingTrainer {
    /// The training that a configuration describes.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] for a configuration that cannot be used.
    pub fn new(config: &JeiDnnConfig) -> Result<Self, ConfigError> {
        config.check()?;
        Ok(Self {
            phase_batches: config.phase_batches,
            max_warmup_epochs: config.max_warmup_epochs,
            warmup_patience: config.warmup_patience,
            epochs: config.epochs,
            freeze_classifiers: config.freeze_classifiers,
        })
    }

    /// Trains `learner`; `batches` makes the batches of an epoch, counted through both parts from 0.
    ///
    /// # Errors
    ///
    /// [`InputError`] from the learner.
    pub fn train<L: ExitLearner, I: IntoIterator<Item = L::Batch>>(
        &self,
        learner: &mut L,
        mut batches: impl FnMut(usize) -> I,
    ) -> Result<TrainingReport, InputError> {
        let warmup = self.warm_up(learner, &mut batches)?;
        let mut report = TrainingReport { warmup, ..TrainingReport::default() };
        learner.begin_phases(self.freeze_classifiers);
        let mut count = 0;
        for epoch in 0..self.epochs {
            let (mut gates, mut classifiers) = (Mean::default(), Mean::default());
            for batch in batches(report.warmup.len() + epoch) {
                let phase = self.phase(count);
                let loss = learner.step(phase, batch)?;
                match phase {
                    ExitPhase::Gates => gates.add(loss),
                    _ => classifiers.add(loss),
                }
                count += 1;
            }
            report.losses.push((gates.value(), classifiers.value()));
            report.epochs.push(learner.end_epoch(epoch)?);
        }
        Ok(report)
    }

    /// The phase of the `count`-th batch after the warm-up.
    fn phase(&self, count: usize) -> ExitPhase {
        match self.freeze_classifiers || (count / self.phase_batches).is_multiple_of(2) {
            true => ExitPhase::Gates,
            false => ExitPhase::Classifiers,
        }
    }

    /// Trains the classifiers alone; returns the validation accuracies of every epoch.
    ///
    /// # Errors
    ///
    /// [`InputError`] from the learner.
    pub fn warm_up<L: ExitLearner, I: IntoIterator<Item = L::Batch>>(
        &self,
        learner: &mut L,
        mut batches: impl FnMut(usize) -> I,
    ) -> Result<Vec<Vec<f64>>, InputError> {
        let mut progress = vec![Progress::default(); learner.num_exits()];
        let mut history = Vec::new();
        while history.len() < self.max_warmup_epochs && progress.iter().any(|exit| !exit.done) {
            for batch in batches(history.len()) {
                learner.step(ExitPhase::WarmUp, batch)?;
            }
            let accuracies = learner.accuracies()?;
            for (exit, (progress, accuracy)) in progress.iter_mut().zip(&accuracies).enumerate() {
                if progress.done {
                    continue;
                }
                if progress.best.is_none_or(|best| *accuracy > best) {
                    *progress = Progress { best: Some(*accuracy), waited: 0, done: false };
                    learner.keep_best(exit);
                } else {
                    progress.waited += 1;
                    progress.done = progress.waited >= self.warmup_patience;
                    if progress.done {
                        learner.freeze_best(exit);
                    }
                }
            }
            history.push(accuracies);
        }
        Ok(history)
    }
}

/// How an exit's warm-up goes.
#[derive(Debug, Clone, Default)]
struct Progress {
    best: Option<f64>,
    /// Epochs without gain.
    waited: usize,
    done: bool,
}

#[derive(Default)]
struct Mean {
    sum: f64,
    count: usize,
}

impl Mean {
    fn add(&mut self, value: f64) {
        self.sum += value;
        self.count += 1;
    }

    /// NaN of nothing.
    fn value(&self) -> f64 {
        self.sum / self.count as f64
    }
}
