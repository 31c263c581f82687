//! Which modalities take part.

use burn::tensor::{Bool, Tensor};

use super::masked_softmax;
use crate::common::widen;

/// Weights of modalities, and which were kept.
#[derive(Debug, Clone)]
pub struct ModalityWeights {
    /// `[B, M]`: sums to 1 over the kept modalities, 0 for the others; all 0 where none is present.
    pub weights: Tensor<2>,
    /// `[B, M]`: present and not below the threshold, or the fallback.
    pub kept: Tensor<2, Bool>,
}

/// Softmax over the modalities that are present and whose score reaches `threshold`:
/// `w_m = exp(g_m) / sum over kept k of exp(g_k)`.
///
/// `scores` g `[B, M]`, in (0, 1) as a rule; `present` `[B, M]`. If no present modality reaches the threshold, the one
/// with the largest score is kept alone, of equal ones the first. The comparison takes no gradient, the weights do.
/// TouchFormer (arXiv 2511.19509).
///
/// # Panics
///
/// When the shapes differ.
pub fn thresholded_softmax(scores: Tensor<2>, present: Tensor<2, Bool>, threshold: f64) -> ModalityWeights {
    assert!(
        scores.dims() == present.dims(),
        "thresholded_softmax: `scores` {:?} and `present` {:?} differ in shape",
        scores.dims(),
        present.dims()
    );
    let absent = present.clone().bool_not();
    // Below every score that may occur, so that an absent modality is no fallback.
    let known = widen(scores.clone()).detach().mask_fill(absent, f64::from(f32::MIN));
    let reaches = known.clone().greater_equal_elem(threshold).bool_and(present.clone());
    let largest = known.clone().max_dim(1).equal(known).bool_and(present);
    let first = largest.clone().int().cumsum(1).equal_elem(1).bool_and(largest);
    let none = reaches.clone().int().sum_dim(1).equal_elem(0).expand(scores.dims());
    let kept = reaches.bool_or(none.bool_and(first));
    ModalityWeights { weights: masked_softmax(scores, 1, Some(kept.clone())), kept }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_util::{assert_close, devices, float32, values};
    use burn::tensor::TensorData;

    #[test]
    fn modalities_below_the_threshold_are_dropped() {
        for device in devices() {
            let scores = [0.9, 0.2, 0.5, 0.1, 0.25, 0.25, 0.9, 0.1, 0.2, 0.4, 0.5, 0.6];
            let present = [true, true, true, true, true, true, false, true, true, false, false, false];
            let scores = float32(&scores, [4, 3], &device);
            let present = Tensor::<2, Bool>::from_data(TensorData::new(present.to_vec(), [4, 3]), &device);
            let result = thresholded_softmax(scores, present, 0.3);
            let kept = values(result.kept.float());
            let share = 1.0 / (1.0 + (-0.4f64).exp());
            // Two of three; the first of equal ones; the largest that is there; nothing.
            let want = [share, 0.0, 1.0 - share, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0];
            assert_close(&values(result.weights), &want, 1e-6);
            assert!(kept.iter().zip(want).all(|(kept, want)| (*kept == 1.0) == (want > 0.0)), "{kept:?}");
        }
    }
}
