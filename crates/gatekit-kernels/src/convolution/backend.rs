//! The convolution of images as an operation of a backend. The bodies here are the portable forms; a backend with a fused
//! kernel overrides them.

use burn::backend::{Backend, backend_extension, tensor::FloatTensor};

#[cfg(any(feature = "ndarray", feature = "flex"))]
use super::host;
use super::{ImageConvolutionSpec, ImageGradients, portable};

/// A backend with convolutions of images. An absent scale or bias is passed as a single zero; gradients that are not asked
/// for are one too.
#[backend_extension(
    NdArray: cfg(feature = "ndarray"),
    Flex: cfg(feature = "flex"),
    Cube: cfg(feature = "cubecl"),
    Fusion: cfg(feature = "fusion"),
    Autodiff
)]
pub trait ImageConvolutionBackend: Backend {
    /// Result of [`image_convolution`](super::image_convolution).
    #[fusion(meta = crate::fusion::image_convolution)]
    fn image_convolution(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        spec: ImageConvolutionSpec,
    ) -> FloatTensor<Self> {
        portable::forward::<Self>(x, weight, [scale, bias], spec)
    }

    /// Gradients of `x`, `weight` and bias, given that of the result before scale and activation.
    #[fusion(meta = crate::fusion::image_convolution_backward)]
    fn image_convolution_backward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        spec: ImageConvolutionSpec,
        wanted: ImageGradients,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        portable::backward::<Self>(x, weight, gradient, spec, wanted)
    }
}

/// The convolutions of a backend on host memory.
#[cfg(any(feature = "ndarray", feature = "flex"))]
macro_rules! fused_convolutions {
    ($backend:ty) => {
        impl ImageConvolutionBackend for $backend {
            fn image_convolution(
                x: FloatTensor<Self>,
                weight: FloatTensor<Self>,
                scale: FloatTensor<Self>,
                bias: FloatTensor<Self>,
                spec: ImageConvolutionSpec,
            ) -> FloatTensor<Self> {
                host::forward::<Self>(x, weight, [scale, bias], spec)
            }

            fn image_convolution_backward(
                x: FloatTensor<Self>,
                weight: FloatTensor<Self>,
                gradient: FloatTensor<Self>,
                spec: ImageConvolutionSpec,
                wanted: ImageGradients,
            ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
                host::backward::<Self>(x, weight, gradient, spec, wanted)
            }
        }
    };
}

#[cfg(feature = "ndarray")]
fused_convolutions!(burn_ndarray::NdArray);

#[cfg(feature = "flex")]
fused_convolutions!(burn_flex::Flex);

#[cfg(feature = "cubecl")]
impl ImageConvolutionBackend for burn_cubecl::CubeBackend {}
