//! Softmax attention to keys of which some are padding, causal or not.

use burn::nn::{Dropout, DropoutConfig};
use burn::tensor::{Bool, Device, Tensor, activation::softmax};

use super::softmax::{HIDDEN, by_group};
use crate::common::widen;

/// Which keys a query sees; all of them by default.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// `[batch, keys]`, true for keys that nobody sees.
    pub padding: Option<Tensor<2, Bool>>,
    /// `Some(n)`: query i sees the keys `0 ..= i + n` only. For the last queries of a causal sequence
    /// n = keys - queries.
    pub ahead: Option<usize>,
}

impl Seen {
    /// Every query sees every key.
    pub fn all() -> Self {
        Self::default()
    }

    /// Every query sees the keys that are no padding, `padding` `[batch, keys]`.
    pub fn padded(padding: Tensor<2, Bool>) -> Self {
        Self { padding: Some(padding), ahead: None }
    }

    /// What a query does not see, `[batch or 1, 1, queries or 1, keys]`; `None` when it sees all.
    fn hidden(&self, [batch, queries, keys]: [usize; 3], device: &Device) -> Option<Tensor<4, Bool>> {
        let padding = self.padding.as_ref().map(|padding| {
            assert!(
                padding.dims() == [batch, keys],
                "masked_attention: `padding` has shape {:?}, need [{batch}, {keys}]",
                padding.dims()
            );
            padding.clone().reshape([batch, 1, 1, keys])
        });
        let later = self
            .ahead
            .filter(|ahead| ahead + 1 < keys && queries > 0)
            .map(|ahead| Tensor::tril_mask([1, 1, queries, keys], ahead as i64, &device.clone().inner()));
        match (padding, later) {
            (Some(padding), Some(later)) => {
                let whole = [batch, 1, queries, keys];
                Some(padding.expand(whole).bool_or(later.expand(whole)))
            }
            (mask, None) | (None, mask) => mask,
        }
    }
}

/// Softmax attention where queries and keys may come from different sequences:
/// `o_i = sum_j softmax_j(D^(-1/2) q_i . k_j) v_j` over the keys that are no padding, 0 where there is none.
///
/// * `q` `[batch, time, heads, D]`
/// * `k` `[batch, keys, groups, D]`, `v` `[batch, keys, groups, Dv]`: `heads` is a multiple of
///   `groups`, and consecutive query heads share a group
/// * `padding` `[batch, keys]`: true for keys that nobody sees
/// * `causal`: the queries are the last `time` of the `keys` positions, and each sees its own and those
///   before it; otherwise every query sees every key, of which there may be any number from 1
/// * returns `[batch, time, heads, Dv]`
///
/// Scores are normalised in at least float32 and held for all queries at once; for long causal
/// sequences without padding [`causal_attention`](super::causal_attention) is the cheaper function.
/// Vaswani et al., "Attention Is All You Need" (arXiv 1706.03762), eq. 1.
///
/// # Panics
///
/// When the shapes do not fit.
pub fn masked_attention(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    padding: Option<&Tensor<2, Bool>>,
    causal: bool,
) -> Tensor<4> {
    let (time, keys) = (q.dims()[1], k.dims()[1]);
    assert!(
        !causal || time <= keys,
        "masked_attention: {time} causal queries, but `k` {:?} has {keys} steps",
        k.dims()
    );
    let seen = Seen { padding: padding.cloned(), ahead: causal.then(|| keys - time) };
    attend(q, k, v, &seen, &DropoutConfig::new(0.0).init()).0
}

/// As [`masked_attention`], with what is seen in full, and weights dropped in training; also the
/// queries that see no key, `[batch, time]` or broadcastable to it, `None` without padding.
pub(super) fn attend(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    seen: &Seen,
    dropout: &Dropout,
) -> (Tensor<4>, Option<Tensor<2, Bool>>) {
    let ([batch, time, heads, dim], [_, keys, groups, _]) = (q.dims(), k.dims());
    assert!(
        k.dims()[0] == batch && k.dims()[3] == dim && keys > 0 && heads % groups == 0,
        "masked_attention: `k` {:?} does not fit `q` {:?}: need the same batch and head size, at least one \
         step, and heads that divide among the groups",
        k.dims(),
        q.dims()
    );
    assert!(
        v.dims()[..3] == k.dims()[..3],
        "masked_attention: `v` {:?} differs from `k` {:?} in batch, steps or groups",
        v.dims(),
        k.dims()
    );
    let value_dim = v.dims()[3];
    if time == 0 || batch == 0 {
        return (Tensor::zeros([batch, time, heads, value_dim], (&q.device(), v.dtype())), None);
    }
    let hidden = seen.hidden([batch, time, keys], &q.device());
    let q = by_group(q.mul_scalar((dim as f64).powf(-0.5)), groups);
    let scores = widen(q.matmul(k.permute([0, 2, 3, 1])));
    let scores = match hidden.clone() {
        Some(hidden) => (scores.reshape([batch, heads, time, keys]))
            .mask_fill(hidden.expand([batch, heads, time, keys]), HIDDEN)
            .reshape([batch, groups, heads / groups * time, keys]),
        None => scores,
    };
    let weights = dropout.forward(softmax(scores, 3)).cast(v.dtype());
    let o = (weights.matmul(v.swap_dims(1, 2))).reshape([batch, heads, time, value_dim]).swap_dims(1, 2);
    // The first key is never ahead of a query: without padding each sees at least that.
    let Some(hidden) = hidden.filter(|_| seen.padding.is_some()) else { return (o, None) };
    // With all keys hidden their weights are equal instead of 0.
    let blind = hidden.all_dim(3);
    let rows = blind.dims()[2];
    let o =
        o.mask_fill(blind.clone().reshape([batch, rows, 1, 1]).expand([batch, time, heads, value_dim]), 0.0);
    (o, Some(blind.reshape([batch, rows])))
}
