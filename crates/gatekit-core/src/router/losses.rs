//! What keeps the experts evenly used, as losses.

use burn::tensor::{Bool, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use super::Routing;
use super::routing::sum_by_expert;

/// What the slots of an expert are divided by in [`BalanceLosses::load_balance`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CountNormalizer {
    /// The tokens: the fractions sum to K.
    Tokens,
    /// The slots: the fractions sum to 1.
    Assignments,
}

/// Every balancing loss of a routing, each `[1]` and not yet weighted.
///
/// With scores s (divided by their sum over the experts), their mean `P_e` over the n real tokens,
/// and the slots `c_e` that chose expert e. Masked tokens count nowhere; where all are masked
/// every loss is 0. Counts take no gradient.
#[derive(Debug, Clone)]
pub struct BalanceLosses {
    /// `E sum_e f_e P_e` with `f_e = c_e / n` or `c_e / (n K)`. Switch Transformers
    /// (arXiv 2101.03961), eq. 4; weighted 0.01 there.
    pub load_balance: Tensor<1>,
    /// `sum_e f_e P_e` within a sequence, `f_e = E c_e / (K n)`, then the mean over sequences.
    /// DeepSeek-V3 (arXiv 2412.19437), eq. 17; weighted 1e-4 there.
    pub sequence_balance: Tensor<1>,
    /// Mean of `logsumexp(logits)^2`. ST-MoE (arXiv 2202.08906), eq. 5; weighted 1e-3 there.
    pub z_loss: Tensor<1>,
    /// Squared variation of the weights summed by expert. Shazeer et al. (arXiv 1701.06538), eq. 7.
    pub importance_cv2: Tensor<1>,
    /// Squared variation of `c_e`; takes no gradient. [`Routing::load`] is what does.
    pub load_cv2: Tensor<1>,
    /// `sum_e P_e log P_e`, minimised to spread the average use (MoEUT, arXiv 2405.16039).
    pub entropy: Tensor<1>,
    /// Slots of real tokens that chose each expert.
    pub tokens_per_expert: Vec<usize>,
}

impl BalanceLosses {
    /// The losses of `routing` over tokens that were `[batch, time]`; `mask` `[batch, time]` marks
    /// the real ones.
    ///
    /// # Panics
    ///
    /// When the routing has no scores (nothing is learned), or not `batch * time` tokens, or the
    /// mask another shape.
    pub fn new(
        routing: &Routing,
        [batch, time]: [usize; 2],
        mask: Option<&Tensor<2, Bool>>,
        normalizer: CountNormalizer,
    ) -> Self {
        let (Some(logits), Some(scores)) = (routing.logits.clone(), routing.scores.clone()) else {
            panic!("BalanceLosses: the routing has no scores to balance");
        };
        let assignment = &routing.assignment;
        let (tokens, k, experts) = (assignment.tokens(), assignment.per_token(), assignment.num_experts());
        assert!(
            tokens == batch * time,
            "BalanceLosses: the routing has {tokens} tokens, [batch, time] is [{batch}, {time}]"
        );
        let real: Vec<bool> = match mask {
            Some(mask) => {
                assert!(
                    mask.dims() == [batch, time],
                    "BalanceLosses: `mask` has shape {:?}, need [{batch}, {time}]",
                    mask.dims()
                );
                mask.to_data().iter::<bool>().collect()
            }
            None => vec![true; tokens],
        };
        let counts = assignment.counts(|token| real[token]);
        let n = real.iter().filter(|real| **real).count();
        let (device, dtype) = (logits.device(), logits.dtype());
        let zero = || Tensor::zeros([1], (&device, dtype));
        if n == 0 {
            return Self {
                load_balance: zero(),
                sequence_balance: zero(),
                z_loss: zero(),
                importance_cv2: zero(),
                load_cv2: zero(),
                entropy: zero(),
                tokens_per_expert: counts,
            };
        }
        let tensor = |values: Vec<f64>, shape: [usize; 2]| {
            Tensor::<2>::from_data(TensorData::new(values, shape), (&device, dtype))
        };
        let share = scores.clone() / scores.sum_dim(1).add_scalar(1e-20);
        let is_real = |token: usize| f64::from(u8::from(real[token]));
        let mean = tensor((0..tokens).map(|token| is_real(token) / n as f64).collect(), [tokens, 1]);
        let mean_share = (share.clone() * mean.clone()).sum_dim(0);

        let slots = match normalizer {
            CountNormalizer::Tokens => n,
            CountNormalizer::Assignments => n * k,
        };
        let fractions = counts.iter().map(|count| (experts * count) as f64 / slots as f64).collect();
        let load_balance = (mean_share.clone() * tensor(fractions, [1, experts])).sum();

        let factors = sequence_factors(routing, [batch, time], &real);
        let sequence_balance = (share * tensor(factors, [tokens, experts])).sum();

        let largest = logits.clone().detach().max_dim(1);
        let log_sum = (logits - largest.clone()).exp().sum_dim(1).log() + largest;
        let z_loss = (log_sum.square() * mean).sum();

        let mask = tensor((0..tokens).map(is_real).collect(), [tokens, 1]);
        let weights = routing.weights.clone() * mask;
        let importance = sum_by_expert(weights, routing.indices.clone(), experts);
        let load = tensor(counts.iter().map(|count| *count as f64).collect(), [1, experts]);
        let entropy = (mean_share.clone() * mean_share.clamp_min(1e-30).log()).sum();
        Self {
            load_balance,
            sequence_balance,
            z_loss,
            importance_cv2: squared_variation(importance),
            load_cv2: squared_variation(load.squeeze_dim(0)),
            entropy,
            tokens_per_expert: counts,
        }
    }
}

/// What every share `[tokens, E]` is multiplied by in the balance within sequences.
fn sequence_factors(routing: &Routing, [batch, time]: [usize; 2], real: &[bool]) -> Vec<f64> {
    let assignment = &routing.assignment;
    let (k, experts) = (assignment.per_token(), assignment.num_experts());
    let lengths: Vec<usize> = (0..batch)
        .map(|row| real[row * time..(row + 1) * time].iter().filter(|real| **real).count())
        .collect();
    let sequences = lengths.iter().filter(|length| **length > 0).count();
    let mut factors = Vec::with_capacity(batch * time * experts);
    for (row, length) in lengths.into_iter().enumerate() {
        let tokens = row * time..(row + 1) * time;
        let mut counts = vec![0; experts];
        for token in tokens.clone().filter(|token| real[*token]) {
            for expert in &assignment.experts()[token * k..(token + 1) * k] {
                // A pruned slot has no expert.
                if let Some(count) = counts.get_mut(*expert) {
                    *count += 1;
                }
            }
        }
        for token in tokens {
            factors.extend(counts.iter().map(|count| match real[token] {
                // f_e = E c_e / (K n), times 1 / n for the mean over tokens.
                true => (experts * count) as f64 / ((k * length * length * sequences) as f64),
                false => 0.0,
            }));
        }
    }
    factors
}

/// `CV^2(v) = var(v) / (mean(v)^2 + 1e-10)`, the variance that of the population; `[1]`.
///
/// Shazeer et al. (arXiv 1701.06538), eq. 7 and 11, where importance and load are weighted 0.1 each.
pub fn squared_variation(values: Tensor<1>) -> Tensor<1> {
    let mean = values.clone().mean();
    let variance = (values - mean.clone()).square().mean();
    variance / mean.square().add_scalar(1e-10)
}
