//! The transformer's blocks.

use burn::module::{Initializer, Module, Param};
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{LayerNorm, LayerNormConfig, PaddingConfig2d};
use burn::tensor::activation::softmax;
use burn::tensor::{Device, Tensor};
use gatekit_core::conv::convolve;
use gatekit_core::glu_conv::{GluConv, GluConvConfig};
use gatekit_core::{ConfigError, ModuleConfig, widen};

use super::generators::assert_channels;

/// Norms of queries and keys are at least so large.
const SMALLEST_NORM: f64 = 1e-12;
const EPSILON: f64 = 1e-5;

/// A 3x3 convolution that keeps the size, without a bias.
pub(super) fn conv3([from, to]: [usize; 2], groups: usize, device: &Device) -> Conv2d {
    Conv2dConfig::new([from, to], [3, 3])
        .with_groups(groups)
        .with_padding(PaddingConfig2d::Explicit(1, 1, 1, 1))
        .with_bias(false)
        .init(device)
}

/// A 1x1 convolution without a bias.
pub(super) fn conv1([from, to]: [usize; 2], device: &Device) -> Conv2d {
    Conv2dConfig::new([from, to], [1, 1]).with_bias(false).init(device)
}

/// Layer normalisation over the channels of every pixel (epsilon 1e-5): `[B, C, H, W]` to the same shape.
///
/// # Panics
///
/// When `x` does not have the channels of `norm`.
pub fn channel_norm(norm: &LayerNorm, x: Tensor<4>) -> Tensor<4> {
    let ([channels], dtype) = (norm.gamma.shape().dims(), x.dtype());
    assert_channels("channel_norm", "x", &x, channels);
    let x = widen(x);
    let x = x.clone() - x.mean_dim(1);
    let deviation = x.clone().square().mean_dim(1).add_scalar(EPSILON).sqrt();
    let shape = [1, channels, 1, 1];
    let y = x / deviation * norm.gamma.val().reshape(shape);
    let y = match &norm.beta {
        Some(beta) => y + beta.val().reshape(shape),
        None => y,
    };
    y.cast(dtype)
}

/// Attention between channels: `[q; k; v] = dw(W x)`, and for each head, whose rows are channels,
/// `softmax(t q k^T) v` with q and k divided by their norms over the pixels; then `W_out`.
///
/// Temperatures t start at 1. The cost is linear in the pixels. Zamir et al., "Restormer" (arXiv 2111.09881), section 3.1.
#[derive(Module, Debug)]
pub struct ChannelAttention {
    /// t, `[heads, 1, 1]`.
    pub temperature: Param<Tensor<3>>,
    /// `W`, `[3 C, C, 1, 1]`.
    pub qkv: Conv2d,
    /// `dw`, `[3 C, 1, 3, 3]`.
    pub qkv_dwconv: Conv2d,
    /// `W_out`, `[C, C, 1, 1]`.
    pub project_out: Conv2d,
}

impl ChannelAttention {
    /// Of `channels`, a multiple of `heads`.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] for heads that do not divide the channels.
    pub fn new(channels: usize, heads: usize, device: &Device) -> Result<Self, ConfigError> {
        gatekit_core::check_sizes(&[("dim", channels), ("heads", heads)])?;
        if !channels.is_multiple_of(heads) {
            return Err(ConfigError::new(
                "heads",
                heads,
                format!("a divisor of the level's width {channels}"),
            ));
        }
        Ok(Self {
            temperature: Initializer::Ones.init([heads, 1, 1], device),
            qkv: conv1([channels, 3 * channels], device),
            qkv_dwconv: conv3([3 * channels, 3 * channels], 3 * channels, device),
            project_out: conv1([channels, channels], device),
        })
    }

    /// `[B, C, H, W]` to the same shape.
    ///
    /// # Panics
    ///
    /// When the channels do not fit.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let (dims @ [batch, channels, height, width], dtype) = (x.dims(), x.dtype());
        let heads = self.temperature.shape()[0];
        let qkv = convolve(&self.qkv_dwconv, convolve(&self.qkv, x, None), None);
        let part = |index: usize| {
            let rows = qkv.clone().narrow(1, index * channels, channels);
            rows.reshape([batch, heads, channels / heads, height * width])
        };
        let (q, k, v) = (unit(part(0)), unit(part(1)), part(2));
        let temperature = widen(self.temperature.val()).unsqueeze::<4>();
        let weights = softmax(q.matmul(k.transpose()) * temperature, 3);
        convolve(&self.project_out, weights.cast(dtype).matmul(v).reshape(dims), None)
    }
}

