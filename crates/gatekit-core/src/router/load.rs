//! The differentiable load of noisy top-k routing.

use std::f64::consts::FRAC_1_SQRT_2;

use burn::tensor::{Int, Tensor, TensorData};

/// `load_e = sum over tokens of Phi((clean_e - threshold_e) / scale_e)`, `[E]`.
///
/// The threshold is the K-th largest noisy logit among the other experts: the (K+1)-th of all for
/// the chosen ones, the K-th for the rest. `ranked` holds the K+1 best experts of every token.
/// Shazeer et al. (arXiv 1701.06538), eq. 9 and 10.
pub(super) fn noisy_load(
    clean: Tensor<2>,
    noisy: Tensor<2>,
    scale: Tensor<2>,
    ranked: &[usize],
    k: usize,
) -> Tensor<1> {
    let ([tokens, experts], device) = (noisy.dims(), noisy.device());
    let positions: Vec<i64> = ranked.iter().map(|expert| *expert as i64).collect();
    let positions = Tensor::<2, Int>::from_data(TensorData::new(positions, [tokens, k + 1]), &device);
    let best = noisy.gather(1, positions);
    let mut chosen = vec![false; tokens * experts];
    for (token, ranked) in ranked.chunks_exact(k + 1).enumerate() {
        for expert in &ranked[..k] {
            chosen[token * experts + expert] = true;
        }
    }
    let chosen = Tensor::from_data(TensorData::new(chosen, [tokens, experts]), &device);
    let threshold = |rank| best.clone().narrow(1, rank, 1).expand([tokens, experts]);
    let threshold = threshold(k - 1).mask_where(chosen, threshold(k));
    let deviations = (clean - threshold) / scale;
    let probability = deviations.mul_scalar(FRAC_1_SQRT_2).erf().add_scalar(1.0).mul_scalar(0.5);
    probability.sum_dim(0).squeeze_dim(0)
}
