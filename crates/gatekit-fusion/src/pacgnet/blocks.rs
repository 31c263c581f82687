//! The convolution blocks of the YOLOv8 family.
//!
//! Convolutions have no bias and keep the size (up to their stride); batch normalisation follows each of them.

use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{BatchNorm, BatchNormConfig, PaddingConfig2d};
use burn::tensor::module::max_pool2d;
use burn::tensor::ops::MaxPoolOptions;
use burn::tensor::{Device, Tensor};
use gatekit_core::batch_norm::BatchStatistics;
use gatekit_core::conv::{Activation, convolve_norm};

/// How all batch normalisations of a model are made.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NormSettings {
    /// Added to variances.
    pub epsilon: f64,
    /// Weight of new statistics in the running ones.
    pub momentum: f64,
}

impl NormSettings {
    /// A batch normalisation of so many channels.
    pub fn init(&self, channels: usize, device: &Device) -> BatchNorm {
        BatchNormConfig::new(channels).with_epsilon(self.epsilon).with_momentum(self.momentum).init(device)
    }
}

/// A convolution of a square kernel, padded by half of it.
pub(super) fn convolution(
    [from, to]: [usize; 2],
    kernel: usize,
    stride: usize,
    groups: usize,
    bias: bool,
    device: &Device,
) -> Conv2d {
    let half = kernel / 2;
    Conv2dConfig::new([from, to], [kernel, kernel])
        .with_stride([stride, stride])
        .with_groups(groups)
        .with_padding(PaddingConfig2d::Explicit(half, half, half, half))
        .with_bias(bias)
        .init(device)
}

/// Convolution, batch normalisation, SiLU.
#[derive(Module, Debug)]
pub struct ConvBlock {
    /// `[out, in, k, k]`.
    pub conv: Conv2d,
    /// Of the convolution's channels.
    pub bn: BatchNorm,
}

impl ConvBlock {
    /// From `channels[0]` to `channels[1]` with a kernel of `kernel` by `kernel`.
    pub fn new(
        channels: [usize; 2],
        kernel: usize,
        stride: usize,
        norm: NormSettings,
        device: &Device,
    ) -> Self {
        Self {
            conv: convolution(channels, kernel, stride, 1, false, device),
            bn: norm.init(channels[1], device),
        }
    }

    /// `[B, in, H, W]` to `[B, out, H / stride, W / stride]`.
    ///
    /// # Panics
    ///
    /// When the channels do not fit.
    pub fn forward(&self, x: Tensor<4>, statistics: BatchStatistics) -> Tensor<4> {
        convolve_norm(&self.conv, &self.bn, x, statistics, Some(Activation::Swish))
    }
}

/// Two 3x3 blocks, with the input added in the backbone.
#[derive(Module, Debug)]
pub struct Bottleneck {
    /// First block.
    pub cv1: ConvBlock,
    /// Second block.
    pub cv2: ConvBlock,
    /// Whether the input is added.
    pub residual: bool,
}

impl Bottleneck {
    fn forward(&self, x: Tensor<4>, statistics: BatchStatistics) -> Tensor<4> {
        let y = self.cv2.forward(self.cv1.forward(x.clone(), statistics), statistics);
        if self.residual { x + y } else { y }
    }
}

/// Cross-stage partial block: half of the channels pass a chain of bottlenecks, and all stages of the chain are joined.
#[derive(Module, Debug)]
pub struct C2f {
    /// To twice half the width, 1x1.
    pub cv1: ConvBlock,
    /// From all pieces to the width, 1x1.
    pub cv2: ConvBlock,
    /// The chain.
    pub m: Vec<Bottleneck>,
}

impl C2f {
    /// From `channels[0]` to `channels[1]` (even) with `depth` bottlenecks.
    pub fn new(
        [from, to]: [usize; 2],
        depth: usize,
        residual: bool,
        norm: NormSettings,
        device: &Device,
    ) -> Self {
        let half = to / 2;
        let block = |channels, kernel| ConvBlock::new(channels, kernel, 1, norm, device);
        Self {
            cv1: block([from, 2 * half], 1),
            cv2: block([(depth + 2) * half, to], 1),
            m: (0..depth)
                .map(|_| Bottleneck { cv1: block([half, half], 3), cv2: block([half, half], 3), residual })
                .collect(),
        }
    }

