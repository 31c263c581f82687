//! The detector: over given views, and from the waveform.

use burn::config::Config;
use burn::module::Module;
use burn::tensor::{Device, Int, Tensor, TensorData};
use gatekit_core::checkpoint::TensorLayout;
use gatekit_core::cross_entropy::{check_labels, cross_entropies};
use gatekit_core::{ConfigError, InputError, ModuleConfig};

use super::backend::{Backend, StatisticsBackend, StatisticsBackendConfig};
use super::fusion::{Strategy, ViewFusion, ViewFusionConfig};
use super::spectral::{SpectralFrontEnd, normalize_utterances};

/// A self-supervised encoder of speech, such as XLS-R: waveform to frames.
pub trait SslEncoder: Module {
    /// Channels of a frame.
    fn d_ssl(&self) -> usize;

    /// Waves `[B, L]` to frames `[B, Ts, d_ssl]`.
    ///
    /// # Errors
    ///
    /// [`InputError`] for waves that it cannot encode, such as too short ones.
    fn forward(&self, wave: Tensor<2>) -> Result<Tensor<3>, InputError>;
}

/// Configuration of [`ViewDetector`].
#[derive(Config, Debug)]
pub struct ViewDetectorConfig {
    /// Channels of the self-supervised frames; 1024 in XLS-R 300M.
    pub d_ssl: usize,
    /// Channels of the cepstra.
    pub d_spectral: usize,
    /// Fused width d. Default 128.
    #[config(default = 128)]
    pub d_model: usize,
    /// Attention heads, a divisor of d. Default 1.
    #[config(default = 1)]
    pub heads: usize,
    /// The fusion. Default cross attention.
    #[config(default = "Strategy::CrossAttention")]
    pub strategy: Strategy,
    /// Share of the attention weights that is dropped in training, in [0, 1). Default 0.1.
    #[config(default = 0.1)]
    pub dropout: f64,
    /// Hidden width of the pooling's attention. Default 128.
    #[config(default = 128)]
    pub d_attention: usize,
    /// Weights of spoof and bona fide in the loss, above 0. Default 0.1 and 0.9.
    #[config(default = "[0.1, 0.9]")]
    pub class_weights: [f64; 2],
}

impl ViewDetectorConfig {
    /// A detector with another back end than attentive statistics.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the field.
    pub fn with_backend<B: Backend>(
        &self,
        backend: B,
        device: &Device,
    ) -> Result<ViewDetector<B>, ConfigError> {
        check_class_weights(&self.class_weights)?;
        let fusion = ViewFusionConfig::new(self.d_ssl, self.d_spectral)
            .with_d_model(self.d_model)
            .with_heads(self.heads)
            .with_strategy(self.strategy)
            .with_dropout(self.dropout)
            .try_init(device)?;
        Ok(ViewDetector { fusion, backend, class_weights: self.class_weights })
    }

    /// What published files call the tensors.
    pub fn tensor_layout(&self) -> TensorLayout {
        ViewFusion::tensor_layout(TensorLayout::default(), "fusion.")
            .with_prefix("backend.pooling.", "")
            .with_prefix("backend.", "")
    }
}

impl ModuleConfig for ViewDetectorConfig {
    type Module = ViewDetector<StatisticsBackend>;

    fn try_init(&self, device: &Device) -> Result<Self::Module, ConfigError> {
        let backend = StatisticsBackendConfig::new(self.d_model).with_d_attention(self.d_attention);
        self.with_backend(backend.try_init(device)?, device)
    }
}

/// Refuses weights that are not above 0.
///
/// # Errors
///
/// [`ConfigError`] names `class_weights`.
pub(super) fn check_class_weights(weights: &[f64; 2]) -> Result<(), ConfigError> {
    if weights.iter().all(|weight| weight.is_finite() && *weight > 0.0) {
        return Ok(());
    }
    Err(ConfigError::new("class_weights", format!("{weights:?}"), "finite numbers above 0"))
}

/// Both views, fused and judged: what is trained when the encoder's frames are computed beforehand.
#[derive(Module, Debug)]
pub struct ViewDetector<B> {
    /// Of both views.
    pub fusion: ViewFusion,
    /// What judges the fused frames.
    pub backend: B,
    class_weights: [f64; 2],
}

/// What a detector says of B utterances.
#[derive(Debug, Clone)]
pub struct SpoofOutput {
    /// Of spoof and bona fide, `[B, 2]`.
    pub logits: Tensor<2>,
    /// The share of the self-supervised view, `[B, Ts, d]`; of [`Strategy::Gate`] alone.
    pub gate: Option<Tensor<3>>,
}

impl SpoofOutput {
    /// Logit of bona fide minus logit of spoof, `[B]`: higher is more likely genuine.
    pub fn score(&self) -> Tensor<1> {
        let [batch, _] = self.logits.dims();
        let logit = |class: usize| self.logits.clone().narrow(1, class, 1).reshape([batch]);
        logit(1) - logit(0)
    }
}

