//! How prompts act on decoder features.

use burn::config::Config;
use burn::module::{Initializer, Module, Param};
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{Linear, LinearConfig, PaddingConfig2d};
use burn::tensor::{Device, Tensor};
use gatekit_core::attention::{full_attention, window_merge, window_partition};
use gatekit_core::conv::{convolve, pointwise_conv2d};
use gatekit_core::{ConfigError, ModuleConfig, check_sizes};

use super::generators::assert_channels;

/// Configuration of [`HighPromptModulator`].
#[derive(Config, Debug)]
pub struct HighPromptModulatorConfig {
    /// Channels d of the prompt.
    pub dim: usize,
    /// Channels C of the features, a multiple of `prompt_heads`.
    pub decoder_dim: usize,
    /// Heads. Default 2.
    #[config(default = 2)]
    pub prompt_heads: usize,
    /// Pixels of a window's side s. Default 8.
    #[config(default = 8)]
    pub window_size: usize,
}

impl ModuleConfig for HighPromptModulatorConfig {
    type Module = HighPromptModulator;

    fn try_init(&self, device: &Device) -> Result<HighPromptModulator, ConfigError> {
        check_widths(self.dim, self.decoder_dim, self.prompt_heads)?;
        check_sizes(&[("window_size", self.window_size)])?;
        let (dim, channels) = (self.dim, self.decoder_dim);
        Ok(HighPromptModulator {
            kv_dwconv: Conv2dConfig::new([dim, dim], [3, 3])
                .with_groups(dim)
                .with_padding(PaddingConfig2d::Explicit(1, 1, 1, 1))
                .with_bias(false)
                .init(device),
            to_q: LinearConfig::new(channels, channels).init(device),
            to_kv: LinearConfig::new(dim, 2 * channels).init(device),
            project_out: LinearConfig::new(channels, channels).init(device),
            heads: self.prompt_heads,
            window_size: self.window_size,
        })
    }
}

/// Attention of the features to the prompt within windows of s by s pixels: `q = W_q x + b`, `[k; v] = W_kv dw(p) + b`,
/// `W_o concat_h softmax(q_h k_h^T / sqrt(C / heads)) v_h + b`. Positions have no bias.
///
/// Zhou et al. (ECCV 2024).
#[derive(Module, Debug)]
pub struct HighPromptModulator {
    /// `dw`, 3x3, of the prompt.
    pub kv_dwconv: Conv2d,
    /// `W_q`, `[C, C]`.
    pub to_q: Linear,
    /// `W_kv`, `[d, 2 C]`.
    pub to_kv: Linear,
    /// `W_o`, `[C, C]`.
    pub project_out: Linear,
    heads: usize,
    window_size: usize,
}

impl HighPromptModulator {
    /// Features `x` `[B, C, H, W]` and `prompt` `[B, d, H, W]` to `[B, C, H, W]`.
    ///
    /// # Panics
    ///
    /// When the shapes do not fit, or windows do not divide the sides.
    pub fn forward(&self, x: Tensor<4>, prompt: Tensor<4>) -> Tensor<4> {
        let [batch, channels, height, width] = x.dims();
        let [_, dim, prompt_height, prompt_width] = prompt.dims();
        assert!(
            prompt.dims()[0] == batch && [prompt_height, prompt_width] == [height, width],
            "HighPromptModulator: `prompt` {:?} does not fit `x` {:?}",
            prompt.dims(),
            x.dims()
        );
        assert_channels("HighPromptModulator", "prompt", &prompt, self.kv_dwconv.weight.shape()[0]);
        debug_assert_eq!(dim, self.kv_dwconv.groups);
        let q = self.to_q.forward(window_partition(x, self.window_size));
        let kv =
            self.to_kv.forward(window_partition(convolve(&self.kv_dwconv, prompt, None), self.window_size));
        let [windows, pixels, _] = q.dims();
        let by_head = |y: Tensor<3>| y.reshape([windows, pixels, self.heads, channels / self.heads]);
        let (k, v) = (kv.clone().narrow(2, 0, channels), kv.narrow(2, channels, channels));
        let o = full_attention(by_head(q), by_head(k), by_head(v));
        let y = self.project_out.forward(o.reshape([windows, pixels, channels]));
        window_merge(y, self.window_size, [height, width])
    }
}

/// Configuration of [`LowPromptModulator`].
#[derive(Config, Debug)]
pub struct LowPromptModulatorConfig {
    /// Channels d of the prompt.
    pub dim: usize,
    /// Channels C of the features, a multiple of `prompt_heads`.
    pub decoder_dim: usize,
    /// Heads, which only the unused temperatures know of. Default 2.
    #[config(default = 2)]
    pub prompt_heads: usize,
}

impl ModuleConfig for LowPromptModulatorConfig {
    type Module = LowPromptModulator;

    fn try_init(&self, device: &Device) -> Result<LowPromptModulator, ConfigError> {
        check_widths(self.dim, self.decoder_dim, self.prompt_heads)?;
        let channels = self.decoder_dim;
        let pointwise = |from, to| Conv2dConfig::new([from, to], [1, 1]).with_bias(false).init(device);
        Ok(LowPromptModulator {
            temperature: Initializer::Ones.init([self.prompt_heads, 1, 1], device),
            q: pointwise(channels, channels),
            kv: pointwise(self.dim, 2 * channels),
            project_out: pointwise(channels, channels),
        })
    }
}

/// `W_out W_v mean(p)` at every pixel: what attention to the prompt's mean, a single key, amounts to.
///
/// The softmax over one key is 1, so queries, keys and temperatures have no effect and never get a gradient; they are kept
/// because published files have them. Zhou et al. (ECCV 2024).
#[derive(Module, Debug)]
pub struct LowPromptModulator {
    /// One a head, `[heads, 1, 1]`, without effect.
    pub temperature: Param<Tensor<3>>,
    /// Queries, `[C, C, 1, 1]`, without effect.
    pub q: Conv2d,
    /// Keys, without effect, and values `W_v`, `[2 C, d, 1, 1]`.
    pub kv: Conv2d,
    /// `W_out`, `[C, C, 1, 1]`.
    pub project_out: Conv2d,
}

impl LowPromptModulator {
    /// `prompt` `[B, d, H, W]` to what every pixel of the features gets, `[B, C, 1, 1]`.
    ///
    /// # Panics
    ///
    /// When the channels do not fit.
    pub fn forward(&self, prompt: Tensor<4>) -> Tensor<4> {
        let [channels, _, _, _] = self.project_out.weight.shape().dims();
        let mean = prompt.mean_dim(3).mean_dim(2);
        let values = self.kv.weight.val().narrow(0, channels, channels);
        convolve(&self.project_out, pointwise_conv2d(mean, values, None), None)
    }
}

fn check_widths(dim: usize, channels: usize, heads: usize) -> Result<(), ConfigError> {
    check_sizes(&[("dim", dim), ("decoder_dim", channels), ("prompt_heads", heads)])?;
    match channels.is_multiple_of(heads) {
        true => Ok(()),
        false => {
            Err(ConfigError::new("prompt_heads", heads, format!("a divisor of decoder_dim = {channels}")))
        }
    }
}
