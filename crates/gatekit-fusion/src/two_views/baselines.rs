//! What a fusion is compared with.

use burn::config::Config;
use burn::module::Module;
use burn::nn::{LayerNorm, LayerNormConfig, Linear, LinearConfig};
use burn::tensor::{Device, Int, Tensor};
use gatekit_core::{ConfigError, InputError, ModuleConfig, check_sizes};

use super::backend::{Backend, StatisticsBackend, StatisticsBackendConfig};
use super::detector::{SpoofOutput, check_class_weights, spoof_loss};
use super::fusion::check_view;

/// Configuration of [`SingleViewDetector`].
#[derive(Config, Debug)]
pub struct SingleViewConfig {
    /// Channels of the view.
    pub d_view: usize,
    /// Width d. Default 128.
    #[config(default = 128)]
    pub d_model: usize,
    /// Hidden width of the pooling's attention. Default 128.
    #[config(default = 128)]
    pub d_attention: usize,
    /// Weights of spoof and bona fide in the loss, above 0. Default 0.1 and 0.9.
    #[config(default = "[0.1, 0.9]")]
    pub class_weights: [f64; 2],
}

impl ModuleConfig for SingleViewConfig {
    type Module = SingleViewDetector;

    fn try_init(&self, device: &Device) -> Result<SingleViewDetector, ConfigError> {
        check_sizes(&[("d_view", self.d_view), ("d_model", self.d_model)])?;
        check_class_weights(&self.class_weights)?;
        let backend = StatisticsBackendConfig::new(self.d_model).with_d_attention(self.d_attention);
        Ok(SingleViewDetector {
            proj: LinearConfig::new(self.d_view, self.d_model).init(device),
            norm: LayerNormConfig::new(self.d_model).init(device),
            backend: backend.try_init(device)?,
            class_weights: self.class_weights,
        })
    }
}

/// One view alone: projected and normed as in [`ViewFusion`](super::ViewFusion), then the same back end.
#[derive(Module, Debug)]
pub struct SingleViewDetector {
    /// `[d_view, d]`.
    pub proj: Linear,
    /// After it.
    pub norm: LayerNorm,
    /// What judges the frames.
    pub backend: StatisticsBackend,
    class_weights: [f64; 2],
}

impl SingleViewDetector {
    /// Frames `view` `[B, T, d_view]`.
    ///
    /// # Errors
    ///
    /// [`InputError`] for a view without frames or of another width.
    pub fn forward(&self, view: Tensor<3>) -> Result<SpoofOutput, InputError> {
        check_view("view", &view, &self.proj)?;
        let frames = self.norm.forward(self.proj.forward(view));
        Ok(SpoofOutput { logits: self.backend.forward(frames), gate: None })
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
