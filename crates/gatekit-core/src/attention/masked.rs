//! Softmax attention to keys of which some are padding, causal or not.

use burn::tensor::{Bool, Tensor, activation::softmax};

use super::softmax::{HIDDEN, by_group};
use crate::common::widen;

/// Softmax attention where queries and keys may come from different sequences:
/// `o_i = sum_j softmax_j(D^(-1/2) q_i . k_j) v_j` over the keys that are no padding.
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
/// When the shapes do not fit, and in debug builds for a query that sees padding alone.
pub fn masked_attention(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    padding: Option<&Tensor<2, Bool>>,
    causal: bool,
) -> Tensor<4> {
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
    assert!(
        !causal || time <= keys,
        "masked_attention: {time} causal queries, but `k` {:?} has {keys} steps",
        k.dims()
    );
    let value_dim = v.dims()[3];
    if time == 0 || batch == 0 {
        return Tensor::zeros([batch, time, heads, value_dim], (&q.device(), v.dtype()));
    }
    let hidden = hidden([batch, time, keys], padding, causal, &q);
    let q = by_group(q.mul_scalar((dim as f64).powf(-0.5)), groups);
    let scores = widen(q.matmul(k.permute([0, 2, 3, 1])));
    let scores = match hidden {
        Some(hidden) => (scores.reshape([batch, heads, time, keys]))
            .mask_fill(hidden.expand([batch, heads, time, keys]), HIDDEN)
            .reshape([batch, groups, heads / groups * time, keys]),
        None => scores,
    };
    softmax(scores, 3)
        .cast(v.dtype())
        .matmul(v.swap_dims(1, 2))
        .reshape([batch, heads, time, value_dim])
        .swap_dims(1, 2)
}

/// Which keys a query does not see, `[batch or 1, 1, time or 1, keys]`; `None` when it sees all.
fn hidden(
    [batch, time, keys]: [usize; 3],
    padding: Option<&Tensor<2, Bool>>,
    causal: bool,
    q: &Tensor<4>,
) -> Option<Tensor<4, Bool>> {
    let first = if causal { keys - time + 1 } else { keys };
    let padding = padding.map(|padding| {
        assert!(
            padding.dims() == [batch, keys],
            "masked_attention: `padding` has shape {:?}, need [{batch}, {keys}]",
            padding.dims()
        );
        if cfg!(debug_assertions) {
            let padded: Vec<bool> = padding.to_data().iter::<bool>().collect();
            let blind = padded.chunks(keys).position(|row| row[..first].iter().all(|padded| *padded));
            assert!(
                blind.is_none(),
                "masked_attention: `padding` leaves row {blind:?} a query without a key"
            );
        }
        padding.clone().reshape([batch, 1, 1, keys])
    });
    let later = (causal && time > 1).then(|| {
        let device = q.device().inner();
        Tensor::tril_mask([1, 1, time, keys], (keys - time) as i64, &device)
    });
    match (padding, later) {
        (Some(padding), Some(later)) => {
            let whole = [batch, 1, time, keys];
            Some(padding.expand(whole).bool_or(later.expand(whole)))
        }
        (mask, None) | (None, mask) => mask,
    }
}
