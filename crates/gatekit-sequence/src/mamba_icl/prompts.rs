//! Prompts of labelled examples, some of them outliers.

use std::f64::consts::TAU;

use burn::config::Config;
use burn::tensor::{Device, Tensor, TensorData};
use gatekit_core::ConfigError;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::distribution::{OutlierLabels, OutlierPlacement, PromptDistribution};

/// Configuration of [`OutlierPrompts`].
#[derive(Config, Debug)]
pub struct OutlierPromptsConfig {
    /// Features `d` of an example; at least as many as there are patterns.
    #[config(default = 30)]
    pub input_dim: usize,
    /// `M_1`: patterns that decide the label; at least 2.
    #[config(default = 6)]
    pub relevant_patterns: usize,
    /// `M_2`: patterns that do not.
    #[config(default = 10)]
    pub irrelevant_patterns: usize,
    /// `V`: directions of the outliers.
    #[config(default = 3)]
    pub outlier_directions: usize,
    /// `beta`: norm of every pattern and direction; at least 1.
    #[config(default = 3.0)]
    pub pattern_norm: f64,
    /// Seed of the patterns.
    #[config(default = 0)]
    pub seed: u64,
}

impl OutlierPromptsConfig {
    /// Draws the patterns: orthogonal vectors of norm `beta` in random directions.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] for fewer than two relevant patterns, more patterns than features, or a norm
    /// below 1.
    pub fn try_init(&self) -> Result<OutlierPrompts, ConfigError> {
        if self.relevant_patterns < 2 {
            return Err(ConfigError::new("relevant_patterns", self.relevant_patterns, "at least 2"));
        }
        let patterns = (self.relevant_patterns)
            .checked_add(self.irrelevant_patterns)
            .and_then(|patterns| patterns.checked_add(self.outlier_directions));
        if patterns.is_none_or(|patterns| patterns > self.input_dim) {
            let need = format!(
                "at least {} + {} + {}, the number of patterns",
                self.relevant_patterns, self.irrelevant_patterns, self.outlier_directions
            );
            return Err(ConfigError::new("input_dim", self.input_dim, need));
        }
        if !(self.pattern_norm.is_finite() && self.pattern_norm >= 1.0) {
            return Err(ConfigError::new("pattern_norm", self.pattern_norm, "a number of at least 1"));
        }
        let mut random = StdRng::seed_from_u64(self.seed);
        let mut basis = orthonormal_basis(self.input_dim, &mut random).into_iter();
        let scaled = |x: Vec<f64>| x.into_iter().map(|x| x * self.pattern_norm).collect();
        let mut take = |count| basis.by_ref().take(count).map(scaled).collect();
        Ok(OutlierPrompts {
            relevant: take(self.relevant_patterns),
            irrelevant: take(self.irrelevant_patterns),
            outliers: take(self.outlier_directions),
            free: basis.collect(),
        })
    }
}

/// Draws prompts for in-context classification with outliers.
///
/// A task picks two relevant patterns, `mu_a` with label 1 and `mu_b` with label -1; all ordered
/// pairs are equally likely. Its examples and the query hold one of them, with equal chance, as
/// [`PromptDistribution`] says. The query's label is what a model shall predict.
///
/// Li et al. 2025, arXiv 2510.00399, section 4.
#[derive(Debug, Clone)]
pub struct OutlierPrompts {
    relevant: Vec<Vec<f64>>,
    irrelevant: Vec<Vec<f64>>,
    outliers: Vec<Vec<f64>>,
    /// Unit vectors orthogonal to all of these.
    free: Vec<Vec<f64>>,
}

/// Prompts, and what is known of them.
#[derive(Debug, Clone)]
pub struct PromptBatch {
    /// `[batch, l + 1, d + 1]`.
    prompt: TensorData,
    /// `[batch]`.
    labels: TensorData,
    /// `[batch, l]`.
    outliers: Vec<bool>,
    /// `[batch, l]`.
    matches: Vec<bool>,
}

impl PromptBatch {
    /// The prompts, `[batch, l + 1, d + 1]`.
    pub fn prompt(&self, device: &Device) -> Tensor<3> {
        Tensor::from_data(self.prompt.clone(), device)
    }

    /// The queries' labels, `[batch]`, -1 or 1.
    pub fn labels(&self, device: &Device) -> Tensor<1> {
        Tensor::from_data(self.labels.clone(), device)
    }

    /// Which examples are outliers, `[batch, l]` in rows.
    pub fn outliers(&self) -> &[bool] {
        &self.outliers
    }

    /// Which examples hold the query's relevant pattern, `[batch, l]` in rows.
    pub fn matches(&self) -> &[bool] {
        &self.matches
    }
}

impl OutlierPrompts {
    /// Draws `batch` prompts.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] for a distribution that cannot be drawn from, or an empty batch.
    pub fn draw(
        &self,
        distribution: &PromptDistribution,
        batch: usize,
        random: &mut StdRng,
    ) -> Result<PromptBatch, ConfigError> {
        distribution.check(self.outliers.len(), self.free.len())?;
        if batch == 0 {
            return Err(ConfigError::new("batch", 0, "at least 1"));
        }
        let (length, features) = (distribution.context_length, self.relevant[0].len());
        let mut prompt = Vec::with_capacity(batch * (length + 1) * (features + 1));
        let mut labels = Vec::with_capacity(batch);
        let (mut outliers, mut matches) = (Vec::new(), Vec::new());
        for _ in 0..batch {
            let task = self.task(random);
            let query = random.random_bool(0.5);
            let is_outlier = placed(distribution, random);
            for &is_outlier in &is_outlier {
                let first = random.random_bool(0.5);
                let mut x = self.clean(&task, first, distribution, random);
                let mut label = sign(first);
                if is_outlier {
                    add(&mut x, &self.outlier(distribution, random), distribution.outlier_scale);
                    label = match distribution.outlier_labels {
                        OutlierLabels::Flipped => -label,
                        OutlierLabels::Target(target) => target,
                        OutlierLabels::Random => sign(random.random_bool(0.5)),
                    };
                }
                prompt.extend(x.iter().map(|&x| x as f32));
                prompt.push(label as f32);
                matches.push(first == query);
            }
            outliers.extend(is_outlier);
            prompt.extend(self.clean(&task, query, distribution, random).iter().map(|&x| x as f32));
            prompt.push(0.0);
            labels.push(sign(query) as f32);
        }
        Ok(PromptBatch {
            prompt: TensorData::new(prompt, [batch, length + 1, features + 1]),
            labels: TensorData::new(labels, [batch]),
            outliers,
            matches,
        })
    }

