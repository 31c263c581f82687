//! Affine-scaled attention: softmax weights times a scale, plus a constant over the visible keys.

use burn::tensor::{DType, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use super::layer::Positions;
use super::softmax::{AttentionOptions, causal_attention};
use crate::common::widen;
use crate::scan::{ScanForm, elementwise_recurrence};
use crate::sequence::Boundaries;

/// What the shift of the weights is spread over: N in [`affine_scaled_attention`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BiasCount {
    /// All tokens of the sequence, the later ones included: the paper's.
    Sequence,
    /// The keys that the query sees: then every row of weights sums to the average m.
    Visible,
    /// Nothing: no shift at all (N infinite), the scale alone. An ablation.
    None,
}

/// `o_t = sum_{j <= t} (alpha_t P_tj + (m - alpha_t) / N_t) v_j`, with `P` the causal softmax.
///
/// Computed as `alpha_t sdpa_t + (m - alpha_t) (n_t / N_t) mean_{j <= t} v_j`, where `n_t` is the number
/// of visible keys: any attention plus a [`causal_mean`] of the values, and no weights in memory.
///
/// * `q` `[batch, time, heads, D]`, `k` `[batch, time, groups, D]`, `v` `[batch, time, groups, Dv]` as in
///   [`causal_attention`]; all queries of whole sequences
/// * `alpha` `[batch, time, heads]`: a scale for every query and head
/// * `average` `[heads]`: the moving average m of the scales
/// * returns `[batch, time, heads, Dv]`
///
/// Hidden keys get exactly 0. Bae et al., "Affine-Scaled Attention" (arXiv 2602.23057), eq. 6 to 9.
///
/// # Panics
///
/// When the shapes do not fit, with a window, or as [`causal_attention`]; in debug builds also when the
/// average is not finite.
#[allow(clippy::too_many_arguments)]
pub fn affine_scaled_attention(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    alpha: Tensor<3>,
    average: Tensor<1>,
    count: BiasCount,
    options: &AttentionOptions,
    boundaries: Option<&Boundaries>,
) -> Tensor<4> {
    assert!(
        k.dims()[1] == q.dims()[1],
        "affine_scaled_attention: `k` {:?} must have the steps of `q` {:?}",
        k.dims(),
        q.dims()
    );
    assert!(options.window.is_none(), "affine_scaled_attention: a sliding window is not supported");
    let o = causal_attention(q, k, v.clone(), options, boundaries);
    let (mean, _) = causal_mean(v, None, boundaries);
    affine_shift(o, mean, alpha, average, count, boundaries.map_or(Positions::From(0), Positions::Packed))
}

/// The second half of [`affine_scaled_attention`]: the softmax's output `o` `[batch, time, heads, Dv]`,
/// scaled and shifted by the [`causal_mean`] of the values `[batch, time, groups, Dv]`.
///
/// With [`BiasCount::Sequence`] and positions from `first` on, the sequence is `first + time` tokens
/// long: a part of a stream is computed as if it ended with these tokens.
///
/// # Panics
///
/// When the shapes do not fit.
pub fn affine_shift(
    o: Tensor<4>,
    mean: Tensor<4>,
    alpha: Tensor<3>,
    average: Tensor<1>,
    count: BiasCount,
    positions: Positions<'_>,
) -> Tensor<4> {
    let [batch, time, heads, dim] = o.dims();
    check(&alpha, &average, [batch, time, heads]);
    let dtype = o.dtype();
    let groups = mean.dims()[2];
    let shared = [batch, time, groups, heads / groups, dim];
    let mean = mean.unsqueeze_dim::<5>(3).expand(shared).reshape([batch, time, heads, dim]);
    let (alpha, average) = (widen(alpha), widen(average).reshape([1, 1, heads]));
    let shift = (average - alpha.clone()) * shares(count, positions, &alpha);
    (widen(o) * alpha.unsqueeze_dim(3) + widen(mean) * shift.unsqueeze_dim(3)).cast(dtype)
}

/// Sums of the rows of weights of [`affine_scaled_attention`], `[batch, heads, time]`:
/// `alpha_t + (m - alpha_t) n_t / N_t`.
///
/// # Panics
///
/// When `alpha` is not `[batch, time, heads]`, `average` not `[heads]`, or the boundaries not those of
/// the sequence.
pub fn affine_row_mass(
    alpha: Tensor<3>,
    average: Tensor<1>,
    count: BiasCount,
    boundaries: Option<&Boundaries>,
) -> Tensor<3> {
    let dims = alpha.dims();
    check(&alpha, &average, dims);
    let (alpha, average) = (widen(alpha), widen(average).reshape([1, 1, dims[2]]));
    let positions = boundaries.map_or(Positions::From(0), Positions::Packed);
    let shares = shares(count, positions, &alpha);
    (alpha.clone() + (average - alpha) * shares).swap_dims(1, 2)
}

