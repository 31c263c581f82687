//! Streaming in pieces, whatever the model.

use burn::tensor::{Device, Int, Tensor};
use gatekit_sequence::lm::StreamingLm;

use crate::support::{assert_close, tokens, values};

/// Logits `[batch, time, vocab]` of `ids` in pieces of the given lengths: single tokens by `step`,
/// all else by `prefill`.
pub fn in_pieces<M: StreamingLm>(
    model: &M,
    ids: &Tensor<2, Int>,
    pieces: &[usize],
    mut state: M::State,
) -> (Tensor<3>, M::State) {
    let (mut logits, mut start) = (Vec::new(), 0);
    for &length in pieces {
        let piece = ids.clone().narrow(1, start, length);
        start += length;
        let scores;
        (scores, state) = match length {
            1 => {
                let (scores, state) = model.step(piece.squeeze_dim(1), state);
                (scores.unsqueeze_dim(1), state)
            }
            _ => model.prefill(piece, state),
        };
        logits.push(scores);
    }
    (Tensor::cat(logits, 1), state)
}

/// Fails unless the pieces give what the whole gives.
pub fn assert_streams<M: StreamingLm>(model: &M, device: &Device, pieces: &[usize], what: &str) {
    let ids = tokens(2, pieces.iter().sum(), device);
    let whole = values(&model.forward(ids.clone(), None));
    let (logits, _) = in_pieces(model, &ids, pieces, model.empty_state(2, device));
    assert_close(&values(&logits), &whole, 1e-5, &format!("{what} in {pieces:?}"));
}
