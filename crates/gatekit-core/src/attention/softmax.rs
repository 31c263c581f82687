//! Softmax attention as a function, one block of queries after the other.

use burn::tensor::{DType, Device, Tensor, activation::softmax};

use super::packed::packed;
use crate::common::widen;
use crate::sequence::Boundaries;

/// Added to scores that must not be seen: softmax turns it into exactly 0.
pub(super) const HIDDEN: f64 = -1e30;

/// How [`causal_attention`] computes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionOptions {
    /// Multiplies the scores; `None` (the default): `D^(-1/2)`.
    pub scale: Option<f64>,
    /// Sliding window w, at least 1: query i sees keys j with `0 <= i - j < w`. `None` (the default): all.
    pub window: Option<usize>,
    /// Queries computed at a time, at least 1. It bounds the scores held in memory to `block_size`
    /// rows a head and never changes the result. Default 256. Under autodiff the scores of all
    /// blocks are kept for the backward pass.
    pub block_size: usize,
}

impl Default for AttentionOptions {
    fn default() -> Self {
        Self { scale: None, window: None, block_size: 256 }
    }
}

/// Causal softmax attention: `o_i = sum_j softmax_j(scale q_i . k_j) v_j` over the keys that query i sees.
///
/// * `q` `[batch, time, heads, D]`
/// * `k` `[batch, keys, groups, D]`, `v` `[batch, keys, groups, Dv]`: `heads` is a multiple of
///   `groups`, and consecutive query heads share a group. `keys >= time`: the queries are the last
///   `time` of the `keys` positions, as in decoding with a cache.
/// * `boundaries`: the row (batch 1, `keys == time`) holds packed sequences, which do not see one another.
/// * returns `[batch, time, heads, Dv]`
///
/// Every query sees at least its own key, so no row is empty. Scores are normalised in at least float32.
///
/// # Panics
///
/// When the shapes do not fit, or a window or block size is 0.
pub fn causal_attention(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    options: &AttentionOptions,
    boundaries: Option<&Boundaries>,
) -> Tensor<4> {
    attend(q, k, v, None, options, boundaries)
}

/// [`causal_attention`] with a learned logit a head in the denominator: an attention sink.
///
/// `o_i = sum_j exp(s_ij) v_j / (exp(sink_h) + sum_j exp(s_ij))` with the scores `s_ij = scale q_i . k_j`:
/// the weights of a query sum to less than 1, so a head can leave a token unread. `sinks` `[heads]`, one
/// for each query head. As in gpt-oss
/// (arXiv 2508.10925).
///
/// # Panics
///
/// When `sinks` is not `[heads]`, or as [`causal_attention`].
pub fn sink_attention(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    sinks: Tensor<1>,
    options: &AttentionOptions,
    boundaries: Option<&Boundaries>,
) -> Tensor<4> {
    attend(q, k, v, Some(&sinks), options, boundaries)
}

pub(super) fn attend(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    sinks: Option<&Tensor<1>>,
    options: &AttentionOptions,
    boundaries: Option<&Boundaries>,
) -> Tensor<4> {
    check(&q, &k, Some(&v), sinks, options);
    match boundaries {
        Some(boundaries) => {
            let time = boundaries.time();
            assert!(
                q.dims()[..2] == [1, time] && k.dims()[1] == time,
                "causal_attention: packed `q` {:?} and `k` {:?} must have batch 1 and {time} steps",
                q.dims(),
                k.dims()
            );
            packed(q, k, v, sinks, options, boundaries)
        }
        None => blocked(q, k, v, sinks, options),
    }
}

/// The attention weights themselves, `[batch, heads, time, keys]`; each row sums to 1.
///
/// For diagnosis: [`causal_attention`] never holds them all. Arguments and panics as there.
pub fn attention_weights(q: Tensor<4>, k: Tensor<4>, options: &AttentionOptions) -> Tensor<4> {
    weights_with_sinks(q, k, None, options)
}

/// As [`attention_weights`]; with sinks the rows sum to less than 1.
pub(super) fn weights_with_sinks(
    q: Tensor<4>,
    k: Tensor<4>,
    sinks: Option<&Tensor<1>>,
    options: &AttentionOptions,
) -> Tensor<4> {
    check(&q, &k, None, sinks, options);
    let ([batch, time, heads, _], keys) = (q.dims(), k.dims()[1]);
    let (q, k) = (by_group(q, k.dims()[2]), k.permute([0, 2, 1, 3]));
    weights(q, k, sinks, time, keys - time, 0, options).reshape([batch, heads, time, keys])
}