    /// The relevant patterns `mu`, one a row.
    pub fn relevant(&self) -> &[Vec<f64>] {
        &self.relevant
    }

    /// The irrelevant patterns `nu`, one a row.
    pub fn irrelevant(&self) -> &[Vec<f64>] {
        &self.irrelevant
    }

    /// The outlier directions `v`, one a row.
    pub fn outliers(&self) -> &[Vec<f64>] {
        &self.outliers
    }

    /// Two different relevant patterns, the one of label 1 first.
    fn task(&self, random: &mut StdRng) -> [usize; 2] {
        let count = self.relevant.len();
        let first = random.random_range(0..count);
        [first, (first + random.random_range(1..count)) % count]
    }

    /// A relevant pattern of the task plus some of an irrelevant one.
    fn clean(
        &self,
        task: &[usize; 2],
        first: bool,
        distribution: &PromptDistribution,
        random: &mut StdRng,
    ) -> Vec<f64> {
        let mut x = self.relevant[task[usize::from(!first)]].clone();
        if let Some(pattern) = pick(&self.irrelevant, random) {
            let kappa = distribution.irrelevant_scale * (2.0 * random.random::<f64>() - 1.0);
            add(&mut x, pattern, kappa);
        }
        x
    }

    /// The direction of one outlier.
    fn outlier(&self, distribution: &PromptDistribution, random: &mut StdRng) -> Vec<f64> {
        let features = self.relevant[0].len();
        let Some(unseen) = &distribution.unseen_outliers else {
            return pick(&self.outliers, random).cloned().unwrap_or_else(|| vec![0.0; features]);
        };
        let mut direction = vec![0.0; features];
        for (lambda, outlier) in pick(&unseen.combinations, random).into_iter().flatten().zip(&self.outliers)
        {
            add(&mut direction, outlier, *lambda);
        }
        if unseen.orthogonal_norm > 0.0 {
            let weights: Vec<f64> = self.free.iter().map(|_| normal(random)).collect();
            let norm = dot(&weights, &weights).sqrt();
            for (weight, free) in weights.iter().zip(&self.free) {
                add(&mut direction, free, unseen.orthogonal_norm * weight / norm);
            }
        }
        direction
    }
}

/// Which of the examples are outliers.
fn placed(distribution: &PromptDistribution, random: &mut StdRng) -> Vec<bool> {
    let (length, share) = (distribution.context_length, distribution.outlier_probability);
    let count = (share * length as f64).round() as usize;
    match distribution.placement {
        OutlierPlacement::Independent => (0..length).map(|_| random.random_bool(share)).collect(),
        OutlierPlacement::Farthest => (0..length).map(|place| place < count).collect(),
        OutlierPlacement::Closest => (0..length).map(|place| place + count >= length).collect(),
        OutlierPlacement::Random => {
            // Every place takes one of the outliers that are left with the chance that it must.
            let mut left = count;
            (0..length)
                .map(|place| {
                    let is_outlier = random.random_range(0..length - place) < left;
                    left -= usize::from(is_outlier);
                    is_outlier
                })
                .collect()
        }
    }
}

/// Unit vectors at right angles to one another, in random directions.
fn orthonormal_basis(dim: usize, random: &mut StdRng) -> Vec<Vec<f64>> {
    let mut basis: Vec<Vec<f64>> = Vec::with_capacity(dim);
    while basis.len() < dim {
        let mut vector: Vec<f64> = (0..dim).map(|_| normal(random)).collect();
        // Twice: once leaves rounding errors of what was taken away.
        for _ in 0..2 {
            for other in &basis {
                let share = dot(&vector, other);
                add(&mut vector, other, -share);
            }
        }
        let norm = dot(&vector, &vector).sqrt();
        // A draw almost within the span of the others is drawn again.
        if norm > 1e-3 {
            basis.push(vector.into_iter().map(|x| x / norm).collect());
        }
    }
    basis
}

/// A draw of normal(0, 1), by Box and Muller.
fn normal(random: &mut StdRng) -> f64 {
    let radius = (-2.0 * (1.0 - random.random::<f64>()).ln()).sqrt();
    radius * (TAU * random.random::<f64>()).cos()
}

fn pick<'a, T>(choices: &'a [T], random: &mut StdRng) -> Option<&'a T> {
    match choices.len() {
        0 => None,
        count => Some(&choices[random.random_range(0..count)]),
    }
}

fn add(x: &mut [f64], y: &[f64], factor: f64) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += factor * y);
}

fn dot(x: &[f64], y: &[f64]) -> f64 {
    x.iter().zip(y).map(|(x, y)| x * y).sum()
}

fn sign(first: bool) -> f64 {
    if first { 1.0 } else { -1.0 }
}
