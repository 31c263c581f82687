//! The gates as operations of a backend. The bodies here are the portable forms; a backend with a
//! fused kernel overrides them.

use burn::backend::{Backend, backend_extension, tensor::FloatTensor};

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
    #[fusion(default)]
    fn gated_product(
        x: FloatTensor<Self>,
        logits: FloatTensor<Self>,
        activation: Activation,
    ) -> FloatTensor<Self> {
        portable::product::<Self>(x, logits, activation)
    }

    /// Gradients of `x` and `logits`, given that of the result.
    #[fusion(default)]
    fn gated_product_backward(
        x: FloatTensor<Self>,
        logits: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        activation: Activation,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        portable::product_backward::<Self>(x, logits, gradient, activation)
    }

    /// Result of [`log_sigmoid_scaled`](super::log_sigmoid_scaled).
    #[fusion(default)]
    fn log_sigmoid_scaled(
        logits: FloatTensor<Self>,
        normalizer: f64,
        floor: Option<f64>,
    ) -> FloatTensor<Self> {
        portable::log_sigmoid::<Self>(logits, normalizer, floor)
    }

    /// Gradient of `logits`, given that of the result.
    #[fusion(default)]
    fn log_sigmoid_scaled_backward(
        logits: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        normalizer: f64,
        floor: Option<f64>,
    ) -> FloatTensor<Self> {
        portable::log_sigmoid_backward::<Self>(logits, gradient, normalizer, floor)
    }
}

/// The gates of a backend on host memory: the fused loops.
#[cfg(any(feature = "ndarray", feature = "flex"))]
macro_rules! host_gates {
    ($backend:ty) => {
        impl GateBackend for $backend {
            fn gated_product(
                x: FloatTensor<Self>,
                logits: FloatTensor<Self>,
                activation: Activation,
            ) -> FloatTensor<Self> {
                host::product::<Self>(x, logits, activation)
            }

            fn gated_product_backward(
                x: FloatTensor<Self>,
                logits: FloatTensor<Self>,
                gradient: FloatTensor<Self>,
                activation: Activation,
            ) -> (FloatTensor<Self>, FloatTensor<Self>) {
                host::product_backward::<Self>(x, logits, gradient, activation)
            }

            fn log_sigmoid_scaled(
                logits: FloatTensor<Self>,
                normalizer: f64,
                floor: Option<f64>,
            ) -> FloatTensor<Self> {
                host::log_sigmoid::<Self>(logits, normalizer, floor)
            }

            fn log_sigmoid_scaled_backward(
                logits: FloatTensor<Self>,
                gradient: FloatTensor<Self>,
                normalizer: f64,
                floor: Option<f64>,
            ) -> FloatTensor<Self> {
                host::log_sigmoid_backward::<Self>(logits, gradient, normalizer, floor)
            }
        }
    };
}

#[cfg(feature = "ndarray")]
host_gates!(burn_ndarray::NdArray);

#[cfg(feature = "flex")]
host_gates!(burn_flex::Flex);

#[cfg(feature = "cubecl")]
impl GateBackend for burn_cubecl::CubeBackend {}
