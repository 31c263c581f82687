//! Convolutions of maps by filters that belong to no layer: pointwise and depthwise ones.

use burn::tensor::Tensor;
use gatekit_kernels::conv::short_convolution;

/// `y[o] = sum_c W[o, c] x[c] + b[o]` at every pixel, as a product of matrices.
///
/// `x` `[B, C, H, W]`, `weight` `[O, C, 1, 1]`, `bias` `[O]`: `[B, O, H, W]`.
///
/// # Panics
///
/// When the channels do not fit.
pub fn pointwise_conv2d(x: Tensor<4>, weight: Tensor<4>, bias: Option<Tensor<1>>) -> Tensor<4> {
    let ([batch, channels, height, width], [out, within, kh, kw]) = (x.dims(), weight.dims());
    assert!(
        within == channels && [kh, kw] == [1, 1],
        "pointwise_conv2d: `weight` {:?} does not fit `x` {:?}: need [out, {channels}, 1, 1]",
        weight.dims(),
        x.dims()
    );
    let y = weight.reshape([1, out, channels]).matmul(x.reshape([batch, channels, height * width]));
    let y = match bias {
        Some(bias) => y + bias.reshape([1, out, 1]),
        None => y,
    };
    y.reshape([batch, out, height, width])
}

/// `y[c, i, j] = sum_{u, v} w[c, u, v] x[c, i + u - p, j + v - q] + b[c]`: every channel has a filter of its own, around
/// the maps stand zeros.
///
/// `x` `[B, C, H, W]`, `weight` `[C, 1, k, l]`, `bias` `[C]`, `padding` `[p, q]`: `[B, C, H + 2 p - k + 1, W + 2 q - l + 1]`.
/// Filters made by the input, one an image, are those of one map of B C channels.
///
/// # Panics
///
/// When the channels do not fit, or the padded maps are smaller than the filters.
pub fn depthwise_conv2d(
    x: Tensor<4>,
    weight: Tensor<4>,
    bias: Option<Tensor<1>>,
    padding: [usize; 2],
) -> Tensor<4> {
    let ([batch, channels, height, width], [filters, within, kh, kw]) = (x.dims(), weight.dims());
    assert!(
        filters == channels && within == 1,
        "depthwise_conv2d: `weight` {:?} does not fit `x` {:?}: need [{channels}, 1, height, width]",
        weight.dims(),
        x.dims()
    );
    let [p, q] = padding;
    let (padded_height, padded_width) = (height + 2 * p, width + 2 * q);
    assert!(
        (1..=padded_height).contains(&kh) && (1..=padded_width).contains(&kw),
        "depthwise_conv2d: filters of {kh} by {kw} on maps of {padded_height} by {padded_width}"
    );
    let (out_height, out_width) = (padded_height - kh + 1, padded_width - kw + 1);
    // Channels last, laid out once (the merged axes cannot be a view), so that rows are slices of memory.
    let x = x.permute([0, 2, 3, 1]).reshape([batch, height, width * channels]);
    let x = if padding == [0, 0] { x } else { x.pad((q * channels, q * channels, p, p), 0.0) };
    // A row of the filter is a short convolution along the rows of the maps, which has a backward pass of its own.
    let rows = (0..kh).map(|row| {
        let taps = weight.clone().narrow(2, row, 1).reshape([channels, kw]);
        let rows = x.clone().narrow(1, row, out_height).reshape([batch * out_height, padded_width, channels]);
        let bias = bias.clone().filter(|_| row == 0);
        short_convolution(rows, taps, bias, None, None, false)
    });
    let sum = rows.reduce(|sum, row| sum + row).expect("a filter has a row");
    // Back to channels first, again laid out once: what follows would go through a view value by value.
    sum.narrow(1, kw - 1, out_width)
        .reshape([batch, out_height * out_width, channels])
        .swap_dims(1, 2)
        .reshape([batch * channels, out_height * out_width])
        .reshape([batch, channels, out_height, out_width])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_util::{assert_close, check_gradients, devices, float32, float64, ramp, values};

    #[test]
    fn maps_of_one_pixel_see_the_middle_of_the_filter() {
        for device in devices() {
            let weight = float32(&ramp(18, 1.0), [2, 1, 3, 3], &device);
            let x = float32(&[2.0, -3.0], [1, 2, 1, 1], &device);
            let y = values(depthwise_conv2d(x, weight.clone(), None, [1, 1]));
            let weight = values(weight);
            assert_close(&y, &[2.0 * weight[4], -3.0 * weight[13]], 1e-6);
        }
    }

    #[test]
    fn gradients_match_finite_differences() {
        for device in devices() {
            let (x, weight) = (ramp(2 * 2 * 4 * 3, 1.0), ramp(18, 0.8));
            let bias = || float64(&[0.3, -0.2], [2], &device);
            let cotangent = || float64(&ramp(48, 1.2), [2, 2, 4, 3], &device);
            check_gradients(&x, [2, 2, 4, 3], &device, |x| {
                depthwise_conv2d(x, float64(&weight, [2, 1, 3, 3], &device), Some(bias()), [1, 1])
                    * cotangent()
            });
            check_gradients(&weight, [2, 1, 3, 3], &device, |weight| {
                depthwise_conv2d(float64(&x, [2, 2, 4, 3], &device), weight, Some(bias()), [1, 1])
                    * cotangent()
            });
            check_gradients(&[0.3, -0.2], [2], &device, |bias| {
                let x = float64(&x, [2, 2, 4, 3], &device);
                depthwise_conv2d(x, float64(&weight, [2, 1, 3, 3], &device), Some(bias), [1, 1]) * cotangent()
            });
            check_gradients(&ramp(6, 0.8), [3, 2, 1, 1], &device, |weight| {
                pointwise_conv2d(float64(&x, [2, 2, 4, 3], &device), weight, None)
                    * float64(&ramp(72, 1.2), [2, 3, 4, 3], &device)
            });
        }
    }

    #[test]
    #[should_panic(expected = "depthwise_conv2d: filters of 3 by 3 on maps of 2 by 5")]
    fn maps_smaller_than_the_filters_panic() {
        let device = devices().remove(0);
        depthwise_conv2d(
            Tensor::zeros([1, 1, 2, 5], &device),
            Tensor::zeros([1, 1, 3, 3], &device),
            None,
            [0, 0],
        );
    }

    #[test]
    #[should_panic(expected = "need [out, 3, 1, 1]")]
    fn channels_that_do_not_fit_panic() {
        let device = devices().remove(0);
        pointwise_conv2d(Tensor::zeros([1, 3, 2, 2], &device), Tensor::zeros([2, 4, 1, 1], &device), None);
    }
}
