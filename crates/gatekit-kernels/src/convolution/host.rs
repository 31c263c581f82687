//! The convolution for the backends whose tensors are slices of host memory.

use burn::{
    backend::{TensorMetadata, tensor::FloatTensor},
    tensor::{DType, Shape},
};

use super::{
    ImageConvolutionSpec, ImageGradients,
    cpu::{self, Finish, Sizes},
    portable,
};
use crate::host::HostBackend;

/// The sizes, where the kernels here compute this convolution; the others are left to the portable form.
fn sizes<B: HostBackend>(
    x: &FloatTensor<B>,
    weight: &FloatTensor<B>,
    spec: ImageConvolutionSpec,
) -> Option<Sizes> {
    let (image, kernel) = (x.shape(), weight.shape());
    let depthwise = spec.groups == image[1] && kernel[0] == image[1];
    let fits = x.dtype() == DType::F32 && weight.dtype() == DType::F32 && image.num_elements() > 0;
    (fits && (spec.groups == 1 || depthwise)).then(|| Sizes {
        batch: image[0],
        channels: image[1],
        outputs: kernel[0],
        image: [image[2], image[3]],
        kernel: [kernel[2], kernel[3]],
        result: spec.result([image[2], image[3]], [kernel[2], kernel[3]]),
        stride: spec.stride,
        padding: spec.padding,
    })
}

/// The forward pass.
pub(super) fn forward<B: HostBackend>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    [scale, bias]: [FloatTensor<B>; 2],
    spec: ImageConvolutionSpec,
) -> FloatTensor<B> {
    let rows = scale.dtype() == DType::F32 && bias.dtype() == DType::F32;
    let Some(sizes) = sizes::<B>(&x, &weight, spec).filter(|_| rows) else {
        return portable::forward::<B>(x, weight, [scale, bias], spec);
    };
    let scale = spec.has_scale.then(|| B::read::<f32>(&scale));
    let bias = spec.has_bias.then(|| B::read::<f32>(&bias));
    let finish = Finish { scale: scale.as_deref(), bias: bias.as_deref(), activation: spec.activation };
    let compute = if spec.groups == 1 { cpu::forward } else { cpu::depthwise_forward };
    let y = compute(&sizes, &B::read(&x), &B::read(&weight), finish);
    B::write(y, Shape::new([sizes.batch, sizes.outputs, sizes.result[0], sizes.result[1]]))
}

/// Gradients of image, kernel and bias, a single zero for what is not wanted.
pub(super) fn backward<B: HostBackend>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    gradient: FloatTensor<B>,
    spec: ImageConvolutionSpec,
    wanted: ImageGradients,
) -> (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>) {
    let Some(sizes) = sizes::<B>(&x, &weight, spec) else {
        return portable::backward::<B>(x, weight, gradient, spec, wanted);
    };
    let none = || B::write(vec![0.0f32], Shape::new([1]));
    let dy = B::read::<f32>(&gradient);
    let of_x = || {
        let compute = if spec.groups == 1 { cpu::image_gradient } else { cpu::depthwise_image_gradient };
        B::write(compute(&sizes, &B::read(&weight), &dy), x.shape())
    };
    let of_weight = || {
        let compute = if spec.groups == 1 { cpu::weight_gradient } else { cpu::depthwise_weight_gradient };
        B::write(compute(&sizes, &B::read(&x), &dy), weight.shape())
    };
    let of_bias = || {
        let sums = cpu::channel_sums(&dy, sizes.outputs, sizes.result[0] * sizes.result[1]);
        B::write(sums, Shape::new([sizes.outputs]))
    };
    (
        if wanted.x { of_x() } else { none() },
        if wanted.weight { of_weight() } else { none() },
        if wanted.bias { of_bias() } else { none() },
    )
}
