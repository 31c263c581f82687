//! What a front end is made of.

use burn::config::Config;
use burn::tensor::Device;
use gatekit_core::{ConfigError, ModuleConfig, check_sizes};
use serde::{Deserialize, Serialize};

use super::SpectralFrontEnd;
use super::constant_q::ConstantQCepstra;
use super::filter_bank::FilterBankCepstra;

/// Kinds of cepstra.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SpectralKind {
    /// Filters equally wide in hertz.
    Lfcc,
    /// Filters equally wide in mel.
    Mfcc,
    /// Bins equally spaced in octaves, resampled to a linear scale.
    Cqcc,
}

/// Configuration of [`SpectralFrontEnd`].
#[derive(Config, Debug)]
pub struct SpectralConfig {
    /// Kind of cepstra. Default linear-frequency.
    #[config(default = "SpectralKind::Lfcc")]
    pub kind: SpectralKind,
    /// Samples a second. Default 16000.
    #[config(default = 16000)]
    pub sample_rate: usize,
    /// Samples from one frame to the next. Default 160, a hundred frames a second.
    #[config(default = 160)]
    pub hop: usize,
    /// Samples of a frame and length of the transform (lfcc, mfcc); even, at most 8192. Default 512.
    #[config(default = 512)]
    pub n_fft: usize,
    /// Filters, or constant-Q bins, at most 4096. `None` (the default): lfcc 70, mfcc 64, cqcc 96.
    #[config(default = "None")]
    pub filters: Option<usize>,
    /// Cepstra that are kept, at most the filters (cqcc: at most `resample_points`). Default 40.
    #[config(default = 40)]
    pub coefficients: usize,
    /// Decibels kept below the loudest cell of an utterance (lfcc, mfcc), above 0. Default 80.
    #[config(default = 80.0)]
    pub top_db: f64,
    /// 0, 1 (deltas) or 2 (and their deltas). Default 0.
    #[config(default = 0)]
    pub deltas: usize,
    /// Lowest bin in hertz (cqcc). Default 31.25.
    #[config(default = 31.25)]
    pub f_min: f64,
    /// Bins an octave (cqcc). Default 12.
    #[config(default = 12)]
    pub bins_per_octave: usize,
    /// Points of the linear scale (cqcc), at most 4096. Default 96.
    #[config(default = 96)]
    pub resample_points: usize,
}

/// Largest transform, for it is a matrix.
const MAX_TRANSFORM: usize = 8192;
/// Most filters and points.
const MAX_FILTERS: usize = 4096;
/// Longest constant-Q window in samples, for it is a row of a matrix.
const MAX_WINDOW: usize = 1 << 18;

impl SpectralConfig {
    /// Filters or bins, by default those of the kind.
    pub fn num_filters(&self) -> usize {
        self.filters.unwrap_or(match self.kind {
            SpectralKind::Lfcc => 70,
            SpectralKind::Mfcc => 64,
            SpectralKind::Cqcc => 96,
        })
    }

    /// Channels of a frame, `coefficients (1 + deltas)`.
    pub fn features(&self) -> usize {
        self.coefficients * (1 + self.deltas)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let filters = self.num_filters();
        check_sizes(&[
            ("sample_rate", self.sample_rate),
            ("hop", self.hop),
            ("filters", filters),
            ("coefficients", self.coefficients),
        ])?;
        at_most("filters", filters, MAX_FILTERS)?;
        if self.deltas > 2 {
            return Err(ConfigError::new("deltas", self.deltas, "0, 1 or 2"));
        }
        let kept = match self.kind {
            SpectralKind::Lfcc | SpectralKind::Mfcc => ("filters", filters),
            SpectralKind::Cqcc => ("resample_points", self.resample_points),
        };
        if self.kind == SpectralKind::Cqcc {
            self.check_constant_q(filters)?;
        } else {
            self.check_transform()?;
        }
        if self.coefficients > kept.1 {
            let need = format!("at most {} = {}", kept.0, kept.1);
            return Err(ConfigError::new("coefficients", self.coefficients, need));
        }
        Ok(())
    }

    fn check_transform(&self) -> Result<(), ConfigError> {
        if self.n_fft == 0 || !self.n_fft.is_multiple_of(2) {
            return Err(ConfigError::new("n_fft", self.n_fft, "an even number above 0"));
        }
        at_most("n_fft", self.n_fft, MAX_TRANSFORM)?;
        positive("top_db", self.top_db)
    }

    fn check_constant_q(&self, bins: usize) -> Result<(), ConfigError> {
        check_sizes(&[("bins_per_octave", self.bins_per_octave), ("resample_points", self.resample_points)])?;
        at_most("resample_points", self.resample_points, MAX_FILTERS)?;
        positive("f_min", self.f_min)?;
        let highest = self.sample_rate as f64 / 2.0;
        let frequency = |bin: usize| self.f_min * (bin as f64 / self.bins_per_octave as f64).exp2();
        if let Some(bin) = (0..bins).find(|bin| frequency(*bin) > highest) {
            let got = format!("bin {bin} at {:.1} Hz", frequency(bin));
            return Err(ConfigError::new(
                "filters",
                got,
                format!("bins up to sample_rate / 2 = {highest} Hz"),
            ));
        }
        let quality = 1.0 / ((1.0 / self.bins_per_octave as f64).exp2() - 1.0);
        let window = (quality * self.sample_rate as f64 / self.f_min).ceil();
        if window > MAX_WINDOW as f64 {
            let need = format!("a lowest window of at most {MAX_WINDOW} samples, it has {window:e}");
            return Err(ConfigError::new("f_min", self.f_min, need));
        }
        Ok(())
    }
}

fn at_most(field: &str, size: usize, largest: usize) -> Result<(), ConfigError> {
    if size > largest { Err(ConfigError::new(field, size, format!("at most {largest}"))) } else { Ok(()) }
}

fn positive(field: &str, value: f64) -> Result<(), ConfigError> {
    if value.is_finite() && value > 0.0 {
        return Ok(());
    }
    Err(ConfigError::new(field, value, "a finite number above 0"))
}

impl ModuleConfig for SpectralConfig {
    type Module = SpectralFrontEnd;

    /// Filters without a bin of the transform are told on the standard error.
    fn try_init(&self, _device: &Device) -> Result<SpectralFrontEnd, ConfigError> {
        self.check()?;
        let front_end = match self.kind {
            SpectralKind::Lfcc => SpectralFrontEnd::Lfcc(FilterBankCepstra::linear(self)),
            SpectralKind::Mfcc => SpectralFrontEnd::Mfcc(FilterBankCepstra::mel(self)),
            SpectralKind::Cqcc => SpectralFrontEnd::Cqcc(ConstantQCepstra::new(self)),
        };
        let empty = front_end.empty_filters();
        if !empty.is_empty() {
            eprintln!(
                "warning: {} of {} filters of the front end hold no bin of a transform of length {} and give the \
                 floor: {empty:?}",
                empty.len(),
                self.num_filters(),
                self.n_fft
            );
        }
        Ok(front_end)
    }
}
