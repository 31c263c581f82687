//! Convolutions of images, and what follows them.

use burn::tensor::Tensor;
use burn::tensor::module::conv2d;
use burn::tensor::ops::ConvOptions;

/// A convolution of a square kernel, padded by half of it.
pub fn convolve(
    x: Tensor<4>,
    weight: Tensor<4>,
    bias: Option<Tensor<1>>,
    stride: usize,
    groups: usize,
) -> Tensor<4> {
    let half = weight.dims()[2] / 2;
    conv2d(x, weight, bias, ConvOptions::new([stride; 2], [half; 2], [1; 2], groups))
}
