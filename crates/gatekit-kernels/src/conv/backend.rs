//! The short convolution as an operation of a backend. The bodies here are the portable forms; a
//! backend with a fused kernel overrides them.

use burn::backend::{Backend, backend_extension, tensor::FloatTensor};

#[cfg(feature = "cubecl")]
use super::cube;
#[cfg(any(feature = "ndarray", feature = "flex"))]
use super::host;
use super::{ConvolutionArguments, ConvolutionSpec, portable};

/// A backend with short convolutions.
///
/// Absent tensors (see [`ConvolutionSpec`]) are passed as a single zero; their gradients are one too.
#[backend_extension(
    NdArray: cfg(feature = "ndarray"),
    Flex: cfg(feature = "flex"),
    Cube: cfg(feature = "cubecl"),
    Fusion: cfg(feature = "fusion"),
    Autodiff
)]
pub trait ConvolutionBackend: Backend {
    /// Result of [`short_convolution`](super::short_convolution).
    #[fusion(dtype = x, shape = x)]
    fn short_convolution(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        state: FloatTensor<Self>,
        spec: ConvolutionSpec,
    ) -> FloatTensor<Self> {
        portable::forward::<Self>(ConvolutionArguments { x, weight, bias, state }, &spec)
    }

    /// Gradients of `x`, `weight`, `bias` and `state`, given that of the result.
    #[fusion(meta = crate::fusion::short_convolution_backward)]
    fn short_convolution_backward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        state: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        spec: ConvolutionSpec,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let arguments = ConvolutionArguments { x, weight, bias, state };
        portable::backward::<Self>(arguments, gradient, &spec).into_tuple()
    }
}

/// The short convolutions of a backend with fused loops or kernels, from their module.
#[cfg(any(feature = "ndarray", feature = "flex", feature = "cubecl"))]
macro_rules! fused_convolutions {
    ($backend:ty, $fused:ident) => {
        impl ConvolutionBackend for $backend {
            fn short_convolution(
                x: FloatTensor<Self>,
                weight: FloatTensor<Self>,
                bias: FloatTensor<Self>,
                state: FloatTensor<Self>,
                spec: ConvolutionSpec,
            ) -> FloatTensor<Self> {
                $fused::forward::<Self>(ConvolutionArguments { x, weight, bias, state }, &spec)
            }

            fn short_convolution_backward(
                x: FloatTensor<Self>,
                weight: FloatTensor<Self>,
                bias: FloatTensor<Self>,
                state: FloatTensor<Self>,
                gradient: FloatTensor<Self>,
                spec: ConvolutionSpec,
            ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
                let arguments = ConvolutionArguments { x, weight, bias, state };
                $fused::backward::<Self>(arguments, gradient, &spec).into_tuple()
            }
        }
    };
}

#[cfg(feature = "ndarray")]
fused_convolutions!(burn_ndarray::NdArray, host);

#[cfg(feature = "flex")]
fused_convolutions!(burn_flex::Flex, host);

#[cfg(feature = "cubecl")]
fused_convolutions!(burn_cubecl::CubeBackend, cube);
