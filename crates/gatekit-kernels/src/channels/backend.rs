//! The normalisation of channels as operations of a backend. The bodies here are the portable forms; a backend with fused
//! loops overrides them.

use burn::backend::{Backend, backend_extension, tensor::FloatTensor};

use super::{ChannelArguments, ChannelNormSpec, portable};
#[cfg(any(feature = "ndarray", feature = "flex"))]
use super::{host, host_maps};

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

    /// Result of [`merge_maps`](super::merge_maps).
    #[fusion(dtype = base, shape = base)]
    fn merge_maps(
        base: FloatTensor<Self>,
        refined: FloatTensor<Self>,
        spatial: FloatTensor<Self>,
        gate: FloatTensor<Self>,
        guidance: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        shift: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        portable::merge::<Self>([base, refined, spatial, gate, guidance], [scale, shift])
    }

    /// Result of [`mix_maps`](super::mix_maps).
    #[fusion(meta = crate::fusion::mix_maps)]
    fn mix_maps(
        x: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        spatial: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        portable::mix::<Self>(x, weights, spatial)
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

            fn merge_maps(
                base: FloatTensor<Self>,
                refined: FloatTensor<Self>,
                spatial: FloatTensor<Self>,
                gate: FloatTensor<Self>,
                guidance: FloatTensor<Self>,
                scale: FloatTensor<Self>,
                shift: FloatTensor<Self>,
            ) -> FloatTensor<Self> {
                host_maps::merge::<Self>([base, refined, spatial, gate, guidance], [scale, shift])
            }

            fn mix_maps(
                x: FloatTensor<Self>,
                weights: FloatTensor<Self>,
                spatial: FloatTensor<Self>,
            ) -> FloatTensor<Self> {
                host_maps::mix::<Self>(x, weights, spatial)
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
