//! Cepstra of the constant-Q transform.

use std::f64::consts::TAU;

use burn::tensor::Tensor;

use super::config::SpectralConfig;
use super::cosine::cosine_basis;
use super::frames::{Table, hann, power, products};

/// Constant-Q cepstra: `X_b = (1 / n_b) sum_n x w exp(-2 pi i Q n / n_b)` at frequencies equally spaced in octaves,
/// `log(|X|^2 + 1e-8)`, resampled by straight lines to equally spaced frequencies, and an orthonormal DCT-II.
///
/// Bin b is at `f_b = f_min 2^(b / bins_per_octave)` and sees `n_b = ceil(Q rate / f_b)` samples around a frame's
/// centre, `Q = 1 / (2^(1 / bins_per_octave) - 1)`; outside the wave is 0. Todisco et al., "Constant Q cepstral
/// coefficients" (2017).
#[derive(Debug, Clone)]
pub struct ConstantQCepstra {
    pub(super) hop: usize,
    pub(super) deltas: usize,
    /// The bins octave by octave.
    octaves: Vec<Table>,
    /// From bins to points, `[bins, points]`.
    resample: Table,
    /// `[points, coefficients]`.
    basis: Table,
}

impl ConstantQCepstra {
    pub(super) fn new(config: &SpectralConfig) -> Self {
        let (bins, per_octave) = (config.num_filters(), config.bins_per_octave as f64);
        let quality = 1.0 / ((1.0 / per_octave).exp2() - 1.0);
        let frequencies: Vec<f64> =
            (0..bins).map(|bin| config.f_min * (bin as f64 / per_octave).exp2()).collect();
        let sizes: Vec<usize> = (frequencies.iter())
            .map(|frequency| (quality * config.sample_rate as f64 / frequency).ceil() as usize)
            .collect();
        // Within an octave windows differ in length by a factor of two at most, so no more than half of a table is 0.
        let octaves = sizes.chunks(config.bins_per_octave).map(|sizes| octave(sizes, quality)).collect();
        Self {
            hop: config.hop,
            deltas: config.deltas,
            octaves,
            resample: straight_lines(&frequencies, config.resample_points),
            basis: cosine_basis(config.resample_points, config.coefficients),
        }
    }

    pub(super) fn coefficients(&self) -> usize {
        self.basis.columns()
    }

    /// Waves `[B, L]` to `[B, T, coefficients]`.
    pub(super) fn forward(&self, wave: Tensor<2>) -> Tensor<3> {
        let [batch, length] = wave.dims();
        let frames = 1 + length / self.hop;
        let bins = self.octaves.iter().map(|windows| {
            let before = Tensor::zeros([batch, windows.rows() / 2], (&wave.device(), wave.dtype()));
            power(products(Tensor::cat(vec![before, wave.clone()], 1), windows, self.hop, frames))
        });
        let bins = (Tensor::cat(bins.collect(), 2) + 1e-8).log();
        let points = bins.clone().matmul(self.resample.tensor(&bins).unsqueeze::<3>());
        points.matmul(self.basis.tensor(&bins).unsqueeze::<3>())
    }
}

/// Real, then imaginary parts of windows of these sizes around one centre, `[N, 2 count]` with N the longest.
fn octave(sizes: &[usize], quality: f64) -> Table {
    let (longest, count) = (sizes[0], sizes.len());
    Table::new(longest, 2 * count, |row, column| {
        let size = sizes[column % count];
        let Some(n) = row.checked_sub(longest / 2 - size / 2).filter(|n| *n < size) else { return 0.0 };
        let (sine, cosine) = (TAU * quality * n as f64 / size as f64).sin_cos();
        hann(n, size) / size as f64 * if column < count { cosine } else { -sine }
    })
}

/// Weights that read values at `from` (rising) at `points` equally spaced places between its ends.
fn straight_lines(from: &[f64], points: usize) -> Table {
    let (first, last) = (from[0], from[from.len() - 1]);
    let step = (last - first) / (points.max(2) - 1) as f64;
    let places: Vec<(usize, f64)> = (0..points)
        .map(|point| {
            let at = first + step * point as f64;
            let lower = from.partition_point(|f| *f <= at).clamp(1, from.len().max(2) - 1) - 1;
            let upper = (lower + 1).min(from.len() - 1);
            let gap = from[upper] - from[lower];
            (lower, if gap > 0.0 { ((at - from[lower]) / gap).clamp(0.0, 1.0) } else { 0.0 })
        })
        .collect();
    Table::new(from.len(), points, |bin, point| {
        let (lower, share) = places[point];
        let below = if bin == lower { 1.0 - share } else { 0.0 };
        below + if bin == lower + 1 { share } else { 0.0 }
    })
}
