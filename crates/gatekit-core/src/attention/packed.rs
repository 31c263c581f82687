//! Packed sequences: none sees another.

use std::collections::BTreeMap;

use burn::tensor::Tensor;

use super::softmax::{AttentionOptions, blocked, concatenate};
use crate::common::indices;
use crate::sequence::Boundaries;

/// Packed sequences as batches of sequences of similar length.
///
/// A sequence shorter than its batch is extended by repeating its last token, which causality keeps
/// the real tokens from seeing; the extra results are dropped. Lengths within a batch differ by less
/// than a factor of two, so no more than three quarters of the scores are wasted.
pub(super) fn packed(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    sinks: Option<&Tensor<1>>,
    options: &AttentionOptions,
    boundaries: &Boundaries,
) -> Tensor<4> {
    let segments: Vec<_> = boundaries.cu_seqlens().windows(2).map(|pair| pair[0]..pair[1]).collect();
    let length = segments[0].len();
    if segments.iter().all(|segment| segment.len() == length) {
        let rows = |x: Tensor<4>| {
            let [_, _, heads, dim] = x.dims();
            x.reshape([segments.len(), length, heads, dim])
        };
        let output = blocked(rows(q), rows(k), rows(v), sinks, options);
        let [_, _, heads, dim] = output.dims();
        return output.reshape([1, boundaries.time(), heads, dim]);
    }
    let mut batches: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (index, segment) in segments.iter().enumerate() {
        batches.entry(segment.len().next_power_of_two()).or_default().push(index);
    }
    let device = q.device();
    let mut place = vec![0; boundaries.time()];
    let mut filled = 0;
    let outputs = batches
        .into_values()
        .map(|batch| {
            let longest = batch.iter().map(|index| segments[*index].len()).max().unwrap_or(0);
            let mut tokens = Vec::with_capacity(batch.len() * longest);
            for segment in batch.iter().map(|index| segments[*index].clone()) {
                for step in 0..longest {
                    if step < segment.len() {
                        place[segment.start + step] = filled + tokens.len();
                    }
                    tokens.push((segment.start + step).min(segment.end - 1));
                }
            }
            filled += tokens.len();
            let tokens = indices(tokens, &device);
            let rows = |x: &Tensor<4>| {
                let [_, _, heads, dim] = x.dims();
                x.clone().select(1, tokens.clone()).reshape([batch.len(), longest, heads, dim])
            };
            let output = blocked(rows(&q), rows(&k), rows(&v), sinks, options);
            let [_, _, heads, dim] = output.dims();
            output.reshape([1, batch.len() * longest, heads, dim])
        })
        .collect();
    concatenate(outputs).select(1, indices(place, &device))
}
