//! The normalisation of channels as operations of a backend. The bodies here are the portable forms; a backend with fused
//! loops overrides them.

use burn::backend::{Backend, backend_extension, tensor::FloatTensor};

#[cfg(any(feature = "ndarray", feature = "flex"))]
use super::host;
use super::{ChannelArguments, ChannelNormSpec, portable};

/// A backend with normalisations of channels.
#[backend_extension(
    NdArray: cfg(feature = "ndarray"),
    Flex: cfg(feature = "flex"),
    Cube: cfg(feature = "cubecl"),
    Fusion: cfg(feature = "fusion"),
    Autodiff
)]
pub trait ChannelBackend: Backend {
    /// Result of [`channel_statistics`](super::channel_statistics).
    #[fusion(meta = crate::fusion::channel_statistics)]
    fn channel_statistics(x: FloatTensor<Self>) -> (FloatTensor<Self>, FloatTensor<Self>) {
        portable::statistics::<Self>(x)
    }

    /// Result of [`channel_norm`](super::channel_norm).
    #[fusion(dtype = x, shape = x)]
    fn channel_norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        mean: FloatTensor<Self>,
        variance: FloatTensor<Self>,
        spec: ChannelNormSpec,
    ) -> FloatTensor<Self> {
        portable::forward::<Self>(ChannelArguments { x, gamma, beta, mean, variance }, spec)
    }

    /// Gradients of `x`, `gamma` and `beta`, given that of the result.
    #[fusion(meta = crate::fusion::channel_norm_backward)]
    fn channel_norm_backward(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        mean: FloatTensor<Self>,
        variance: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        spec: ChannelNormSpec,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        portable::backward::<Self>(ChannelArguments { x, gamma, beta, mean, variance }, gradient, spec)
    }
}

/// The normalisations of a backend on host memory.
#[cfg(any(feature = "ndarray", feature = "flex"))]
macro_rules! fused_channels {
    ($backend:ty) => {
        impl ChannelBackend for $backend {
            fn channel_statistics(x: FloatTensor<Self>) -> (FloatTensor<Self>, FloatTensor<Self>) {
                host::statistics::<Self>(x)
            }

            fn channel_norm(
                x: FloatTensor<Self>,
                gamma: FloatTensor<Self>,
                beta: FloatTensor<Self>,
                mean: FloatTensor<Self>,
                variance: FloatTensor<Self>,
                spec: ChannelNormSpec,
            ) -> FloatTensor<Self> {
                host::forward::<Self>(ChannelArguments { x, gamma, beta, mean, variance }, spec)
            }

            fn channel_norm_backward(
                x: FloatTensor<Self>,
                gamma: FloatTensor<Self>,
                beta: FloatTensor<Self>,
                mean: FloatTensor<Self>,
                variance: FloatTensor<Self>,
                gradient: FloatTensor<Self>,
                spec: ChannelNormSpec,
            ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
                let arguments = ChannelArguments { x, gamma, beta, mean, variance };
                host::backward::<Self>(arguments, gradient, spec)
            }
        }
    };
}

#[cfg(feature = "ndarray")]
fused_channels!(burn_ndarray::NdArray);

#[cfg(feature = "flex")]
fused_channels!(burn_flex::Flex);

#[cfg(feature = "cubecl")]
impl ChannelBackend for burn_cubecl::CubeBackend {}
