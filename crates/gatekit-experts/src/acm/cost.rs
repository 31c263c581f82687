//! What modules cost, in floating-point operations.

use gatekit_core::InputError;

use super::config::AcmBias;

/// FLOPs of a linear map of one token: two for every weight, two for every bias, so that maps with as many numbers cost
/// the same. `[d_in, d_out]`.
pub fn linear_cost([d_in, d_out]: [usize; 2], bias: bool) -> f64 {
    2.0 * ((d_in * d_out) as f64 + if bias { d_out as f64 } else { 0.0 })
}

/// What an adaptive computation module costs, in FLOPs a token. Activations are not counted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AcmCost {
    /// One learner.
    pub learner: f64,
    /// The gate.
    pub gate: f64,
    /// Learners N.
    pub num_blocks: usize,
}

impl AcmCost {
    /// One learner of width d and inner width b: `2 (2 d b)`, and two for every bias.
    pub fn of_learner(hidden_dim: usize, block_dim: usize, bias: AcmBias) -> f64 {
        linear_cost([hidden_dim, block_dim], bias.hidden()) + linear_cost([block_dim, hidden_dim], bias.out())
    }

    /// A token that uses `learners` of them (a mean, so not whole): `gate + learner * learners`.
    pub fn of_token(&self, learners: f64) -> f64 {
        self.gate + self.learner * learners
    }
}

/// What a model with adaptive computation modules costs:
/// `total = rest + sum_a (gate_a + c_a * mean choice_a) * tokens`.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelCost {
    /// FLOPs of everything else, for all tokens.
    pub rest: f64,
    /// Tokens.
    pub tokens: usize,
    /// The modules.
    pub modules: Vec<AcmCost>,
}

impl ModelCost {
    /// FLOPs when module a uses `mean_choices[a]` learners a token.
    ///
    /// # Errors
    ///
    /// [`InputError`] unless there is one number a module, between 0 and its learners.
    pub fn total(&self, mean_choices: &[f64]) -> Result<f64, InputError> {
        if mean_choices.len() != self.modules.len() {
            let need = format!("one for each of {} modules", self.modules.len());
            return Err(InputError::new("mean_choices", mean_choices.len(), need));
        }
        let mut total = self.rest;
        for (module, choice) in self.modules.iter().zip(mean_choices) {
            // Means are rounded.
            if !(-1e-6..=module.num_blocks as f64 + 1e-6).contains(choice) {
                let need = format!("between 0 and {} learners", module.num_blocks);
                return Err(InputError::new("mean_choices", choice, need));
            }
            total += module.of_token(*choice) * self.tokens as f64;
        }
        Ok(total)
    }

    /// FLOPs when every token uses all learners, gates not counted: those of the model that was replaced.
    pub fn full(&self) -> f64 {
        let learners = self.modules.iter().map(|module| module.learner * module.num_blocks as f64);
        self.rest + learners.sum::<f64>() * self.tokens as f64
    }

    /// What one learner of every module costs, the `costs` of [`compute_share`](super::compute_share).
    pub fn learner_costs(&self) -> Vec<f64> {
        self.modules.iter().map(|module| module.learner).collect()
    }
}