/// One block of queries after the other, each with the keys that its window reaches.
pub(super) fn blocked(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    sinks: Option<&Tensor<1>>,
    options: &AttentionOptions,
) -> Tensor<4> {
    let ([batch, time, heads, _], [_, keys, groups, _], value_dim) = (q.dims(), k.dims(), v.dims()[3]);
    let (k, v) = (k.permute([0, 2, 1, 3]), v.permute([0, 2, 1, 3]));
    let blocks = (0..time)
        .step_by(options.block_size)
        .map(|start| {
            let rows = options.block_size.min(time - start);
            let first = keys - time + start;
            let lowest = options.window.map_or(0, |window| (first + 1).saturating_sub(window));
            let reach = first + rows - lowest;
            let q = by_group(q.clone().narrow(1, start, rows), groups);
            let weights = weights(q, k.clone().narrow(2, lowest, reach), sinks, rows, first, lowest, options);
            weights
                .cast(v.dtype())
                .matmul(v.clone().narrow(2, lowest, reach))
                .reshape([batch, heads, rows, value_dim])
                .swap_dims(1, 2)
        })
        .collect::<Vec<_>>();
    concatenate(blocks)
}

/// `[batch, rows, heads, D]` to `[batch, groups, heads / groups * rows, D]`: one matrix product
/// then serves all heads of a group, and keys are never repeated.
pub(super) fn by_group(q: Tensor<4>, groups: usize) -> Tensor<4> {
    let [batch, rows, heads, dim] = q.dims();
    q.swap_dims(1, 2).reshape([batch, groups, heads / groups * rows, dim])
}

/// Softmax of the scores of `rows` queries a head, the first at position `first`, over keys from
/// position `lowest` on: `[batch, groups, heads / groups * rows, reach]`.
fn weights(
    q: Tensor<4>,
    k: Tensor<4>,
    sinks: Option<&Tensor<1>>,
    rows: usize,
    first: usize,
    lowest: usize,
    options: &AttentionOptions,
) -> Tensor<4> {
    let ([batch, groups, group_rows, dim], reach) = (q.dims(), k.dims()[2]);
    let scale = options.scale.unwrap_or((dim as f64).powf(-0.5));
    let scores = widen(q.mul_scalar(scale).matmul(k.swap_dims(2, 3)));
    let scores = match hidden(rows, reach, first - lowest, options.window, scores.dtype(), &scores.device()) {
        Some(hidden) => (scores.reshape([batch, groups * group_rows / rows, rows, reach]) + hidden)
            .reshape([batch, groups, group_rows, reach]),
        None => scores,
    };
    match sinks {
        None => softmax(scores, 3),
        Some(sinks) => {
            // A further key that every query sees and that has no value.
            let column = [batch, groups, group_rows / rows, rows, 1];
            let sinks = sinks.clone().cast(scores.dtype()).reshape([1, groups, group_rows / rows, 1, 1]);
            let sinks = sinks.expand(column).reshape([batch, groups, group_rows, 1]);
            softmax(Tensor::cat(vec![scores, sinks], 3), 3).narrow(3, 0, reach)
        }
    }
}

/// `[1, 1, rows, reach]` to be added to the scores; `None` when every query sees every key.
/// Query i stands at key `i + offset`.
fn hidden(
    rows: usize,
    reach: usize,
    offset: usize,
    window: Option<usize>,
    dtype: DType,
    device: &Device,
) -> Option<Tensor<4>> {
    let device = &device.clone().inner();
    let later = (rows > 1).then(|| Tensor::tril_mask([1, 1, rows, reach], offset as i64, device));
    // The last query has the most keys behind its window.
    let earlier = window
        .filter(|window| offset + rows > *window)
        .map(|window| Tensor::triu_mask([1, 1, rows, reach], offset as i64 - window as i64 + 1, device));
    let mask = match (later, earlier) {
        (Some(later), Some(earlier)) => later.bool_or(earlier),
        (Some(mask), None) | (None, Some(mask)) => mask,
        (None, None) => return None,
    };
    Some(Tensor::zeros([1, 1, rows, reach], (device, dtype)).mask_fill(mask, HIDDEN))
}

/// Along time; a single part is returned as it is.
pub(super) fn concatenate(mut parts: Vec<Tensor<4>>) -> Tensor<4> {
    if parts.len() == 1 { parts.remove(0) } else { Tensor::cat(parts, 1) }
}

fn check(
    q: &Tensor<4>,
    k: &Tensor<4>,
    v: Option<&Tensor<4>>,
    sinks: Option<&Tensor<1>>,
    options: &AttentionOptions,
) {
    let ([batch, time, heads, dim], [k_batch, keys, groups, k_dim]) = (q.dims(), k.dims());
    assert!(
        batch == k_batch && dim == k_dim && 0 < time && time <= keys && heads % groups == 0,
        "causal_attention: `k` {:?} does not fit `q` {:?}: need the same batch and head size, at least as \
         many steps (and at least one), and heads that divide among the groups",
        k.dims(),
        q.dims()
    );
    if let Some(v) = v {
        assert!(
            v.dims()[..3] == k.dims()[..3],
            "causal_attention: `v` {:?} differs from `k` {:?} in batch, steps or groups",
            v.dims(),
            k.dims()
        );
    }
    if let Some(sinks) = sinks {
        assert!(
            sinks.dims() == [heads],
            "causal_attention: `sinks` {:?} is not one logit for each of {heads} heads",
            sinks.dims()
        );
    }
    assert!(options.window != Some(0), "causal_attention: a window of 0 sees nothing");
    assert!(options.block_size > 0, "causal_attention: `block_size` must be at least 1");
}
