//! The scans as operations of a backend. The bodies here are the portable forms; a backend with a
//! fused kernel overrides them.

use burn::backend::{Backend, backend_extension, tensor::FloatTensor};

#[cfg(any(feature = "ndarray", feature = "flex", feature = "cubecl"))]
use super::SixTensors;
use super::{ElementwiseSpec, GradientOf, ScanArguments, ScanSpec, StepSpec, portable};
#[cfg(feature = "cubecl")]
use super::{cube, cube_elementwise};
#[cfg(any(feature = "ndarray", feature = "flex"))]
use super::{host, host_elementwise};

/// A backend with scans.
///
/// Absent tensors (see [`ScanSpec`]) are passed as a single zero; their gradients are one too.
#[backend_extension(
    NdArray: cfg(feature = "ndarray"),
    Flex: cfg(feature = "flex"),
    Cube: cfg(feature = "cubecl"),
    Fusion: cfg(feature = "fusion"),
    Autodiff
)]
pub trait ScanBackend: Backend {
    /// Output and final state of [`matrix_scan`](super::matrix_scan).
    #[fusion(meta = crate::fusion::matrix_scan)]
    fn matrix_scan(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        log_decay: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        initial_state: FloatTensor<Self>,
        spec: ScanSpec,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        portable::forward::<Self>(ScanArguments { q, k, v, log_decay, beta, initial_state }, &spec)
    }

    /// Gradients of `q`, `k`, `v`, `log_decay`, `beta` and `initial_state`, given the gradient of
    /// one of the results.
    #[fusion(meta = crate::fusion::matrix_scan_backward)]
    fn matrix_scan_backward(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        log_decay: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        initial_state: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        of: GradientOf,
        spec: ScanSpec,
    ) -> (
        FloatTensor<Self>,
        FloatTensor<Self>,
        FloatTensor<Self>,
        FloatTensor<Self>,
        FloatTensor<Self>,
        FloatTensor<Self>,
    ) {
        let arguments = ScanArguments { q, k, v, log_decay, beta, initial_state };
        portable::backward::<Self>(arguments, gradient, of, &spec).into_tuple()
    }

    /// Output and state of [`matrix_scan_step`](super::matrix_scan_step).
    #[fusion(meta = crate::fusion::matrix_scan_step)]
    fn matrix_scan_step(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        log_decay: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        state: FloatTensor<Self>,
        spec: StepSpec,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        portable::step::<Self>(ScanArguments { q, k, v, log_decay, beta, initial_state: state }, &spec)
    }

    /// States of every step and final states of [`elementwise_scan`](super::elementwise_scan).
    #[fusion(meta = crate::fusion::elementwise_scan)]
    fn elementwise_scan(
        x: FloatTensor<Self>,
        log_decay: FloatTensor<Self>,
        initial_state: FloatTensor<Self>,
        spec: ElementwiseSpec,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        portable::elementwise_forward::<Self>(x, log_decay, initial_state, &spec)
    }

    /// Gradients of `x`, `log_decay` and `initial_state`, given the states of every step and the
    /// gradient of one of the results.
    #[fusion(meta = crate::fusion::elementwise_scan_backward)]
    fn elementwise_scan_backward(
        output: FloatTensor<Self>,
        log_decay: FloatTensor<Self>,
        initial_state: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        of: GradientOf,
        spec: ElementwiseSpec,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        portable::elementwise_backward::<Self>(output, log_decay, initial_state, gradient, of, &spec)
    }
}

