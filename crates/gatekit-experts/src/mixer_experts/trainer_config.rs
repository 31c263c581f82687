//! How a field is trained.

use burn::config::Config;
use gatekit_core::{ConfigError, check_sizes};
use serde::{Deserialize, Serialize};

use super::gate_update::KMeansGateUpdate;
use super::solver::Rk4;

/// What trains the gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GateTraining {
    /// Refits by k-means and least squares; one expert an environment.
    LeastSquares,
    /// Gradients, through a mixture of all experts: what MixER is compared with.
    GradientDescent,
}

/// Configuration of a [`MixerTrainer`](super::MixerTrainer).
#[derive(Config, Debug)]
pub struct MixerTrainingConfig {
    /// Steps of the fixed-step rollout; the data has one state more.
    pub steps: usize,
    /// Their length.
    pub dt: f64,
    /// Noise on the contexts in the gate's solve. Default 1e-4.
    #[config(default = 1e-4)]
    pub noise_level: f64,
    /// Most rounds of k-means in a refit. Default 20.
    #[config(default = 20)]
    pub max_kmeans: usize,
    /// When the centroids count as resting. Default 1e-4.
    #[config(default = 1e-4)]
    pub convergence_tol: f64,
    /// Weight of the pull towards model and contexts before the outer step. Default 10.
    #[config(default = 10.0)]
    pub proximal_beta: f64,
    /// Outer steps. Default 1500.
    #[config(default = 1500)]
    pub outer_steps: usize,
    /// Context steps of an outer step. Default 12.
    #[config(default = 12)]
    pub context_steps: usize,
    /// Model steps of an outer step. Default 12.
    #[config(default = 12)]
    pub model_steps: usize,
    /// Environments of a step: one at random and those nearest to it. Default 8.
    #[config(default = 8)]
    pub loss_contributors: usize,
    /// AdaBelief's rate; that of the model is multiplied by 0.4 at one and at two thirds. Default 1e-3.
    #[config(default = 1e-3)]
    pub learning_rate: f64,
    /// What trains the gate. Default refits.
    #[config(default = "GateTraining::LeastSquares")]
    pub gate_training: GateTraining,
    /// Steps from one refit to the next. Default 1.
    #[config(default = 1)]
    pub gate_update_every: usize,
    /// Seed of contributors, centroids and noise. Default 0.
    #[config(default = 0)]
    pub seed: u64,
}

impl MixerTrainingConfig {
    /// Refuses what is no training.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the first field that cannot be used.
    pub fn check(&self) -> Result<(), ConfigError> {
        check_sizes(&[
            ("steps", self.steps),
            ("loss_contributors", self.loss_contributors),
            ("gate_update_every", self.gate_update_every),
        ])?;
        self.solver()?;
        self.gate_update(true)?;
        if !(self.proximal_beta.is_finite() && self.proximal_beta >= 0.0) {
            return Err(ConfigError::new("proximal_beta", self.proximal_beta, "a finite number, at least 0"));
        }
        match self.learning_rate.is_finite() && self.learning_rate > 0.0 {
            true => Ok(()),
            false => Err(ConfigError::new("learning_rate", self.learning_rate, "a finite number above 0")),
        }
    }

    /// The fixed-step solver.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] unless `dt` is a finite number above 0.
    pub fn solver(&self) -> Result<Rk4, ConfigError> {
        Rk4::new(self.steps, self.dt)
    }

    /// The refit, for a gate with or without bias.
    ///
    /// # Errors
    ///
    /// As [`KMeansGateUpdate::new`].
    pub fn gate_update(&self, use_gate_bias: bool) -> Result<KMeansGateUpdate, ConfigError> {
        KMeansGateUpdate::new(self.noise_level, self.max_kmeans, self.convergence_tol, use_gate_bias)
    }

    /// The model's rate in an outer step, from 0.
    pub(super) fn model_rate(&self, outer: usize) -> f64 {
        let drops = (3 * outer / self.outer_steps.max(1)).min(2);
        self.learning_rate * 0.4f64.powi(drops as i32)
    }
}
