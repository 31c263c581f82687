//! Routers of mixtures of experts: which experts a token goes to, with which weight.
//!
//! | item | owns |
//! |---|---|
//! | [`Router`], [`RouterConfig`] | scores, noise, group limit, top-k, weights |
//! | [`Routing`], [`Assignment`] | what a router decided: on the device with gradients, and on the host |
//! | [`StochasticAssignment`] | a hash table or uniform draws in place of scores |
//! | [`ExpertChoiceRouter`] | experts that pick tokens |
//! | [`BalanceLosses`], [`BiasBalancer`] | what keeps the experts evenly used |
//!
//! Scores are computed in at least float32. Selection itself runs on the host, where the
//! [dispatch](crate::dispatch) needs its result anyway, and is stable: of equal values the lower
//! index wins. It takes no gradient; the weights do, through the scores they are gathered from.
//!
//! Shazeer et al. (arXiv 1701.06538), GShard (2006.16668), Switch (2101.03961), Mixtral
//! (2401.04088), DeepSeek-V3 (2412.19437).

mod assigned;
mod assignment;
mod balance;
mod config;
mod expert_choice;
mod learned;
mod load;
mod losses;
mod prune;
mod routing;
mod select;
#[cfg(test)]
mod tests;

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor};

use crate::error::InputError;

pub use assigned::StochasticAssignment;
pub use assignment::Assignment;
pub use balance::BiasBalancer;
pub use config::{
    GroupScore, RouterConfig, RouterInitialisation, RouterNoise, ScoringFunc, SecondExpertPolicy, Selection,
    TopkOrder,
};
pub use expert_choice::{ExpertChoice, ExpertChoiceRouter, ExpertChoiceRouterConfig};
pub use learned::{LearnedRouter, NoiseProjection};
pub use losses::{BalanceLosses, CountNormalizer, squared_variation};
pub use routing::Routing;

/// Whether a layer behaves as in training (noise, random second experts, capacity) or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Noise is drawn and experts may overflow.
    Training,
    /// Neither.
    Inference,
}

impl Phase {
    /// Training on a device with autodiff, as with Burn's dropout; else inference.
    pub fn of(device: &Device) -> Self {
        if device.is_autodiff() { Self::Training } else { Self::Inference }
    }
}

/// What a router is given besides the tokens. A draw that is given is used in either phase; one
/// that is not is made in training alone.
#[derive(Debug, Clone, Default)]
pub struct RouterInputs {
    /// Standard normal draws `[N, E]` for [`RouterNoise::Gaussian`].
    pub noise: Option<Tensor<2>>,
    /// Factors `[N, D]` on the tokens for [`RouterNoise::Jitter`].
    pub jitter: Option<Tensor<2>>,
    /// Draws `[N]` from [0, 1) for [`SecondExpertPolicy::Random`].
    pub uniform: Option<Tensor<1>>,
    /// Token ids `[N]` for [`Selection::Hash`].
    pub token_ids: Option<Tensor<1, Int>>,
    /// Experts `[N]` for [`Selection::Random`]; not given, they are drawn in either phase.
    pub expert_draws: Option<Tensor<1, Int>>,
}

/// Decides which experts every token goes to.
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant)] // There is one a layer, and modules are not moved about.
pub enum Router {
    /// By scores that are learned.
    Learned(LearnedRouter),
    /// By a table or by chance.
    Assigned(StochasticAssignment),
}

impl Router {
    /// Routes tokens `x` `[N, D]`.
    ///
    /// # Errors
    ///
    /// [`InputError`] when token ids are needed and missing, an id lies outside the table, or a
    /// given expert is none.
    ///
    /// # Panics
    ///
    /// When `x` or the draws have the wrong shape, and in debug builds for a NaN logit (in other
    /// builds it is selected last).
    pub fn route(&self, x: Tensor<2>, inputs: &RouterInputs, phase: Phase) -> Result<Routing, InputError> {
        match self {
            Self::Learned(router) => Ok(router.route(x, inputs, phase)),
            Self::Assigned(assignment) => assignment.route(&x, inputs),
        }
    }

    /// Number of experts.
    pub fn num_experts(&self) -> usize {
        match self {
            Self::Learned(router) => router.config().num_experts,
            Self::Assigned(assignment) => assignment.num_experts(),
        }
    }

    /// Moves the selection bias as `balancer` says, from the slots that every expert got in the
    /// whole batch; a router without such a bias stays as it is.
    ///
    /// # Panics
    ///
    /// When `tokens_per_expert` does not have one count an expert.
    pub fn rebalance(&mut self, balancer: &BiasBalancer, tokens_per_expert: &[usize]) {
        if let Self::Learned(router) = self {
            router.rebalance(balancer, tokens_per_expert);
        }
    }
}
