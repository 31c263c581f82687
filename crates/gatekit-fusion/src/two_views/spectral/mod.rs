//! Waveform to cepstra.

mod config;
mod constant_q;
mod cosine;
mod filter_bank;
mod frames;

use burn::tensor::Tensor;
use gatekit_core::{InputError, widen};

pub use config::{SpectralConfig, SpectralKind};
pub use constant_q::ConstantQCepstra;
pub use cosine::{deltas, normalize_utterances};
pub use filter_bank::FilterBankCepstra;

/// Cepstra of one of three kinds, with deltas.
///
/// Made by [`SpectralConfig`]. It has no parameters; its tables are made once and brought to the wave's device by every
/// call. Gradients pass to the wave.
#[derive(Debug, Clone)]
pub enum SpectralFrontEnd {
    /// Linear-frequency cepstra.
    Lfcc(FilterBankCepstra),
    /// Mel-frequency cepstra.
    Mfcc(FilterBankCepstra),
    /// Constant-Q cepstra.
    Cqcc(ConstantQCepstra),
}

impl SpectralFrontEnd {
    /// Channels of a frame, `coefficients (1 + deltas)`.
    pub fn features(&self) -> usize {
        let (coefficients, deltas) = match self {
            Self::Lfcc(cepstra) | Self::Mfcc(cepstra) => (cepstra.coefficients(), cepstra.deltas),
            Self::Cqcc(cepstra) => (cepstra.coefficients(), cepstra.deltas),
        };
        coefficients * (1 + deltas)
    }

    /// Frames T of `samples` samples: `1 + floor(samples / hop)`.
    pub fn frames(&self, samples: usize) -> usize {
        1 + samples / self.hop()
    }

    fn hop(&self) -> usize {
        match self {
            Self::Lfcc(cepstra) | Self::Mfcc(cepstra) => cepstra.hop,
            Self::Cqcc(cepstra) => cepstra.hop,
        }
    }

    /// Least number of samples.
    fn shortest(&self) -> usize {
        match self {
            // The ends are mirrored without their last sample.
            Self::Lfcc(cepstra) | Self::Mfcc(cepstra) => cepstra.n_fft / 2 + 1,
            Self::Cqcc(_) => 1,
        }
    }

    /// Triangles of the bank that hold no bin of the transform: filters that lie too densely. Legal; such a filter
    /// always gives the floor. None for constant-Q cepstra.
    pub fn empty_filters(&self) -> &[usize] {
        match self {
            Self::Lfcc(cepstra) | Self::Mfcc(cepstra) => &cepstra.empty_filters,
            Self::Cqcc(_) => &[],
        }
    }

    /// Waves `[B, L]` to cepstra `[B, T, coefficients (1 + deltas)]`, in at least float32.
    ///
    /// # Errors
    ///
    /// [`InputError`] for no wave, waves too short to be mirrored by half a frame, and the first one with a sample
    /// that is no finite number.
    pub fn forward(&self, wave: Tensor<2>) -> Result<Tensor<3>, InputError> {
        let [batch, length] = wave.dims();
        if batch == 0 || length < self.shortest() {
            let need = format!("at least one wave of at least {} samples", self.shortest());
            return Err(InputError::new("wave", format!("[{batch}, {length}]"), need));
        }
        let finite = wave.clone().is_finite().all_dim(1).into_data();
        if let Some(sample) = finite.iter::<bool>().position(|finite| !finite) {
            let got = format!("sample {sample} with NaN or infinity");
            return Err(InputError::new("wave", got, "finite numbers"));
        }
        let wave = widen(wave);
        let (cepstra, order) = match self {
            Self::Lfcc(cepstra) | Self::Mfcc(cepstra) => (cepstra.forward(wave), cepstra.deltas),
            Self::Cqcc(cepstra) => (cepstra.forward(wave), cepstra.deltas),
        };
        let mut parts = vec![cepstra];
        for _ in 0..order {
            parts.push(deltas(parts[parts.len() - 1].clone()));
        }
        Ok(Tensor::cat(parts, 2))
    }
}