    /// `[B, in, H, W]` to `[B, out, H, W]`.
    ///
    /// # Panics
    ///
    /// When the channels do not fit.
    pub fn forward(&self, x: Tensor<4>, statistics: BatchStatistics) -> Tensor<4> {
        let mut pieces = self.cv1.forward(x, statistics).chunk(2, 1);
        for bottleneck in &self.m {
            let last = pieces[pieces.len() - 1].clone();
            pieces.push(bottleneck.forward(last, statistics));
        }
        self.cv2.forward(Tensor::cat(pieces, 1), statistics)
    }
}

/// Spatial pyramid pooling: three 5x5 maxima in a chain, joined with what they began with.
#[derive(Module, Debug)]
pub struct Sppf {
    /// To half the width, 1x1.
    pub cv1: ConvBlock,
    /// From four pieces to the width, 1x1.
    pub cv2: ConvBlock,
}

impl Sppf {
    /// Of `channels` (even).
    pub fn new(channels: usize, norm: NormSettings, device: &Device) -> Self {
        let half = channels / 2;
        Self {
            cv1: ConvBlock::new([channels, half], 1, 1, norm, device),
            cv2: ConvBlock::new([4 * half, channels], 1, 1, norm, device),
        }
    }

    /// `[B, C, H, W]` to the same shape.
    ///
    /// # Panics
    ///
    /// When the channels do not fit.
    pub fn forward(&self, x: Tensor<4>, statistics: BatchStatistics) -> Tensor<4> {
        let options = || MaxPoolOptions::new([5, 5]).with_stride([1, 1]).with_padding([2, 2]);
        let first = self.cv1.forward(x, statistics);
        let second = max_pool2d(first.clone(), options());
        let third = max_pool2d(second.clone(), options());
        let fourth = max_pool2d(third.clone(), options());
        self.cv2.forward(Tensor::cat(vec![first, second, third, fourth], 1), statistics)
    }
}

/// A depthwise and a pointwise convolution, each with batch normalisation and SiLU.
#[derive(Module, Debug)]
pub struct DepthwiseSeparableConv {
    /// `[C, 1, k, k]`.
    pub depthwise: Conv2d,
    /// `[C, C, 1, 1]`.
    pub pointwise: Conv2d,
    /// After the depthwise one.
    pub norm_dw: BatchNorm,
    /// After the pointwise one.
    pub norm_pw: BatchNorm,
}

impl DepthwiseSeparableConv {
    /// Of `channels` with a kernel of `kernel` by `kernel`.
    pub fn new(channels: usize, kernel: usize, norm: NormSettings, device: &Device) -> Self {
        let conv = |kernel, groups| convolution([channels, channels], kernel, 1, groups, false, device);
        Self {
            depthwise: conv(kernel, channels),
            pointwise: conv(1, 1),
            norm_dw: norm.init(channels, device),
            norm_pw: norm.init(channels, device),
        }
    }

    /// `[B, C, H, W]` to the same shape.
    ///
    /// # Panics
    ///
    /// When the channels do not fit.
    pub fn forward(&self, x: Tensor<4>, statistics: BatchStatistics) -> Tensor<4> {
        let swish = Some(Activation::Swish);
        let x = convolve_norm(&self.depthwise, &self.norm_dw, x, statistics, swish);
        convolve_norm(&self.pointwise, &self.norm_pw, x, statistics, swish)
    }
}

/// Every value repeated over 2x2 positions (nearest neighbour): `[B, C, H, W]` to `[B, C, 2H, 2W]`.
pub(super) fn upsample(x: Tensor<4>) -> Tensor<4> {
    let [batch, channels, height, width] = x.dims();
    x.reshape([batch * channels, height, 1, width, 1])
        .expand([batch * channels, height, 2, width, 2])
        .reshape([batch, channels, 2 * height, 2 * width])
}