/// Rows divided by their norms, in at least float32. A row of zeros stays one, with a gradient of 0 instead of NaN.
fn unit(rows: Tensor<4>) -> Tensor<4> {
    let rows = widen(rows);
    let norm = rows.clone().square().sum_dim(3).clamp_min(SMALLEST_NORM * SMALLEST_NORM).sqrt();
    rows / norm
}

/// `x + GDFN(LN x)`: a block of the encoder, without attention.
#[derive(Module, Debug)]
pub struct EncoderBlock {
    /// LN.
    pub norm2: LayerNorm,
    /// GDFN, the gated feed-forward layer with a GELU.
    pub ffn: GluConv,
}

impl EncoderBlock {
    /// Of `channels`, with `floor(channels * expansion)` channels in each half of the feed-forward layer.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] for widths that are none.
    pub fn new(channels: usize, expansion: f64, device: &Device) -> Result<Self, ConfigError> {
        let hidden = (channels as f64 * expansion) as usize;
        let ffn = GluConvConfig::new(channels, hidden).try_init(device);
        let ffn = ffn.map_err(|error| ConfigError { field: "ffn_expansion_factor".into(), ..error })?;
        Ok(Self { norm2: LayerNormConfig::new(channels).init(device), ffn })
    }

    /// `[B, C, H, W]` to the same shape.
    ///
    /// # Panics
    ///
    /// When the channels do not fit.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        x.clone() + self.ffn.forward(channel_norm(&self.norm2, x))
    }
}

/// `x + Att(LN x)`, then `x + GDFN(LN x)`: a block of decoder and refinement.
#[derive(Module, Debug)]
pub struct DecoderBlock {
    /// Before the attention.
    pub norm1: LayerNorm,
    /// Between channels.
    pub attn: ChannelAttention,
    /// Before the feed-forward layer.
    pub norm2: LayerNorm,
    /// GDFN.
    pub ffn: GluConv,
}

impl DecoderBlock {
    /// Of `channels`, a multiple of `heads`; feed-forward as in [`EncoderBlock::new`].
    ///
    /// # Errors
    ///
    /// [`ConfigError`] for heads that do not divide the channels and widths that are none.
    pub fn new(channels: usize, heads: usize, expansion: f64, device: &Device) -> Result<Self, ConfigError> {
        let EncoderBlock { norm2, ffn } = EncoderBlock::new(channels, expansion, device)?;
        let attn = ChannelAttention::new(channels, heads, device)?;
        Ok(Self { norm1: LayerNormConfig::new(channels).init(device), attn, norm2, ffn })
    }

    /// `[B, C, H, W]` to the same shape.
    ///
    /// # Panics
    ///
    /// When the channels do not fit.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let x = x.clone() + self.attn.forward(channel_norm(&self.norm1, x));
        x.clone() + self.ffn.forward(channel_norm(&self.norm2, x))
    }
}

/// Squares of 2x2 pixels become channels: `[B, C, H, W]` to `[B, 4 C, H / 2, W / 2]`.
pub(super) fn pixel_unshuffle(x: Tensor<4>) -> Tensor<4> {
    let [batch, channels, height, width] = x.dims();
    x.reshape([batch, channels, height / 2, 2, width / 2, 2]).permute([0, 1, 3, 5, 2, 4]).reshape([
        batch,
        4 * channels,
        height / 2,
        width / 2,
    ])
}

/// Fours of channels become squares of 2x2 pixels: `[B, 4 C, H, W]` to `[B, C, 2 H, 2 W]`.
pub(super) fn pixel_shuffle(x: Tensor<4>) -> Tensor<4> {
    let [batch, channels, height, width] = x.dims();
    x.reshape([batch, channels / 4, 2, 2, height, width]).permute([0, 1, 4, 2, 5, 3]).reshape([
        batch,
        channels / 4,
        2 * height,
        2 * width,
    ])
}
