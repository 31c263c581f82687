//! What the algorithm computes, field by field.

use std::str::FromStr;

use burn::config::Config;
use gatekit_core::{ConfigError, check_sizes};
use serde::{Deserialize, Serialize};

use super::terminator::GateTerminatorConfig;

/// Which of two published forms of the algorithm is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Variant {
    /// The paper's Algorithm 1.
    Algorithm,
    /// The paper's simulation of synthetic tasks: the noise counts in the probabilities and in the gap
    /// test, the load loss takes every expert's share for 1, and the chosen expert gets no flag in its own round.
    Simulation,
}

impl FromStr for Variant {
    type Err = ConfigError;

    fn from_str(name: &str) -> Result<Self, ConfigError> {
        match name {
            "algorithm" => Ok(Self::Algorithm),
            "simulation" => Ok(Self::Simulation),
            _ => Err(ConfigError::new("variant", name, "`algorithm` or `simulation`")),
        }
    }
}

/// Configuration of a [`ContinualMoe`](super::ContinualMoe). The defaults are those of the paper's
/// simulation of synthetic tasks, whose truths have the norm `sigma_0 = 0.4`.
#[derive(Config, Debug)]
pub struct ContinualMoeConfig {
    /// Features d of a sample.
    pub input_dim: usize,
    /// Experts M.
    pub num_experts: usize,
    /// lambda: the router's noise is uniform in `[0, lambda]`. Default 0.3; in theory of the order
    /// `sigma_0^1.25`.
    #[config(default = 0.3)]
    pub noise_bound: f64,
    /// Step eta of the gate. Default 0.5; in theory of the order `sigma_0^0.5`.
    #[config(default = 0.5)]
    pub learning_rate: f64,
    /// Weight alpha of the load loss. Default 0.5; in theory of the order `sigma_0^0.5`.
    #[config(default = 0.5)]
    pub aux_weight: f64,
    /// T1: rounds before flags may be set. Default (`None`) `ceil(M / eta)`.
    pub explore_rounds: Option<usize>,
    /// Gamma: experts whose scores are nearer than this to the chosen one's have converged. Default
    /// `0.4^1.25`; in theory of the order `sigma_0^1.25`.
    #[config(default = 0.31810721878804265)]
    pub gap_threshold: f64,
    /// Rounds in which the router always learns. Default 0; `80 + 3 M` in the simulation.
    #[config(default = 0)]
    pub min_rounds: usize,
    /// Whether the router stops learning once all experts have converged. Default true.
    #[config(default = true)]
    pub early_termination: bool,
    /// Which form is computed. Default the paper's algorithm.
    #[config(default = "Variant::Algorithm")]
    pub variant: Variant,
}

impl ContinualMoeConfig {
    /// The constants of the theory for truths of norm `sigma_0`: noise and gap `sigma_0^1.25`, step and
    /// load weight `sigma_0^0.5`.
    pub fn for_scale(input_dim: usize, num_experts: usize, sigma_0: f64) -> Self {
        Self::new(input_dim, num_experts)
            .with_noise_bound(sigma_0.powf(1.25))
            .with_gap_threshold(sigma_0.powf(1.25))
            .with_learning_rate(sigma_0.sqrt())
            .with_aux_weight(sigma_0.sqrt())
    }

    /// T1.
    pub fn exploration(&self) -> usize {
        self.explore_rounds.unwrap_or((self.num_experts as f64 / self.learning_rate).ceil() as usize)
    }

    /// When the router stops.
    pub fn termination(&self) -> GateTerminatorConfig {
        GateTerminatorConfig::new(self.num_experts, self.exploration())
            .with_gap_threshold(self.gap_threshold)
            .with_min_rounds(self.min_rounds)
            .with_early_termination(self.early_termination)
            .with_flags_chosen(self.variant == Variant::Algorithm)
    }

    /// Refuses what no algorithm can do.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the first field that cannot be used.
    pub fn check(&self) -> Result<(), ConfigError> {
        check_sizes(&[("input_dim", self.input_dim), ("num_experts", self.num_experts)])?;
        if !(self.learning_rate.is_finite() && self.learning_rate > 0.0) {
            return Err(ConfigError::new("learning_rate", self.learning_rate, "a finite number above 0"));
        }
        for (field, value) in [("noise_bound", self.noise_bound), ("aux_weight", self.aux_weight)] {
            if !(value.is_finite() && value >= 0.0) {
                return Err(ConfigError::new(field, value, "a finite number, at least 0"));
            }
        }
        self.termination().check()
    }
}
