//! When a gate has learned enough.

use burn::config::Config;
use gatekit_core::router::Routing;
use gatekit_core::{ConfigError, check_sizes};

/// Configuration of [`GateTerminator`].
#[derive(Config, Debug)]
pub struct GateTerminatorConfig {
    /// Experts M.
    pub num_experts: usize,
    /// T1: rounds in which no flag is set.
    pub explore_rounds: usize,
    /// Gamma, in units of the scores. Default `0.4^1.25`.
    #[config(default = 0.31810721878804265)]
    pub gap_threshold: f64,
    /// Rounds before which the gate never stops. Default 0.
    #[config(default = 0)]
    pub min_rounds: usize,
    /// Whether the gate stops at all; flags are set either way. Default true.
    #[config(default = true)]
    pub early_termination: bool,
    /// Whether the chosen expert gets a flag in its own round. Default true.
    #[config(default = true)]
    pub flags_chosen: bool,
}

impl GateTerminatorConfig {
    /// Refuses what cannot be observed.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the first field that cannot be used.
    pub fn check(&self) -> Result<(), ConfigError> {
        check_sizes(&[("num_experts", self.num_experts)])?;
        match self.gap_threshold.is_finite() && self.gap_threshold >= 0.0 {
            true => Ok(()),
            false => {
                Err(ConfigError::new("gap_threshold", self.gap_threshold, "a finite number, at least 0"))
            }
        }
    }

    /// With no flag set.
    ///
    /// # Errors
    ///
    /// As [`check`](Self::check).
    pub fn try_init(&self) -> Result<GateTerminator, ConfigError> {
        self.check()?;
        let converged = vec![false; self.num_experts];
        Ok(GateTerminator { config: self.clone(), converged, stopped_at: None })
    }
}

/// Watches a gate's scores and says when its updates must stop.
///
/// In a round `t > T1` every expert m with `|h_m - h_c| < Gamma`, c the chosen one, gets a flag; c itself
/// always. In the first round with all flags set and `t > min_rounds` the gate stops for good; that round's
/// update is skipped already. Experts go on learning. Li et al. (arXiv 2406.16437), Algorithm 1.
///
/// It knows nothing of the gate but its scores, so it serves any router in continual training:
/// [`observe`](Self::observe) takes one decision, [`observe_routing`](Self::observe_routing) those of a batch
/// of tokens.
///
/// ```
/// use gatekit_experts::moe_continual_learning::GateTerminatorConfig;
///
/// let mut terminator = GateTerminatorConfig::new(2, 1).with_gap_threshold(0.5).try_init().unwrap();
/// assert!(!terminator.observe(1, &[1.0, 0.9], 0)); // still exploring
/// assert!(!terminator.observe(2, &[1.0, 0.0], 0)); // expert 1 is far below
/// assert!(terminator.observe(3, &[0.0, 2.0], 1));
/// assert_eq!(terminator.stopped_at(), Some(3));
/// ```
#[derive(Debug, Clone)]
pub struct GateTerminator {
    config: GateTerminatorConfig,
    converged: Vec<bool>,
    stopped_at: Option<usize>,
}

impl GateTerminator {
    /// Takes the scores `[M]` of round `round` (from 1) and the expert that was chosen; says whether the gate
    /// is stopped, in this round already. Scores that are NaN set no flag.
    ///
    /// # Panics
    ///
    /// When there is not one score an expert, or the chosen one is none.
    pub fn observe(&mut self, round: usize, scores: &[f64], chosen: usize) -> bool {
        self.flag(round, scores, chosen);
        self.decide(round)
    }

    /// As [`observe`](Self::observe), for all kept slots of a batch of tokens at once.
    ///
    /// # Panics
    ///
    /// When the routing has no scores, or not M of them a token.
    pub fn observe_routing(&mut self, round: usize, routing: &Routing) -> bool {
        let logits = routing.logits.as_ref().expect("GateTerminator: the routing has no scores");
        let scores: Vec<f64> = logits.to_data().iter::<f64>().collect();
        let assignment = &routing.assignment;
        let slots = assignment.experts().iter().zip(assignment.kept()).enumerate();
        for (slot, (expert, _)) in slots.filter(|(_, (_, kept))| **kept) {
            let token = slot / assignment.per_token();
            let experts = assignment.num_experts();
            self.flag(round, &scores[token * experts..(token + 1) * experts], *expert);
        }
        self.decide(round)
    }

    fn flag(&mut self, round: usize, scores: &[f64], chosen: usize) {
        let experts = self.converged.len();
        assert!(scores.len() == experts, "GateTerminator: {} scores for {experts} experts", scores.len());
        assert!(chosen < experts, "GateTerminator: expert {chosen} of {experts}");
        if round <= self.config.explore_rounds || self.stopped_at.is_some() {
            return;
        }
        for (expert, flag) in self.converged.iter_mut().enumerate() {
            let near = (scores[expert] - scores[chosen]).abs() < self.config.gap_threshold;
            *flag |= if expert == chosen { self.config.flags_chosen } else { near };
        }
    }

    fn decide(&mut self, round: usize) -> bool {
        let all = self.converged.iter().all(|flag| *flag);
        let stops = self.config.early_termination && all && round > self.config.min_rounds;
        if stops && self.stopped_at.is_none() {
            self.stopped_at = Some(round);
        }
        self.stopped_at.is_some()
    }

    /// Which experts have a flag, `[M]`.
    pub fn converged(&self) -> &[bool] {
        &self.converged
    }

    /// The first round without an update of the gate.
    pub fn stopped_at(&self) -> Option<usize> {
        self.stopped_at
    }

    /// Whether the gate is stopped.
    pub fn is_stopped(&self) -> bool {
        self.stopped_at.is_some()
    }

    /// Flags and end as they were saved.
    ///
    /// # Panics
    ///
    /// When there is not one flag an expert.
    pub fn restore(&mut self, converged: &[bool], stopped_at: Option<usize>) {
        assert!(
            converged.len() == self.converged.len(),
            "GateTerminator: {} flags for {} experts",
            converged.len(),
            self.converged.len()
        );
        self.converged.copy_from_slice(converged);
        self.stopped_at = stopped_at;
    }
}
