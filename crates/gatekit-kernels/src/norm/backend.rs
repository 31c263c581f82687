//! The norm as an operation of a backend. The bodies here are the portable forms; a backend with a
//! fused kernel overrides them.

use burn::backend::{Backend, backend_extension, tensor::FloatTensor};

#[cfg(feature = "cubecl")]
use super::cube;
#[cfg(any(feature = "ndarray", feature = "flex"))]
use super::host;
use super::{NormArguments, NormSpec, portable};

/// A backend with root-mean-square norms.
///
/// Absent logits (see [`NormSpec`]) are passed as a single zero; their gradient is one too.
#[backend_extension(
    NdArray: cfg(feature = "ndarray"),
    Flex: cfg(feature = "flex"),
    Cube: cfg(feature = "cubecl"),
    Fusion: cfg(feature = "fusion"),
    Autodiff
)]
pub trait NormBackend: Backend {
    /// Result of [`rms_norm`](super::rms_norm).
    #[fusion(dtype = x, shape = x)]
    fn rms_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        logits: FloatTensor<Self>,
        spec: NormSpec,
    ) -> FloatTensor<Self> {
        portable::forward::<Self>(NormArguments { x, weight, logits }, spec)
    }

    /// Gradients of `x`, `weight` and `logits`, given that of the result.
    #[fusion(meta = crate::fusion::rms_norm_backward)]
    fn rms_norm_backward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        logits: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        spec: NormSpec,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let arguments = NormArguments { x, weight, logits };
        let gradients = portable::backward::<Self>(arguments, gradient, spec);
        (gradients.x, gradients.weight, gradients.logits)
    }
}

/// The norms of a backend with fused loops or kernels, from their module.
#[cfg(any(feature = "ndarray", feature = "flex", feature = "cubecl"))]
macro_rules! fused_norms {
    ($backend:ty, $fused:ident) => {
        impl NormBackend for $backend {
            fn rms_norm(
                x: FloatTensor<Self>,
                weight: FloatTensor<Self>,
                logits: FloatTensor<Self>,
                spec: NormSpec,
            ) -> FloatTensor<Self> {
                $fused::forward::<Self>(NormArguments { x, weight, logits }, spec)
            }

            fn rms_norm_backward(
                x: FloatTensor<Self>,
                weight: FloatTensor<Self>,
                logits: FloatTensor<Self>,
                gradient: FloatTensor<Self>,
                spec: NormSpec,
            ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
                let arguments = NormArguments { x, weight, logits };
                let gradients = $fused::backward::<Self>(arguments, gradient, spec);
                (gradients.x, gradients.weight, gradients.logits)
            }
        }
    };
}

#[cfg(feature = "ndarray")]
fused_norms!(burn_ndarray::NdArray, host);

#[cfg(feature = "flex")]
fused_norms!(burn_flex::Flex, host);

#[cfg(feature = "cubecl")]
fused_norms!(burn_cubecl::CubeBackend, cube);
