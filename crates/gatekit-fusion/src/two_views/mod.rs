//! Two views of speech, hand-made cepstra and the frames of a self-supervised encoder, fused to detect forgeries.
//!
//! | module | owns |
//! |---|---|
//! | [`spectral`] | waveform to cepstra: linear, mel and constant-Q front ends, deltas, normalisation |
//! | [`fusion`] | both views at one width, and the four ways to fuse them |
//! | [`backend`] | frames to two logits |
//! | [`detector`] | the detector over given views, and the whole from the waveform; loss |
//! | [`baselines`] | one view alone |
//! | [`equal_error_rate`](mod@equal_error_rate) | the metric |
//!
//! Class 0 is spoof, class 1 bona fide; a higher score is more likely genuine. El Kheir et al., "Two Views, One Truth:
//! Spectral and Self-Supervised Features Fusion for Robust Speech Deepfake Detection" (arXiv 2507.20417).

pub mod backend;
pub mod baselines;
pub mod detector;
pub mod equal_error_rate;
pub mod fusion;
pub mod spectral;

pub use backend::{Backend, StatisticsBackend, StatisticsBackendConfig};
pub use baselines::{SingleViewConfig, SingleViewDetector};
pub use detector::{
    SpoofDetector, SpoofOutput, SslEncoder, ViewDetector, ViewDetectorConfig, fit_clip, spoof_loss,
};
pub use equal_error_rate::{EqualErrorRate, equal_error_rate};
pub use fusion::{FusedViews, Strategy, ViewFusion, ViewFusionConfig};
pub use spectral::{SpectralConfig, SpectralFrontEnd, SpectralKind, normalize_utterances};
