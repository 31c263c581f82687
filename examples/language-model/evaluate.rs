//! Bits per byte on text that the model did not learn from, every byte predicted once, from what stands before it.

use std::ops::Range;

use burn::prelude::*;
use burn::tensor::activation::log_softmax;
use gatekit::sequence::{CausalLm, StreamingLm};

use crate::data::tokens;

/// Bytes read at a time while a state is carried through the text.
const STRETCH: usize = 1024;
/// Overlapping windows computed at a time.
const BATCH: usize = 16;

/// Reads the text once from `context` bytes before `range` to its end, as a stream: a recurrent state goes along.
pub fn carrying_the_state<M: StreamingLm>(
    model: &M,
    text: &[u8],
    range: Range<usize>,
    context: usize,
    device: &Device,
) -> f64 {
    let mut state = model.empty_state(1, device);
    let mut bits = 0.0;
    let mut read = range.start.saturating_sub(context.max(1));
    // The last byte is predicted but never read.
    while read + 1 < range.end {
        let stretch = read..(read + STRETCH).min(range.end - 1);
        let (logits, next_state) = model.prefill(tokens(&text[stretch.clone()], device), state);
        state = next_state;
        let per_byte = bits_of(logits, tokens(&text[stretch.start + 1..stretch.end + 1], device));
        let known = (range.start.saturating_sub(stretch.start + 1)).min(per_byte.len());
        bits += per_byte[known..].iter().sum::<f64>();
        read = stretch.end;
    }
    bits / range.len() as f64
}

/// Windows of `context` bytes, each half a window further: every byte is predicted in the second half of its window.
pub fn overlapping_windows<M: CausalLm>(
    model: &M,
    text: &[u8],
    range: Range<usize>,
    context: usize,
    device: &Device,
) -> f64 {
    let stride = (context / 2).max(1);
    // A window is the last byte it predicts, and how many it predicts.
    let windows: Vec<(usize, usize)> = (range.clone().step_by(stride))
        .map(|first| (first, (first + stride).min(range.end)))
        .map(|(first, end)| (end - 1, end - first))
        .collect();

    let mut bits = 0.0;
    for group in windows.chunks(BATCH) {
        let rows = |shift: usize| {
            let rows = group.iter().map(|&(last, _)| {
                let end = last + shift;
                tokens(&text[end - context..end], device)
            });
            Tensor::cat(rows.collect(), 0)
        };
        let logits = model.forward(rows(0), None);
        let per_byte = bits_of(logits, rows(1));
        for (row, &(_, predicted)) in per_byte.chunks(context).zip(group) {
            bits += row[context - predicted..].iter().sum::<f64>();
        }
    }
    bits / range.len() as f64
}

/// `-log2 p` of every target `[B,T]` under `logits` `[B,T,256]`, row after row.
fn bits_of(logits: Tensor<3>, targets: Tensor<2, Int>) -> Vec<f64> {
    let nats = log_softmax(logits, 2).gather(2, targets.unsqueeze_dim::<3>(2));
    (nats.into_data().iter::<f32>()).map(|nats| -f64::from(nats) / std::f64::consts::LN_2).collect()
}
