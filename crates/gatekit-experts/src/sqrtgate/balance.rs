//! The balancing loss over the whole batch of a step.

use burn::tensor::Tensor;
use gatekit_core::router::{BalanceLosses, CountNormalizer, Routing, ScoringFunc};

/// What balances the experts over all tokens of a step.
#[derive(Debug, Clone)]
pub struct GlobalBalance {
    /// `aux_gamma E sum_e P_e f_e`, `[1]`.
    pub aux_loss: Tensor<1>,
    /// Mean of `logsumexp(z)^2`, `[1]`: watched, not minimised.
    pub router_z: Tensor<1>,
    /// Slots of each expert.
    pub tokens_per_expert: Vec<usize>,
}

/// `aux_gamma E sum_e P_e f_e` where probabilities and counts are those of **all** routings of one layer:
/// of every device and micro-batch of a step.
///
/// A mean of the losses of parts would ask every part to be balanced by itself. Counts take no gradient. A
/// part on another device is moved to the first one's.
///
/// # Panics
///
/// Without a routing, and for routings without logits or of other numbers of experts.
pub fn global_balance(routings: &[Routing], aux_gamma: f64) -> GlobalBalance {
    let logits = |routing: &Routing| routing.logits.clone().expect("global_balance: a routing has no logits");
    assert!(!routings.is_empty(), "global_balance: no routing was given");
    let device = routings[0].weights.device();
    let with_tokens = || routings.iter().filter(|routing| routing.assignment.tokens() > 0);
    let whole = match with_tokens().count() {
        0 => routings[0].clone(),
        1 => with_tokens().next().expect("counted").clone(),
        _ => Routing::from_parts(
            Tensor::cat(with_tokens().map(|routing| logits(routing).to_device(&device)).collect(), 0),
            ScoringFunc::Softmax,
            Tensor::cat(with_tokens().map(|routing| routing.indices.clone().to_device(&device)).collect(), 0),
            Tensor::cat(with_tokens().map(|routing| routing.weights.clone().to_device(&device)).collect(), 0),
        )
        .unwrap_or_else(|error| panic!("global_balance: {error}")),
    };
    let tokens = whole.assignment.tokens();
    let losses = BalanceLosses::new(&whole, [1, tokens], None, CountNormalizer::Assignments);
    GlobalBalance {
        aux_loss: losses.load_balance.mul_scalar(aux_gamma),
        router_z: losses.z_loss,
        tokens_per_expert: losses.tokens_per_expert,
    }
}