impl<B: Backend> ViewDetector<B> {
    /// Self-supervised frames `ssl` `[B, Ts, d_ssl]` and cepstra `spectral` `[B, Tx, d_spectral]`.
    ///
    /// # Errors
    ///
    /// [`InputError`] as [`ViewFusion::forward`].
    pub fn forward(&self, ssl: Tensor<3>, spectral: Tensor<3>) -> Result<SpoofOutput, InputError> {
        let views = self.fusion.forward(ssl, spectral)?;
        Ok(SpoofOutput { logits: self.backend.forward(views.fused), gate: views.gate })
    }

    /// [`spoof_loss`] with this detector's weights.
    ///
    /// # Errors
    ///
    /// [`InputError`] for labels that are not 0 or 1, one a sample.
    pub fn loss(&self, output: &SpoofOutput, labels: Tensor<1, Int>) -> Result<Tensor<1>, InputError> {
        spoof_loss(output.logits.clone(), labels, self.class_weights)
    }
}

/// Cross entropy weighted by class, `sum w_y (-log softmax(logits)[y]) / sum w_y`, `[1]` in nats.
///
/// `logits` `[B, 2]`; `labels` `[B]`, 0 = spoof, 1 = bona fide; `class_weights` of the two, above 0.
///
/// # Errors
///
/// [`InputError`] for no label, or labels that are not 0 or 1, one a sample.
pub fn spoof_loss(
    logits: Tensor<2>,
    labels: Tensor<1, Int>,
    class_weights: [f64; 2],
) -> Result<Tensor<1>, InputError> {
    let classes = check_labels(&labels, logits.dims()[0], 2)?;
    if classes.is_empty() {
        return Err(InputError::new("labels", "0 labels", "at least one"));
    }
    let weights: Vec<f64> = classes.iter().map(|class| class_weights[*class]).collect();
    let sum: f64 = weights.iter().sum();
    let losses = cross_entropies(logits, labels);
    let weights = TensorData::new(weights, losses.dims());
    let weights = Tensor::<1>::from_data(weights, (&losses.device(), losses.dtype()));
    Ok((losses * weights).sum() / sum)
}

/// The whole: an encoder, a spectral front end, and the detector over their views.
///
/// To train it with a frozen encoder use `encoder.no_grad()`, or train the [`ViewDetector`] over frames computed
/// beforehand.
#[derive(Module, Debug)]
pub struct SpoofDetector<E, B> {
    /// The self-supervised view.
    pub encoder: E,
    /// The spectral view.
    #[module(skip)]
    pub front_end: SpectralFrontEnd,
    /// Fusion and back end.
    pub detector: ViewDetector<B>,
    /// Whether every utterance's cepstra are brought to mean 0 and variance 1.
    pub normalize: bool,
}

impl<E: SslEncoder, B: Backend> SpoofDetector<E, B> {
    /// Joins the parts; cepstra are normalised, unless [`normalize`](Self::normalize) is set to false.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names `d_ssl` or `d_spectral` when a view has another width than the detector.
    pub fn new(
        encoder: E,
        front_end: SpectralFrontEnd,
        detector: ViewDetector<B>,
    ) -> Result<Self, ConfigError> {
        let width = |projection: &burn::nn::Linear| projection.weight.lazy_shape().dims::<2>()[0];
        for (field, view, need) in [
            ("d_ssl", encoder.d_ssl(), width(&detector.fusion.ssl_proj)),
            ("d_spectral", front_end.features(), width(&detector.fusion.spectral_proj)),
        ] {
            if view != need {
                return Err(ConfigError::new(field, need, format!("{view}, the channels of that view")));
            }
        }
        Ok(Self { encoder, front_end, detector, normalize: true })
    }

    /// The spectral view of waves `[B, L]`: `[B, Tx, d_spectral]`.
    ///
    /// # Errors
    ///
    /// [`InputError`] as [`SpectralFrontEnd::forward`].
    pub fn spectral(&self, wave: Tensor<2>) -> Result<Tensor<3>, InputError> {
        let cepstra = self.front_end.forward(wave)?;
        Ok(if self.normalize { normalize_utterances(cepstra) } else { cepstra })
    }

    /// Judges waves `[B, L]` in one pass.
    ///
    /// # Errors
    ///
    /// [`InputError`] for waves that a front end refuses.
    pub fn forward(&self, wave: Tensor<2>) -> Result<SpoofOutput, InputError> {
        let spectral = self.spectral(wave.clone())?;
        self.detector.forward(self.encoder.forward(wave)?, spectral)
    }
}

/// Samples cut, or repeated from the start, to `length`: detectors of this kind see clips of 64,600 samples, 4.04 s.
///
/// # Errors
///
/// [`InputError`] without a sample.
pub fn fit_clip(samples: &[f32], length: usize) -> Result<Vec<f32>, InputError> {
    if samples.is_empty() {
        return Err(InputError::new("samples", "0 samples", "at least one"));
    }
    Ok(samples.iter().copied().cycle().take(length).collect())
}
