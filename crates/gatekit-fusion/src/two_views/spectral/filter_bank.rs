//! Cepstra of the short-time power spectrum through a bank of triangles.

use std::f64::consts::{LN_10, TAU};

use burn::tensor::Tensor;

use super::config::SpectralConfig;
use super::cosine::cosine_basis;
use super::frames::{Table, hann, power, products};

/// Linear or mel-frequency cepstra.
///
/// The ends are mirrored by half a frame; a periodic Hann window, squared magnitude, triangles without area norm,
/// decibels with a floor below an utterance's loudest cell, and an orthonormal DCT-II.
#[derive(Debug, Clone)]
pub struct FilterBankCepstra {
    pub(super) n_fft: usize,
    pub(super) hop: usize,
    pub(super) deltas: usize,
    pub(super) empty_filters: Vec<usize>,
    top_db: f64,
    /// Windowed cosines, then sines, `[n_fft, n_fft + 2]`.
    transform: Table,
    /// `[n_fft / 2 + 1, filters]`.
    bank: Table,
    /// `[filters, coefficients]`.
    basis: Table,
}

fn mel(hertz: f64) -> f64 {
    2595.0 * (1.0 + hertz / 700.0).log10()
}

fn hertz(mel: f64) -> f64 {
    700.0 * (10f64.powf(mel / 2595.0) - 1.0)
}

impl FilterBankCepstra {
    pub(super) fn linear(config: &SpectralConfig) -> Self {
        Self::new(config, |share, highest| share * highest)
    }

    pub(super) fn mel(config: &SpectralConfig) -> Self {
        Self::new(config, |share, highest| hertz(share * mel(highest)))
    }

    /// `point(share, highest)`: the frequency at a share of the way up to the highest.
    fn new(config: &SpectralConfig, point: impl Fn(f64, f64) -> f64) -> Self {
        let (n_fft, filters) = (config.n_fft, config.num_filters());
        let (bins, highest) = (n_fft / 2 + 1, config.sample_rate as f64 / 2.0);
        let points: Vec<f64> =
            (0..filters + 2).map(|i| point(i as f64 / (filters + 1) as f64, highest)).collect();
        let bank = Table::new(bins, filters, |bin, filter| {
            let f = highest * bin as f64 / (bins - 1) as f64;
            let [low, centre, high] = [points[filter], points[filter + 1], points[filter + 2]];
            let (rise, fall) = ((f - low) / (centre - low), (high - f) / (high - centre));
            rise.min(fall).max(0.0)
        });
        let transform = Table::new(n_fft, 2 * bins, |n, column| {
            // The angle modulo a turn, for whole numbers are exact.
            let turn = (n * (column % bins)) % n_fft;
            let (sine, cosine) = (TAU * turn as f64 / n_fft as f64).sin_cos();
            hann(n, n_fft) * if column < bins { cosine } else { -sine }
        });
        Self {
            n_fft,
            hop: config.hop,
            deltas: config.deltas,
            empty_filters: bank.empty_columns(),
            top_db: config.top_db,
            transform,
            bank,
            basis: cosine_basis(filters, config.coefficients),
        }
    }

    pub(super) fn coefficients(&self) -> usize {
        self.basis.columns()
    }

    /// Waves `[B, L]` of more than `n_fft / 2` samples to `[B, T, coefficients]`.
    pub(super) fn forward(&self, wave: Tensor<2>) -> Tensor<3> {
        let (length, half) = (wave.dims()[1], self.n_fft / 2);
        let before = wave.clone().narrow(1, 1, half).flip([1]);
        let after = wave.clone().narrow(1, length - 1 - half, half).flip([1]);
        let mirrored = Tensor::cat(vec![before, wave, after], 1);
        let spectrum = power(products(mirrored, &self.transform, self.hop, 1 + length / self.hop));
        let bank = self.bank.tensor(&spectrum).unsqueeze::<3>();
        let decibels = spectrum.matmul(bank).clamp_min(1e-10).log() * (10.0 / LN_10);
        let floor = decibels.clone().max_dims(&[1, 2]) - self.top_db;
        let decibels = decibels.clone().max_pair(floor.expand(decibels.dims()));
        let basis = self.basis.tensor(&decibels).unsqueeze::<3>();
        decibels.matmul(basis)
    }
}
