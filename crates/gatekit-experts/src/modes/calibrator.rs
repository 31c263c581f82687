//! What layers matter to the answers, and what thresholds cost.

use burn::config::Config;
use burn::tensor::{DType, Tensor};
use gatekit_core::{ConfigError, InputError, divergence};
use serde::{Deserialize, Serialize};

use super::{Bypass, LayerImportance, Modality, SkipStats, SkippableModel, Thresholds};

/// How far logits are apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CalibrationLoss {
    /// `KL(softmax(reference / T) || softmax(other / T))`, summed over positions.
    Kl,
    /// The squared difference of the logits themselves, summed.
    Mse,
}

/// Configuration of [`Calibrator`].
#[derive(Config, Debug)]
pub struct CalibratorConfig {
    /// How far logits are apart. Default the Kullback-Leibler divergence.
    #[config(default = "CalibrationLoss::Kl")]
    pub loss: CalibrationLoss,
    /// T, which divides both logits of the Kullback-Leibler divergence; above 0. Default 1.
    #[config(default = 1.0)]
    pub temperature: f64,
}

impl CalibratorConfig {
    /// Builds the calibrator.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] for a temperature that is not a finite number above 0.
    pub fn try_init(&self) -> Result<Calibrator, ConfigError> {
        match self.temperature.is_finite() && self.temperature > 0.0 {
            true => Ok(Calibrator { loss: self.loss, temperature: self.temperature }),
            false => Err(ConfigError::new("temperature", self.temperature, "a finite number above 0")),
        }
    }
}

/// Runs a model with routed experts off or skipped, and compares its logits at the answers.
#[derive(Debug, Clone, PartialEq)]
pub struct Calibrator {
    loss: CalibrationLoss,
    temperature: f64,
}

/// What calibration found.
#[derive(Debug, Clone, PartialEq)]
pub struct Calibration {
    /// `delta[l, m]`: mean divergence of an answer's logits without the routed experts of layer l
    /// for text (m = 0) or vision (m = 1) tokens.
    pub divergence: Vec<[f64; 2]>,
    /// The divergences normalised over the layers.
    pub importance: LayerImportance,
    /// Answer positions S.
    pub positions: usize,
}

/// What a pair of thresholds costs and saves.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measurement {
    /// Mean divergence of an answer's logits from those without skipping.
    pub loss: f64,
    /// Share of slots that are skipped.
    pub skip_ratio: f64,
}

/// Logits without skipping, a tensor `[S, V]` a batch.
#[derive(Debug, Clone)]
pub struct References {
    logits: Vec<Tensor<2>>,
    positions: usize,
}

impl Calibrator {
    /// The divergence of logits `[S, V]` from those of the reference, summed over the S positions,
    /// in at least float32; 0 without positions.
    ///
    /// # Panics
    ///
    /// When the shapes differ.
    pub fn divergence(&self, reference: Tensor<2>, other: Tensor<2>) -> f64 {
        assert!(
            reference.dims() == other.dims(),
            "Calibrator: `reference` has shape {:?}, `other` {:?}",
            reference.dims(),
            other.dims()
        );
        if reference.dims()[0] == 0 {
            return 0.0;
        }
        let sum = match self.loss {
            CalibrationLoss::Kl => divergence::kl(reference, other, None, self.temperature).sum(),
            CalibrationLoss::Mse => (widen(reference) - widen(other)).square().sum(),
        };
        sum.into_scalar::<f64>()
    }

    /// Importance from logits: `reference` `[S, V]`, and `ablated[l][m]` `[S, V]` without the routed
    /// experts of layer l for the tokens of modality m.
    ///
    /// # Errors
    ///
    /// [`InputError`] without answer positions or layers, and for logits that are not finite.
    ///
    /// # Panics
    ///
    /// When the shapes differ.
    pub fn importance(
        &self,
        reference: Tensor<2>,
        ablated: &[[Tensor<2>; 2]],
    ) -> Result<Calibration, InputError> {
        let positions = reference.dims()[0];
        let sums = ablated.iter().map(|layer| {
            std::array::from_fn(|modality| self.divergence(reference.clone(), layer[modality].clone()))
        });
        Self::normalise(sums.collect(), positions)
    }

    /// From divergences summed over all positions.
    fn normalise(sums: Vec<[f64; 2]>, positions: usize) -> Result<Calibration, InputError> {
        check_positions(positions)?;
        // Rounding can make a divergence of nearly equal logits negative; NaN stays and is refused.
        let mean = |sum: f64| if sum < 0.0 { 0.0 } else { sum / positions as f64 };
        let divergence: Vec<[f64; 2]> = sums.into_iter().map(|row| row.map(mean)).collect();
        let importance = LayerImportance::from_divergence(&divergence)?;
        Ok(Calibration { divergence, importance, positions })
    }

