//! How predictions are judged, and on whom.

use std::collections::{BTreeMap, BTreeSet};

use gatekit_core::ConfigError;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

/// Counts of right and wrong answers of one label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct F1Score {
    /// Positives found.
    pub true_positives: usize,
    /// Negatives called positive.
    pub false_positives: usize,
    /// Positives missed.
    pub false_negatives: usize,
}

impl F1Score {
    /// Of probabilities and labels (0 or 1); a probability from `threshold` on is a positive answer.
    pub fn of(answers: impl IntoIterator<Item = (f64, u8)>, threshold: f64) -> Self {
        answers.into_iter().fold(Self::default(), |mut score, (probability, label)| {
            match (probability >= threshold, label != 0) {
                (true, true) => score.true_positives += 1,
                (true, false) => score.false_positives += 1,
                (false, true) => score.false_negatives += 1,
                (false, false) => {}
            }
            score
        })
    }

    /// `2 tp / (2 tp + fp + fn)`, the harmonic mean of precision and recall; 0 where nothing is positive at all.
    pub fn value(&self) -> f64 {
        let hits = 2 * self.true_positives;
        match hits + self.false_positives + self.false_negatives {
            0 => 0.0,
            all => hits as f64 / all as f64,
        }
    }

    /// The mean of the F1 of every label: `answers` of stays, each a probability and a truth a label.
    pub fn macro_mean(answers: &[Vec<(f64, u8)>], threshold: f64) -> f64 {
        let labels = answers.first().map_or(0, Vec::len);
        let of_label = |label: usize| Self::of(answers.iter().map(|stay| stay[label]), threshold).value();
        (0..labels).map(of_label).sum::<f64>() / labels.max(1) as f64
    }
}

/// Indices of stays for three uses; no patient is in two of them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PatientSplit {
    /// To learn from.
    pub train: Vec<usize>,
    /// To choose by.
    pub validation: Vec<usize>,
    /// To report.
    pub test: Vec<usize>,
}

/// Splits stays by their patients, drawn from `seed`: `shares` of the patients for training and validation (0.8 and 0.1 in
/// the paper), the others for the test.
///
/// # Errors
///
/// [`ConfigError`] for shares that are negative or add up to more than 1.
pub fn split_by_patient(patients: &[u64], shares: [f64; 2], seed: u64) -> Result<PatientSplit, ConfigError> {
    let [train, validation] = shares;
    if !(train >= 0.0 && validation >= 0.0 && train + validation <= 1.0 + 1e-9) {
        return Err(ConfigError::new("shares", format!("{shares:?}"), "two shares that add up to at most 1"));
    }
    let distinct: BTreeSet<u64> = patients.iter().copied().collect();
    let mut drawn: Vec<u64> = distinct.into_iter().collect();
    drawn.shuffle(&mut StdRng::seed_from_u64(seed));
    let count = drawn.len() as f64;
    let first = (train * count).round() as usize;
    let second = ((train + validation) * count).round() as usize;
    let part: BTreeMap<u64, usize> = (drawn.into_iter().enumerate())
        .map(|(place, patient)| (patient, usize::from(place >= first) + usize::from(place >= second)))
        .collect();
    let mut split = PatientSplit::default();
    for (index, patient) in patients.iter().enumerate() {
        match part[patient] {
            0 => split.train.push(index),
            1 => split.validation.push(index),
            _ => split.test.push(index),
        }
    }
    Ok(split)
}
