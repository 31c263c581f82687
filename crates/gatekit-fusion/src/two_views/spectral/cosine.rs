//! The cosine transform that makes cepstra, deltas, and the norm over an utterance.

use std::f64::consts::PI;

use burn::tensor::Tensor;

use super::frames::Table;

/// The first `coefficients` columns of the orthonormal DCT-II over `points`:
/// `sqrt(2 / F) cos(pi / F (n + 1/2) k)`, column 0 over `sqrt(2)`.
pub(super) fn cosine_basis(points: usize, coefficients: usize) -> Table {
    Table::new(points, coefficients, |n, k| {
        let scale = if k == 0 { 1.0 } else { 2.0 } / points as f64;
        scale.sqrt() * (PI / points as f64 * (n as f64 + 0.5) * k as f64).cos()
    })
}

/// Slopes over five frames, `(x_{t+1} - x_{t-1} + 2 (x_{t+2} - x_{t-2})) / 10`, where the ends are repeated.
///
/// `x` `[B, T, C]`, T at least 1, to the same shape.
///
/// # Panics
///
/// Without a frame.
pub fn deltas(x: Tensor<3>) -> Tensor<3> {
    let frames = x.dims()[1];
    assert!(frames > 0, "deltas: `x` {:?} has no frame", x.dims());
    let first = x.clone().narrow(1, 0, 1).repeat_dim(1, 2);
    let last = x.clone().narrow(1, frames - 1, 1).repeat_dim(1, 2);
    let x = Tensor::cat(vec![first, x, last], 1);
    let at = |offset: usize| x.clone().narrow(1, offset, frames);
    (at(3) - at(1) + (at(4) - at(0)) * 2.0) / 10.0
}

/// Every channel of every utterance with mean 0 and variance 1 over time: `(x - mean_t) / sqrt(var_t + 1e-5)`.
///
/// `x` `[B, T, C]` to the same shape. Recommended for cepstra before they are fused, for their first coefficient
/// dwarfs the rest.
pub fn normalize_utterances(x: Tensor<3>) -> Tensor<3> {
    let centred = x.clone() - x.mean_dim(1);
    let variance = centred.clone().square().mean_dim(1);
    centred / (variance + 1e-5).sqrt()
}
