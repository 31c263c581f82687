//! Convolution layers of images with what follows them: batch normalisation and an activation.
//!
//! On the CPU they are computed by [`image_convolution`] and [`batch_norm_with`], much
//! faster than one operation after the other; a GPU runs Burn's own operations.

use burn::nn::conv::Conv2d;
use burn::nn::{BatchNorm, PaddingConfig2d};
use burn::tensor::Tensor;
use gatekit_kernels::convolution::{Finish, image_convolution};
pub use gatekit_kernels::gate::Activation;

use super::image::depthwise_conv2d;
use crate::batch_norm::{BatchStatistics, batch_norm_with, running_affine};
use crate::gate::GateActivation;

/// `act(conv x)`, the convolution with its bias.
///
/// `x` `[B, C, H, W]` to `[B, C', H', W']`. Layers with one stride, no dilation and the same padding on every side are
/// computed as above, filters of their own a channel with other padding by [`depthwise_conv2d`], the rest by Burn.
///
/// # Panics
///
/// When `x` does not have the channels of the convolution, or is smaller than its kernel.
pub fn convolve(conv: &Conv2d, x: Tensor<4>, activation: Option<Activation>) -> Tensor<4> {
    let bias = || conv.bias.as_ref().map(|bias| bias.val());
    if let Some(padding) = even_padding(conv) {
        return finished(conv, x, padding, Finish { scale: None, bias: bias(), activation });
    }
    let [outputs, within, _, _] = conv.weight.shape().dims();
    let y = match conv.padding {
        PaddingConfig2d::Explicit(top, left, bottom, right)
            if [top, left] == [bottom, right]
                && [conv.stride, conv.dilation] == [[1, 1]; 2]
                && [within, conv.groups] == [1, outputs] =>
        {
            depthwise_conv2d(x, conv.weight.val(), bias(), [top, left])
        }
        _ => conv.forward(x),
    };
    match activation {
        Some(Activation::Sigmoid) => GateActivation::Sigmoid.apply(y),
        Some(Activation::Swish) => GateActivation::Swish.apply(y),
        Some(Activation::Relu) => GateActivation::Relu.apply(y),
        None => y,
    }
}

/// `act(BN(conv x))`.
///
/// Under running statistics the normalisation is a factor and a bias of every output, applied as the convolution writes it;
/// gradients are those of the three operations.
///
/// `x` `[B, C, H, W]` to `[B, C', H', W']`.
///
/// # Panics
///
/// As [`convolve`], and when the normalisation has other channels than the convolution's outputs.
pub fn convolve_norm(
    conv: &Conv2d,
    norm: &BatchNorm,
    x: Tensor<4>,
    statistics: BatchStatistics,
    activation: Option<Activation>,
) -> Tensor<4> {
    let Some(padding) = even_padding(conv).filter(|_| statistics == BatchStatistics::Running) else {
        return batch_norm_with(norm, convolve(conv, x, None), statistics, activation);
    };
    let [scale, shift] = running_affine(norm, &x.device());
    let bias = match &conv.bias {
        Some(bias) => shift + bias.val() * scale.clone(),
        None => shift,
    };
    finished(conv, x, padding, Finish { scale: Some(scale), bias: Some(bias), activation })
}

/// The padding of a layer that [`image_convolution`] computes.
fn even_padding(conv: &Conv2d) -> Option<usize> {
    let padding = match conv.padding {
        PaddingConfig2d::Valid => Some(0),
        PaddingConfig2d::Explicit(top, left, bottom, right) => {
            [left, bottom, right].iter().all(|side| *side == top).then_some(top)
        }
        PaddingConfig2d::Same => None,
    };
    padding.filter(|_| conv.stride[0] == conv.stride[1] && conv.dilation == [1, 1])
}

fn finished(conv: &Conv2d, x: Tensor<4>, padding: usize, finish: Finish) -> Tensor<4> {
    image_convolution(x, conv.weight.val(), [conv.stride[0], padding, conv.groups], finish)
}

#[cfg(test)]
mod tests {
    use burn::module::Param;
    use burn::nn::BatchNormConfig;
    use burn::nn::conv::Conv2dConfig;
    use burn::tensor::Device;
    use burn::tensor::activation::sigmoid;

    use super::*;
    use crate::batch_norm::batch_norm;
    use crate::test_util::{assert_close, check_gradients, devices, float32, ramp, values};

