//! Softmax attention in which every value channel has a mask of its own.

use burn::nn::Dropout;
use burn::tensor::{Bool, Tensor};

use crate::common::widen;
use crate::cross_modal::masked_softmax;

/// Scores of one row that lie no further apart than this are exponentiated under one maximum: `exp(-80)` is still a
/// normal float32, with all its digits.
const ONE_MAXIMUM: f32 = 80.0;

/// Attention with a softmax for each value channel, over the keys at which that channel was observed:
/// `y_ihc = sum_l w_ihlc v_lc`, `w_ih.c = softmax over l with M_lc of q_ih . k_lh / sqrt(e)`.
///
/// A channel that is observed nowhere gives the plain average of its stored values, which are therefore to be 0 where
/// the mask is false; else what is stored there may be anything, NaN as well.
///
/// All channels share the exponentials, so that nothing of shape `[B, h, Q, L, C]` is built: with m the largest score of
/// a row over the keys that any channel observed, `y = (sum_l exp(s - m) M v) / (sum_l exp(s - m) M)`, two matrix
/// products. Where channels have masks of their own this asks how far the scores of a row lie apart (one value read
/// back): beyond 80 the exponentials of a channel that only observed the low ones would vanish, and the channels are
/// normalised one after the other instead. Scores and sums are in at least float32.
///
/// `dropout` acts on the weights in training; a draw holds for all channels of a key.
///
/// Zhang et al., "Improving Medical Predictions by Irregular Multimodal Electronic Health Records Modeling"
/// (arXiv 2210.12156), section 3.1; after Shukla and Marlin, "Multi-Time Attention Networks for Irregularly Sampled Time
/// Series" (arXiv 2101.10318), eq. 3.
///
/// # Shapes
///
/// - `q`: `[B, Q, h, e]`, or `[1, Q, h, e]` for the same queries in every sample
/// - `k`: `[B, L, h, e]`, L at least 1
/// - `v`: `[B, L, C]`, shared by the heads
/// - `mask`: `[B, L, C]`, true where observed, or `[B, L, 1]` for all channels alike
/// - returns `[B, Q, h, C]`
///
/// # Panics
///
/// When the shapes do not fit.
pub fn channel_masked_attention(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<3>,
    mask: &Tensor<3, Bool>,
    dropout: &Dropout,
) -> Tensor<4> {
    let ([of_queries, queries, heads, size], [batch, keys, ..]) = (q.dims(), k.dims());
    let ([_, _, channels], [.., masked]) = (v.dims(), mask.dims());
    assert!(
        k.dims()[2..] == [heads, size] && (of_queries == batch || of_queries == 1) && keys > 0,
        "channel_masked_attention: `k` {:?} does not fit `q` {:?}: need the same heads and head size, at least one key, and \
         the same batch or one of queries",
        k.dims(),
        q.dims()
    );
    assert!(
        v.dims()[..2] == [batch, keys]
            && mask.dims()[..2] == [batch, keys]
            && (masked == channels || masked == 1),
        "channel_masked_attention: `v` {:?} and `mask` {:?} do not fit the keys [{batch}, {keys}]",
        v.dims(),
        mask.dims()
    );
    let dtype = v.dtype();
    if batch * queries * channels == 0 {
        return Tensor::zeros([batch, queries, heads, channels], (&k.device(), dtype));
    }
    let scaled = q.mul_scalar((size as f64).powf(-0.5)).swap_dims(1, 2);
    let scores = widen(scaled.matmul(k.permute([0, 2, 3, 1])));
    let (v, rows) = (widen(v), heads * queries);
    let hidden = mask.clone().bool_not();
    // Replaced, not multiplied: what was not observed may be NaN.
    let observed = v.clone().mask_fill(hidden.clone().expand(v.dims()), 0.0);
    let by_row = |weights: Tensor<4>| weights.reshape([batch, rows, keys]);

    let row = Row::of(&scores, mask);
    let attended = if masked == 1 || row.spread() <= ONE_MAXIMUM {
        let powers = row.powers(scores);
        let seen = mask.clone().float().cast(powers.dtype());
        let sums = by_row(powers.clone()).matmul(seen);
        let sums = sums.clone().mask_fill(sums.equal_elem(0.0), 1.0);
        by_row(dropout.forward(powers)).matmul(observed) / sums
    } else {
        let channel = |c: usize| {
            let seen = mask.clone().narrow(2, c, 1).reshape([batch, 1, 1, keys]);
            let weights = dropout.forward(masked_softmax(scores.clone(), 3, Some(seen)));
            by_row(weights).matmul(observed.clone().narrow(2, c, 1))
        };
        Tensor::cat((0..channels).map(channel).collect(), 2)
    };
    let never = mask.clone().int().sum_dim(1).equal_elem(0).expand([batch, rows, channels]);
    let average = v.mean_dim(1).expand([batch, rows, channels]);
    let attended = attended.mask_where(never, average).reshape([batch, heads, queries, channels]);
    attended.swap_dims(1, 2).cast(dtype)
}

/// What the rows of scores `[B, h, Q, L]` have at the keys that any channel observed.
struct Row {
    /// True at the others, `[B, h, Q, L]`.
    unseen: Tensor<4, Bool>,
    /// The largest score, 0 where there is none, `[B, h, Q, 1]`.
    largest: Tensor<4>,
    /// The scores without gradient.
    scores: Tensor<4>,
}

impl Row {
    fn of(scores: &Tensor<4>, mask: &Tensor<3, Bool>) -> Self {
        let [batch, keys, _] = mask.dims();
        let unseen = mask.clone().int().sum_dim(2).equal_elem(0).reshape([batch, 1, 1, keys]);
        let unseen = unseen.expand(scores.dims());
        let scores = scores.clone().detach();
        let largest = scores.clone().mask_fill(unseen.clone(), f64::from(f32::MIN)).max_dim(3);
        let largest = largest.clone().mask_fill(largest.lower_elem(f64::from(f32::MIN) / 2.0), 0.0);
        Self { unseen, largest, scores }
    }

    /// The largest distance of a score to the largest of its row.
    fn spread(&self) -> f32 {
        let below = self.largest.clone().expand(self.scores.dims()) - self.scores.clone();
        below.mask_fill(self.unseen.clone(), 0.0).max().into_scalar::<f32>()
    }

    /// `exp(s - m)`, 1 at keys that nobody observed.
    fn powers(&self, scores: Tensor<4>) -> Tensor<4> {
        let known = scores.mask_fill(self.unseen.clone(), 0.0);
        (known - self.largest.clone()).mask_fill(self.unseen.clone(), 0.0).exp()
    }
}
