//! The convolution of images in backend operations: Burn's own.

use burn::{
    backend::{Backend, TensorMetadata, ops::ConvOptions, tensor::FloatTensor},
    tensor::Shape,
};

use super::{ImageConvolutionSpec, ImageGradients};
use crate::primitive::{Primitive, accumulation};

fn options(spec: ImageConvolutionSpec) -> ConvOptions<2> {
    ConvOptions::new([spec.stride; 2], [spec.padding; 2], [1; 2], spec.groups)
}

/// The forward pass.
pub(super) fn forward<B: Backend>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    [scale, bias]: [FloatTensor<B>; 2],
    spec: ImageConvolutionSpec,
) -> FloatTensor<B> {
    let (dtype, outputs) = (x.dtype(), weight.shape()[0]);
    let own = spec.has_bias && !spec.has_scale;
    let y = B::conv2d(x, weight, own.then(|| bias.clone()), options(spec));
    let mut y = Primitive::<B>(y).cast(accumulation(dtype));
    let row = |row: FloatTensor<B>| Primitive::<B>(row).cast(accumulation(dtype)).reshape([1, outputs, 1, 1]);
    if spec.has_scale {
        y = y * row(scale);
        if spec.has_bias {
            y = y + row(bias);
        }
    }
    let y = match spec.activation {
        Some(activation) => activation.portable_value(y),
        None => y,
    };
    y.cast(dtype).0
}

/// Gradients of image, kernel and bias, a single zero for what is not wanted.
pub(super) fn backward<B: Backend>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    gradient: FloatTensor<B>,
    spec: ImageConvolutionSpec,
    wanted: ImageGradients,
) -> (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>) {
    let none = || Primitive::<B>(gradient.clone()).zeros([1]).0;
    let of_x = match wanted.x {
        true => B::conv2d_x_backward(x.clone(), weight.clone(), gradient.clone(), options(spec)),
        false => none(),
    };
    let of_bias = match wanted.bias {
        true => {
            let sums = Primitive::<B>(gradient.clone()).sum(3).sum(2).sum(0);
            sums.reshape(Shape::new([weight.shape()[0]])).0
        }
        false => none(),
    };
    let of_weight = match wanted.weight {
        true => B::conv2d_weight_backward(x, weight, gradient.clone(), options(spec)),
        false => none(),
    };
    (of_x, of_weight, of_bias)
}