    fn layer(channels: [usize; 2], stride: usize, groups: usize, device: &Device) -> (Conv2d, BatchNorm) {
        let conv = Conv2dConfig::new(channels, [3, 3])
            .with_stride([stride; 2])
            .with_groups(groups)
            .with_padding(PaddingConfig2d::Explicit(1, 1, 1, 1))
            .with_bias(groups == 1)
            .init(device);
        let mut norm = BatchNormConfig::new(channels[1]).with_epsilon(1e-3).init(device);
        let row = |from: f64| {
            let values: Vec<f64> = (0..channels[1]).map(|i| from + 0.3 * (i as f64 * 1.7).sin()).collect();
            float32(&values, [channels[1]], device)
        };
        (norm.gamma, norm.beta) = (Param::from_tensor(row(1.0)), Param::from_tensor(row(0.0)));
        norm.running_mean.update(row(0.2));
        norm.running_var.update(row(0.7));
        (conv, norm)
    }

    #[test]
    fn what_is_fused_is_what_the_parts_do() {
        for device in devices() {
            for (channels, stride, groups) in [([3, 5], 1, 1), ([3, 5], 2, 1), ([4, 4], 1, 4), ([4, 4], 2, 2)]
            {
                let (conv, norm) = layer(channels, stride, groups, &device);
                let x = float32(&ramp(2 * channels[0] * 35, 1.5), [2, channels[0], 5, 7], &device);
                for statistics in [BatchStatistics::Running, BatchStatistics::Batch] {
                    let z = batch_norm(&norm, conv.forward(x.clone()), statistics);
                    let want = values(z.clone() * sigmoid(z));
                    let swish = Some(Activation::Swish);
                    let got = values(convolve_norm(&conv, &norm, x.clone(), statistics, swish));
                    assert_close(&got, &want, 2e-6);
                }
            }
        }
    }

    #[test]
    fn gradients_pass_the_fused_form() {
        let device = devices().remove(0);
        for (stride, statistics) in [(1, BatchStatistics::Running), (2, BatchStatistics::Batch)] {
            check_gradients(&ramp(2 * 3 * 20, 0.9), [2, 3, 4, 5], &device, |x| {
                let (conv, norm) = layer([3, 2], stride, 1, &x.device());
                // The same numbers in every evaluation, in float64.
                let weight = crate::test_util::float64(&ramp(54, 0.7), [2, 3, 3, 3], &x.device());
                let conv = Conv2d { weight: Param::from_tensor(weight), bias: None, ..conv };
                let wide = |tensor: Tensor<1>| tensor.cast(burn::tensor::DType::F64).detach();
                let norm = BatchNorm {
                    gamma: Param::from_tensor(wide(norm.gamma.val())),
                    beta: Param::from_tensor(wide(norm.beta.val())),
                    ..norm
                };
                norm.running_mean.update(wide(norm.running_mean.value_sync()));
                norm.running_var.update(wide(norm.running_var.value_sync()));
                convolve_norm(&conv, &norm, x, statistics, Some(Activation::Swish))
            });
        }
    }

    #[test]
    fn agrees_with_burns_convolutions() {
        let padded = |p, q| PaddingConfig2d::Explicit(p, q, p, q);
        let configs = [
            Conv2dConfig::new([4, 6], [1, 1]),
            Conv2dConfig::new([4, 6], [1, 1]).with_bias(false),
            Conv2dConfig::new([4, 4], [3, 3]).with_groups(4).with_padding(padded(1, 1)),
            Conv2dConfig::new([4, 4], [1, 3]).with_groups(4).with_padding(padded(0, 1)),
            Conv2dConfig::new([4, 4], [3, 1]).with_groups(4).with_padding(padded(1, 0)).with_bias(false),
            Conv2dConfig::new([4, 4], [2, 3]).with_groups(4),
            Conv2dConfig::new([4, 4], [3, 3]).with_groups(4).with_stride([2, 2]).with_padding(padded(1, 1)),
            Conv2dConfig::new([4, 8], [3, 3]).with_groups(4).with_padding(padded(1, 1)),
            Conv2dConfig::new([4, 6], [3, 3]).with_padding(padded(1, 1)),
            Conv2dConfig::new([4, 6], [3, 3]).with_padding(PaddingConfig2d::Same),
            Conv2dConfig::new([4, 6], [3, 3]).with_stride([1, 2]).with_padding(padded(1, 1)),
            Conv2dConfig::new([4, 6], [2, 2]).with_dilation([2, 1]),
        ];
        for device in devices() {
            for config in &configs {
                for [height, width] in [[3, 3], [5, 8]] {
                    let layer = config.init(&device);
                    let x = float32(&ramp(2 * 4 * height * width, 1.0), [2, 4, height, width], &device);
                    let (got, expected) = (convolve(&layer, x.clone(), None), layer.forward(x.clone()));
                    assert_eq!(got.dims(), expected.dims());
                    assert_close(&values(got), &values(expected.clone()), 1e-5);
                    let got = convolve(&layer, x, Some(Activation::Sigmoid));
                    assert_close(&values(got), &values(sigmoid(expected)), 1e-5);
                }
            }
        }
    }
}