/// The scans of a backend on host memory: the fused CPU kernels.
#[cfg(any(feature = "ndarray", feature = "flex"))]
macro_rules! host_scans {
    ($backend:ty) => {
        impl ScanBackend for $backend {
            fn matrix_scan(
                q: FloatTensor<Self>,
                k: FloatTensor<Self>,
                v: FloatTensor<Self>,
                log_decay: FloatTensor<Self>,
                beta: FloatTensor<Self>,
                initial_state: FloatTensor<Self>,
                spec: ScanSpec,
            ) -> (FloatTensor<Self>, FloatTensor<Self>) {
                host::forward::<Self>(ScanArguments { q, k, v, log_decay, beta, initial_state }, &spec)
            }

            fn matrix_scan_backward(
                q: FloatTensor<Self>,
                k: FloatTensor<Self>,
                v: FloatTensor<Self>,
                log_decay: FloatTensor<Self>,
                beta: FloatTensor<Self>,
                initial_state: FloatTensor<Self>,
                gradient: FloatTensor<Self>,
                of: GradientOf,
                spec: ScanSpec,
            ) -> SixTensors<Self> {
                let arguments = ScanArguments { q, k, v, log_decay, beta, initial_state };
                host::backward::<Self>(arguments, gradient, of, &spec).into_tuple()
            }

            fn matrix_scan_step(
                q: FloatTensor<Self>,
                k: FloatTensor<Self>,
                v: FloatTensor<Self>,
                log_decay: FloatTensor<Self>,
                beta: FloatTensor<Self>,
                state: FloatTensor<Self>,
                spec: StepSpec,
            ) -> (FloatTensor<Self>, FloatTensor<Self>) {
                let arguments = ScanArguments { q, k, v, log_decay, beta, initial_state: state };
                host::step::<Self>(arguments, &spec)
            }

            fn elementwise_scan(
                x: FloatTensor<Self>,
                log_decay: FloatTensor<Self>,
                initial_state: FloatTensor<Self>,
                spec: ElementwiseSpec,
            ) -> (FloatTensor<Self>, FloatTensor<Self>) {
                host_elementwise::forward::<Self>(x, log_decay, initial_state, &spec)
            }

            fn elementwise_scan_backward(
                output: FloatTensor<Self>,
                log_decay: FloatTensor<Self>,
                initial_state: FloatTensor<Self>,
                gradient: FloatTensor<Self>,
                of: GradientOf,
                spec: ElementwiseSpec,
            ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
                host_elementwise::backward::<Self>(output, log_decay, initial_state, gradient, of, &spec)
            }
        }
    };
}

#[cfg(feature = "ndarray")]
host_scans!(burn_ndarray::NdArray);

#[cfg(feature = "flex")]
host_scans!(burn_flex::Flex);

#[cfg(feature = "cubecl")]
impl ScanBackend for burn_cubecl::CubeBackend {
    fn matrix_scan(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        log_decay: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        initial_state: FloatTensor<Self>,
        spec: ScanSpec,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        cube::forward(ScanArguments { q, k, v, log_decay, beta, initial_state }, &spec)
    }

    fn matrix_scan_backward(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        log_decay: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        initial_state: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        of: GradientOf,
        spec: ScanSpec,
    ) -> SixTensors<Self> {
        let arguments = ScanArguments { q, k, v, log_decay, beta, initial_state };
        cube::backward(arguments, gradient, of, &spec).into_tuple()
    }

    fn elementwise_scan(
        x: FloatTensor<Self>,
        log_decay: FloatTensor<Self>,
        initial_state: FloatTensor<Self>,
        spec: ElementwiseSpec,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        cube_elementwise::elementwise_forward::<Self>(x, log_decay, initial_state, &spec)
    }

    fn elementwise_scan_backward(
        output: FloatTensor<Self>,
        log_decay: FloatTensor<Self>,
        initial_state: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        of: GradientOf,
        spec: ElementwiseSpec,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        cube_elementwise::elementwise_backward::<Self>(output, log_decay, initial_state, gradient, of, &spec)
    }

    fn matrix_scan_step(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        log_decay: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        state: FloatTensor<Self>,
        spec: StepSpec,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        cube::step(ScanArguments { q, k, v, log_decay, beta, initial_state: state }, &spec)
    }
}