    /// Measures the importance of every layer for both modalities: for each of them all batches go
    /// through the model with the layer's routed experts off for the tokens of that modality (their
    /// shared expert and residual stay), `2 L + 1` times altogether. The model's thresholds are not
    /// applied. `progress` is called after every pass of a batch.
    ///
    /// # Errors
    ///
    /// [`InputError`] without layers or answer positions, for logits that are not finite, and what
    /// [`SkippableModel::answer_logits`] refuses.
    pub fn calibrate<M: SkippableModel>(
        &self,
        model: &M,
        batches: &[M::Batch],
        mut progress: impl FnMut(),
    ) -> Result<Calibration, InputError> {
        let mut model = with_thresholds(model, Thresholds::ZERO);
        let layers = model.moe_layers().len();
        let mut sums = vec![[0.0; 2]; layers];
        let mut positions = 0;
        // Batch by batch, so that one batch's logits are held at a time.
        for batch in batches {
            let (reference, _) = model.answer_logits(batch)?;
            progress();
            positions += reference.dims()[0];
            for (layer, sums) in sums.iter_mut().enumerate() {
                for (sum, modality) in sums.iter_mut().zip(Modality::SKIPPABLE) {
                    set_bypass(&mut model, Some((layer, modality)));
                    let (ablated, _) = model.answer_logits(batch)?;
                    *sum += self.divergence(reference.clone(), ablated);
                    progress();
                }
            }
            set_bypass(&mut model, None);
        }
        Self::normalise(sums, positions)
    }

    /// The logits that thresholds are measured against: those of the model without skipping.
    ///
    /// # Errors
    ///
    /// [`InputError`] without answer positions, and what [`SkippableModel::answer_logits`] refuses.
    pub fn references<M: SkippableModel>(
        &self,
        model: &M,
        batches: &[M::Batch],
    ) -> Result<References, InputError> {
        let model = with_thresholds(model, Thresholds::ZERO);
        let logits = batches.iter().map(|batch| Ok(model.answer_logits(batch)?.0));
        let logits = logits.collect::<Result<Vec<_>, InputError>>()?;
        let positions = logits.iter().map(|logits| logits.dims()[0]).sum();
        check_positions(positions)?;
        Ok(References { logits, positions })
    }

    /// Loss and skip ratio of a pair of thresholds with the importance that the model's layers hold:
    /// what [`FrontierSearch`](super::FrontierSearch) asks for.
    ///
    /// # Errors
    ///
    /// What [`SkippableModel::answer_logits`] refuses, and an importance that is negative or not finite.
    ///
    /// # Panics
    ///
    /// When the references are those of other batches.
    pub fn measure<M: SkippableModel>(
        &self,
        model: &M,
        references: &References,
        batches: &[M::Batch],
        thresholds: Thresholds,
    ) -> Result<Measurement, InputError> {
        assert!(
            references.logits.len() == batches.len(),
            "Calibrator: references of {} batches, got {}",
            references.logits.len(),
            batches.len()
        );
        let model = with_thresholds(model, thresholds);
        let (mut sum, mut stats) = (0.0, SkipStats::default());
        for (batch, reference) in batches.iter().zip(&references.logits) {
            let (logits, skipped) = model.answer_logits(batch)?;
            sum += self.divergence(reference.clone(), logits);
            stats.merge(&skipped);
        }
        Ok(Measurement { loss: sum / references.positions as f64, skip_ratio: stats.ratio() })
    }
}

/// The model with these thresholds, and without a bypass.
fn with_thresholds<M: SkippableModel>(model: &M, thresholds: Thresholds) -> M {
    let mut model = model.clone();
    model.set_thresholds(thresholds);
    set_bypass(&mut model, None);
    model
}

/// Takes the routed experts of one layer away from one modality, and gives all others theirs back.
fn set_bypass<M: SkippableModel>(model: &mut M, bypassed: Option<(usize, Modality)>) {
    for (index, layer) in model.moe_layers_mut().into_iter().enumerate() {
        layer.skipper.set_bypass(match bypassed {
            Some((layer, modality)) if layer == index => Bypass::of(modality),
            _ => Bypass::None,
        });
    }
}

fn check_positions(positions: usize) -> Result<(), InputError> {
    match positions {
        0 => Err(InputError::new("answer positions", 0, "at least 1")),
        _ => Ok(()),
    }
}

fn widen(logits: Tensor<2>) -> Tensor<2> {
    match logits.dtype() {
        DType::F16 | DType::BF16 => logits.cast(DType::F32),
        _ => logits,
    }
}
