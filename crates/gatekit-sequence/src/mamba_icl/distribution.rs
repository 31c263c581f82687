//! Which examples of a prompt are outliers, and what they look like.

use burn::config::Config;
use burn::serde::{Deserialize, Serialize};
use gatekit_core::ConfigError;

/// The combinations of outlier directions that the paper tests with, unseen in training.
pub const UNSEEN_COMBINATIONS: [[f64; 3]; 3] = [[0.7, 0.6, -0.4], [0.4, 0.7, -0.6], [-0.7, 0.5, 0.5]];

/// The label of an outlier.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(crate = "burn::serde", rename_all = "lowercase")]
pub enum OutlierLabels {
    /// The opposite of the example's own.
    Flipped,
    /// Always this one, -1 or 1.
    Target(f64),
    /// A fair coin.
    Random,
}

/// Which examples are outliers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(crate = "burn::serde", rename_all = "lowercase")]
pub enum OutlierPlacement {
    /// Every example by itself, with the outlier probability.
    Independent,
    /// The share of the outlier probability, at places drawn anew for every prompt.
    Random,
    /// That share, at the beginning of the prompt.
    Farthest,
    /// That share, right before the query.
    Closest,
}

/// Outliers in directions that no training prompt held: `sum_i lambda_i v_i + u`.
#[derive(Config, Debug)]
pub struct UnseenOutliers {
    /// The `lambda` of every combination, one number an outlier direction, of positive sum.
    pub combinations: Vec<Vec<f64>>,
    /// Norm of `u`, a random vector orthogonal to all patterns.
    #[config(default = 0.0)]
    pub orthogonal_norm: f64,
}

/// How prompts are drawn.
///
/// An example is a relevant pattern of the prompt's task plus `kappa` times an irrelevant one. An
/// outlier also gets `outlier_scale` times an outlier direction, and a label that does not follow
/// the task. The query is clean.
#[derive(Config, Debug)]
pub struct PromptDistribution {
    /// Examples `l` of a prompt.
    #[config(default = 20)]
    pub context_length: usize,
    /// `K`: `kappa` is uniform in `(-K, K)`. In the paper at most 1/2 in training, above 1 in tests.
    #[config(default = 0.5)]
    pub irrelevant_scale: f64,
    /// `p_a` in training, `alpha` in tests: the share of outliers, in [0, 1).
    #[config(default = 0.6)]
    pub outlier_probability: f64,
    /// `kappa_a`: factor on the outlier's direction.
    #[config(default = 2.0)]
    pub outlier_scale: f64,
    /// Unseen directions; `None`: one of the outlier directions themselves, as in training.
    pub unseen_outliers: Option<UnseenOutliers>,
    /// The labels of outliers.
    #[config(default = "OutlierLabels::Random")]
    pub outlier_labels: OutlierLabels,
    /// Which examples are outliers.
    #[config(default = "OutlierPlacement::Independent")]
    pub placement: OutlierPlacement,
}

impl PromptDistribution {
    /// What the paper trains on: `K` 0.5, `p_a` 0.6, `kappa_a` 2, labels of outliers by a fair coin.
    pub fn training() -> Self {
        Self::new()
    }

    /// What the paper tests with: `K` 1.2 and outliers in [`UNSEEN_COMBINATIONS`], with a factor of
    /// 4, at a share of `alpha`.
    ///
    /// The paper leaves the two sizes open. The combinations need three outlier directions.
    pub fn test(alpha: f64, labels: OutlierLabels) -> Self {
        let combinations = UNSEEN_COMBINATIONS.iter().map(|lambda| lambda.to_vec()).collect();
        Self::new()
            .with_irrelevant_scale(1.2)
            .with_outlier_probability(alpha)
            .with_outlier_scale(4.0)
            .with_unseen_outliers(Some(UnseenOutliers::new(combinations)))
            .with_outlier_labels(labels)
    }

    /// Checks the fields, for prompts with this many outlier directions and, orthogonal to all
    /// patterns, this many further ones.
    pub(super) fn check(&self, directions: usize, free: usize) -> Result<(), ConfigError> {
        if self.context_length == 0 {
            return Err(ConfigError::new("context_length", 0, "at least 1"));
        }
        if !(0.0..1.0).contains(&self.outlier_probability) {
            let got = self.outlier_probability;
            return Err(ConfigError::new("outlier_probability", got, "a number in [0, 1)"));
        }
        if !(self.irrelevant_scale.is_finite() && self.irrelevant_scale >= 0.0) {
            let got = self.irrelevant_scale;
            return Err(ConfigError::new("irrelevant_scale", got, "a number of at least 0"));
        }
        if !self.outlier_scale.is_finite() {
            return Err(ConfigError::new("outlier_scale", self.outlier_scale, "a finite number"));
        }
        if let OutlierLabels::Target(label) = self.outlier_labels
            && label.abs() != 1.0
        {
            return Err(ConfigError::new("outlier_labels", label, "a target of -1 or 1"));
        }
        match &self.unseen_outliers {
            None if self.outlier_probability > 0.0 && directions == 0 => Err(ConfigError::new(
                "outlier_probability",
                self.outlier_probability,
                "0: no outlier directions",
            )),
            Some(unseen) if self.outlier_probability > 0.0 => {
                unseen.check(directions, free).map_err(|error| error.within("unseen_outliers"))
            }
            _ => Ok(()),
        }
    }
}

impl UnseenOutliers {
    fn check(&self, directions: usize, free: usize) -> Result<(), ConfigError> {
        if self.combinations.is_empty() {
            return Err(ConfigError::new("combinations", "none", "at least one"));
        }
        for lambda in &self.combinations {
            let sum: f64 = lambda.iter().sum();
            if lambda.len() != directions || !(sum.is_finite() && sum > 0.0) {
                let need = format!("{directions} numbers of positive sum, one an outlier direction");
                return Err(ConfigError::new("combinations", format!("{lambda:?}"), need));
            }
        }
        if !(self.orthogonal_norm.is_finite() && self.orthogonal_norm >= 0.0) {
            let got = self.orthogonal_norm;
            return Err(ConfigError::new("orthogonal_norm", got, "a number of at least 0"));
        }
        if self.orthogonal_norm > 0.0 && free == 0 {
            let need = "0: the patterns fill the whole space";
            return Err(ConfigError::new("orthogonal_norm", self.orthogonal_norm, need));
        }
        Ok(())
    }
}
