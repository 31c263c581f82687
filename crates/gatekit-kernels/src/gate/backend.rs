//! The gates as operations of a backend. The bodies here are the portable forms; a backend with a
//! fused kernel overrides them.

use burn::backend::{Backend, backend_extension, tensor::FloatTensor};

#[cfg(feature = "cubecl")]
use super::cube;
#[cfg(any(feature = "ndarray", feature = "flex"))]
use super::host;
use super::{Activation, portable};

/// A backend with gates.
#[backend_extension(
    NdArray: cfg(feature = "ndarray"),
    Flex: cfg(feature = "flex"),
    Cube: cfg(feature = "cubecl"),
    Fusion: cfg(feature = "fusion"),
    Autodiff
)]
pub trait GateBackend: Backend {
    /// Result of [`gated_product`](super::gated_product).
    #[fusion(dtype = x, shape = x)]
    fn gated_product(
        x: FloatTensor<Self>,
        logits: FloatTensor<Self>,
        activation: Activation,
    ) -> FloatTensor<Self> {
        portable::product::<Self>(x, logits, activation)
    }

    /// Gradients of `x` and `logits`, given that of the result.
    #[fusion(meta = |x, logits, _gradient, _activation| (x.clone(), logits.clone()))]
    fn gated_product_backward(
        x: FloatTensor<Self>,
        logits: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        activation: Activation,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        portable::product_backward::<Self>(x, logits, gradient, activation)
    }

    /// Result of [`log_sigmoid_scaled`](super::log_sigmoid_scaled).
    #[fusion(dtype = logits, shape = logits)]
    fn log_sigmoid_scaled(
        logits: FloatTensor<Self>,
        normalizer: f64,
        floor: Option<f64>,
    ) -> FloatTensor<Self> {
        portable::log_sigmoid::<Self>(logits, normalizer, floor)
    }

    /// Gradient of `logits`, given that of the result.
    #[fusion(dtype = logits, shape = logits)]
    fn log_sigmoid_scaled_backward(
        logits: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        normalizer: f64,
        floor: Option<f64>,
    ) -> FloatTensor<Self> {
        portable::log_sigmoid_backward::<Self>(logits, gradient, normalizer, floor)
    }
}

/// The gates of a backend with fused loops or kernels, from their module.
#[cfg(any(feature = "ndarray", feature = "flex", feature = "cubecl"))]
macro_rules! fused_gates {
    ($backend:ty, $fused:ident) => {
        impl GateBackend for $backend {
            fn gated_product(
                x: FloatTensor<Self>,
                logits: FloatTensor<Self>,
                activation: Activation,
            ) -> FloatTensor<Self> {
                $fused::product::<Self>(x, logits, activation)
            }

            fn gated_product_backward(
                x: FloatTensor<Self>,
                logits: FloatTensor<Self>,
                gradient: FloatTensor<Self>,
                activation: Activation,
            ) -> (FloatTensor<Self>, FloatTensor<Self>) {
                $fused::product_backward::<Self>(x, logits, gradient, activation)
            }

            fn log_sigmoid_scaled(
                logits: FloatTensor<Self>,
                normalizer: f64,
                floor: Option<f64>,
            ) -> FloatTensor<Self> {
                $fused::log_sigmoid::<Self>(logits, normalizer, floor)
            }

            fn log_sigmoid_scaled_backward(
                logits: FloatTensor<Self>,
                gradient: FloatTensor<Self>,
                normalizer: f64,
                floor: Option<f64>,
            ) -> FloatTensor<Self> {
                $fused::log_sigmoid_backward::<Self>(logits, gradient, normalizer, floor)
            }
        }
    };
}

#[cfg(feature = "ndarray")]
fused_gates!(burn_ndarray::NdArray, host);

#[cfg(feature = "flex")]
fused_gates!(burn_flex::Flex, host);

#[cfg(feature = "cubecl")]
fused_gates!(burn_cubecl::CubeBackend, cube);
