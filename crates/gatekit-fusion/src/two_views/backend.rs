//! From fused frames to two logits.

use burn::config::Config;
use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, Tensor};
use gatekit_core::cross_modal::{AttentiveStatisticsPooling, AttentiveStatisticsPoolingConfig};
use gatekit_core::{ConfigError, ModuleConfig, check_sizes};

/// What judges frames: attentive statistics here ([`StatisticsBackend`]), graph attention in larger detectors.
pub trait Backend: Module {
    /// Frames `[B, T, d]` to the logits of spoof and bona fide, `[B, 2]`.
    fn forward(&self, frames: Tensor<3>) -> Tensor<2>;
}

/// Configuration of [`StatisticsBackend`].
#[derive(Config, Debug)]
pub struct StatisticsBackendConfig {
    /// Channels d of a frame.
    pub d_model: usize,
    /// Hidden width of the pooling's attention. Default 128.
    #[config(default = 128)]
    pub d_attention: usize,
}

impl ModuleConfig for StatisticsBackendConfig {
    type Module = StatisticsBackend;

    fn try_init(&self, device: &Device) -> Result<StatisticsBackend, ConfigError> {
        check_sizes(&[("d_model", self.d_model)])?;
        let pooling = AttentiveStatisticsPoolingConfig::new(self.d_model).with_d_attention(self.d_attention);
        Ok(StatisticsBackend {
            pooling: pooling.try_init(device)?,
            classifier: LinearConfig::new(2 * self.d_model, 2).init(device),
        })
    }
}

/// `W_c [mu; sigma] + b_c` of the frames' attentive statistics.
#[derive(Module, Debug)]
pub struct StatisticsBackend {
    /// Mean and deviation over time.
    pub pooling: AttentiveStatisticsPooling,
    /// `W_c` and `b_c`, `[2d, 2]`.
    pub classifier: Linear,
}

impl Backend for StatisticsBackend {
    fn forward(&self, frames: Tensor<3>) -> Tensor<2> {
        self.classifier.forward(self.pooling.forward(frames, None))
    }
}
