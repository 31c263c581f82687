//! Experts that take a limited number of tokens.

use serde::{Deserialize, Serialize};

use crate::error::ConfigError;
use crate::router::Assignment;

/// Who gets a slot first, among equal choices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    /// In the order of the batch.
    Token,
    /// The largest first weight first; of equal ones in the order of the batch (V-MoE,
    /// arXiv 2106.05974, section 4.1).
    Weight,
}

/// How many slots an expert takes, in multiples of its fair share.
///
/// `C = ceil(factor N K / E)`. A slot's position is the number of kept slots of the same expert
/// before it, where all first choices come before all second choices; slots at position C and
/// beyond are dropped, and their weight is given to no other. GShard (arXiv 2006.16668), section 2.2.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Capacity {
    factor: f64,
    priority: Priority,
}

impl Capacity {
    /// With `factor` fair shares.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] unless the factor is a finite number above 0.
    pub fn new(factor: f64, priority: Priority) -> Result<Self, ConfigError> {
        match factor.is_finite() && factor > 0.0 {
            true => Ok(Self { factor, priority }),
            false => Err(ConfigError::new("capacity_factor", factor, "a finite number above 0, or null")),
        }
    }

    /// Slots that an expert takes.
    pub fn slots(&self, assignment: &Assignment) -> usize {
        let (tokens, k) = (assignment.tokens() as f64, assignment.per_token() as f64);
        // The guard keeps a rounded product from costing a slot.
        (self.factor * tokens * k / assignment.num_experts() as f64 - 1e-9).ceil().max(0.0) as usize
    }

    /// Whether the order of the tokens depends on their first weights.
    pub fn needs_weights(&self) -> bool {
        self.priority == Priority::Weight
    }

    /// Drops the slots that do not fit; `first_weights` has one weight a token, for
    /// [`Priority::Weight`] alone.
    ///
    /// # Panics
    ///
    /// When weights are needed and there is not one a token.
    pub fn apply(&self, assignment: Assignment, first_weights: &[f64]) -> Assignment {
        let capacity = self.slots(&assignment);
        let mut tokens: Vec<usize> = (0..assignment.tokens()).collect();
        if self.priority == Priority::Weight {
            assert!(
                first_weights.len() == tokens.len(),
                "Capacity: {} first weights for {} tokens",
                first_weights.len(),
                tokens.len()
            );
            // A stable sort; the weights are not NaN, or else their tokens come last.
            let key = |token: &usize| match first_weights[*token] {
                weight if weight.is_nan() => f64::NEG_INFINITY,
                weight => weight + 0.0,
            };
            tokens.sort_by(|a, b| key(b).total_cmp(&key(a)));
        }
        let mut taken = vec![0; assignment.num_experts()];
        let mut fits = vec![false; assignment.experts().len()];
        for choice in 0..assignment.per_token() {
            for token in &tokens {
                let slot = token * assignment.per_token() + choice;
                if !assignment.kept()[slot] {
                    continue;
                }
                let taken = &mut taken[assignment.experts()[slot]];
                if *taken < capacity {
                    *taken += 1;
                    fits[slot] = true;
                }
            }
        }
        assignment.retain(|slot| fits[slot])
    }
}