/// `n_t / N_t`, `[1, time, 1]`: the share of the shift that reaches visible keys.
fn shares(count: BiasCount, positions: Positions<'_>, like: &Tensor<3>) -> Tensor<3> {
    let time = like.dims()[1];
    let shares: Vec<f64> = match (count, positions) {
        (BiasCount::Visible, _) => vec![1.0; time],
        (BiasCount::None, _) => vec![0.0; time],
        (BiasCount::Sequence, Positions::From(first)) => {
            (1..=time).map(|seen| (first + seen) as f64 / (first + time) as f64).collect()
        }
        (BiasCount::Sequence, Positions::Packed(boundaries)) => (boundaries.cu_seqlens().windows(2))
            .flat_map(|ends| {
                let length = ends[1] - ends[0];
                (1..=length).map(move |seen| seen as f64 / length as f64)
            })
            .collect(),
    };
    assert!(
        shares.len() == time,
        "affine_scaled_attention: `alpha` {:?} does not have the {} steps of the boundaries",
        like.dims(),
        shares.len()
    );
    column(shares, like)
}

/// Running mean of values: `mean_{j <= t} v_j` over the tokens of each sequence so far.
///
/// * `v` `[batch, time, heads, dim]`
/// * `before`: the sum `[batch, heads, dim]` of earlier tokens and their number, when the sequences go on
/// * returns the means, of the shape and type of `v`, and the sums after the last token, `[batch or
///   segments, heads, dim]`, in at least float32
///
/// Sums are made in at least float32.
///
/// # Panics
///
/// When `v` has no time step, or the shapes do not fit.
pub fn causal_mean(
    v: Tensor<4>,
    before: Option<(Tensor<3>, usize)>,
    boundaries: Option<&Boundaries>,
) -> (Tensor<4>, Tensor<3>) {
    let [batch, time, heads, dim] = v.dims();
    let dtype = v.dtype();
    let v = widen(v).reshape([batch, time, heads * dim]);
    let (sum, seen) = before.unzip();
    let initial = sum.map(|sum| {
        let dims = sum.dims();
        assert!(
            dims == [batch, heads, dim],
            "causal_mean: the sum before has shape {dims:?}, need {:?}",
            [batch, heads, dim]
        );
        sum.reshape([batch, heads * dim])
    });
    // A memory that forgets nothing.
    let keep = v.zeros_like().detach();
    let sums = elementwise_recurrence(v, keep, initial, boundaries, ScanForm::Auto);
    let first = seen.unwrap_or(0);
    let counts: Vec<f64> = match boundaries {
        Some(boundaries) => boundaries.position_in_segment().iter().map(|step| (step + 1) as f64).collect(),
        None => (1..=time).map(|step| (first + step) as f64).collect(),
    };
    let means = sums.output.clone() / column(counts, &sums.output);
    let states = sums.final_state.dims()[0];
    (means.reshape([batch, time, heads, dim]).cast(dtype), sums.final_state.reshape([states, heads, dim]))
}

/// Numbers of the host as `[1, time, 1]`.
fn column(values: Vec<f64>, like: &Tensor<3>) -> Tensor<3> {
    let dtype = if like.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
    let count = values.len();
    Tensor::from_data(TensorData::new(values, [1, count, 1]), (&like.device().inner(), dtype))
}

fn check(alpha: &Tensor<3>, average: &Tensor<1>, [batch, time, heads]: [usize; 3]) {
    assert!(
        alpha.dims() == [batch, time, heads],
        "affine_scaled_attention: `alpha` {:?} is not [batch, time, heads] = {:?}",
        alpha.dims(),
        [batch, time, heads]
    );
    assert!(
        average.dims() == [heads],
        "affine_scaled_attention: `average` {:?} is not one for each of {heads} heads",
        average.dims()
    );
    if cfg!(debug_assertions) {
        let finite = average.to_data().iter::<f64>().all(f64::is_finite);
        assert!(finite, "affine_scaled_attention: `average` is not finite: {average}");
    }
}
