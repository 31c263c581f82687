//! The selective scan as an operation of a backend. The bodies here are the portable forms; a backend with a fused
//! kernel overrides them.

use burn::backend::{Backend, backend_extension, tensor::FloatTensor};

#[cfg(feature = "cubecl")]
use super::cube;
#[cfg(any(feature = "ndarray", feature = "flex"))]
use super::host;
use super::{SelectiveArguments, SelectiveSpec, SelectiveStep, portable};
use crate::scan::GradientOf;
#[cfg(any(feature = "ndarray", feature = "flex", feature = "cubecl"))]
use crate::scan::SixTensors;

/// A backend with selective scans.
///
/// An absent initial state is passed as a single zero; its gradient is one too.
#[backend_extension(
    NdArray: cfg(feature = "ndarray"),
    Flex: cfg(feature = "flex"),
    Cube: cfg(feature = "cubecl"),
    Fusion: cfg(feature = "fusion"),
    Autodiff
)]
pub trait SelectiveBackend: Backend {
    /// Output and final state of [`selective_scan`](super::selective_scan).
    #[fusion(meta = crate::fusion::selective_scan)]
    fn selective_scan(
        x: FloatTensor<Self>,
        delta: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        c: FloatTensor<Self>,
        initial_state: FloatTensor<Self>,
        spec: SelectiveSpec,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        portable::forward::<Self>(SelectiveArguments { x, delta, a, b, c, initial_state }, &spec)
    }

    /// Gradients of `x`, `delta`, `a`, `b`, `c` and `initial_state`, each in the dtype of its tensor, given the
    /// gradient of one of the results.
    #[fusion(meta = crate::fusion::selective_scan_backward)]
    fn selective_scan_backward(
        x: FloatTensor<Self>,
        delta: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        c: FloatTensor<Self>,
        initial_state: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        of: GradientOf,
        spec: SelectiveSpec,
    ) -> (
        FloatTensor<Self>,
        FloatTensor<Self>,
        FloatTensor<Self>,
        FloatTensor<Self>,
        FloatTensor<Self>,
        FloatTensor<Self>,
    ) {
        let arguments = SelectiveArguments { x, delta, a, b, c, initial_state };
        portable::backward::<Self>(arguments, gradient, of, &spec).into_tuple()
    }

    /// Output and state of [`selective_scan_step`](super::selective_scan_step).
    #[fusion(meta = crate::fusion::selective_scan_step)]
    fn selective_scan_step(
        x: FloatTensor<Self>,
        delta: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        c: FloatTensor<Self>,
        state: FloatTensor<Self>,
        fused: bool,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        // Without a kernel there is one form, whether a fused one is asked for or not.
        let _ = fused;
        portable::step::<Self>(SelectiveStep { x, delta, a, b, c, state })
    }
}

/// The selective scans of a backend on host memory: the fused loops.
#[cfg(any(feature = "ndarray", feature = "flex"))]
macro_rules! host_selective_scans {
    ($backend:ty) => {
        impl SelectiveBackend for $backend {
            fn selective_scan(
                x: FloatTensor<Self>,
                delta: FloatTensor<Self>,
                a: FloatTensor<Self>,
                b: FloatTensor<Self>,
                c: FloatTensor<Self>,
                initial_state: FloatTensor<Self>,
                spec: SelectiveSpec,
            ) -> (FloatTensor<Self>, FloatTensor<Self>) {
                host::forward::<Self>(SelectiveArguments { x, delta, a, b, c, initial_state }, &spec)
            }

            fn selective_scan_backward(
                x: FloatTensor<Self>,
                delta: FloatTensor<Self>,
                a: FloatTensor<Self>,
                b: FloatTensor<Self>,
                c: FloatTensor<Self>,
                initial_state: FloatTensor<Self>,
                gradient: FloatTensor<Self>,
                of: GradientOf,
                spec: SelectiveSpec,
            ) -> SixTensors<Self> {
                let arguments = SelectiveArguments { x, delta, a, b, c, initial_state };
                host::backward::<Self>(arguments, gradient, of, &spec).into_tuple()
            }

            fn selective_scan_step(
                x: FloatTensor<Self>,
                delta: FloatTensor<Self>,
                a: FloatTensor<Self>,
                b: FloatTensor<Self>,
                c: FloatTensor<Self>,
                state: FloatTensor<Self>,
                fused: bool,
            ) -> (FloatTensor<Self>, FloatTensor<Self>) {
                let arguments = SelectiveStep { x, delta, a, b, c, state };
                if fused { host::step::<Self>(arguments) } else { portable::step::<Self>(arguments) }
            }
        }
    };
}

#[cfg(feature = "ndarray")]
host_selective_scans!(burn_ndarray::NdArray);

#[cfg(feature = "flex")]
host_selective_scans!(burn_flex::Flex);

#[cfg(feature = "cubecl")]
impl SelectiveBackend for burn_cubecl::CubeBackend {
    fn selective_scan(
        x: FloatTensor<Self>,
        delta: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        c: FloatTensor<Self>,
        initial_state: FloatTensor<Self>,
        spec: SelectiveSpec,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        cube::forward::<Self>(SelectiveArguments { x, delta, a, b, c, initial_state }, &spec)
    }

    fn selective_scan_backward(
        x: FloatTensor<Self>,
        delta: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        c: FloatTensor<Self>,
        initial_state: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        of: GradientOf,
        spec: SelectiveSpec,
    ) -> SixTensors<Self> {
        let arguments = SelectiveArguments { x, delta, a, b, c, initial_state };
        cube::backward::<Self>(arguments, gradient, of, &spec).into_tuple()
    }

    fn selective_scan_step(
        x: FloatTensor<Self>,
        delta: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        c: FloatTensor<Self>,
        state: FloatTensor<Self>,
        fused: bool,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        cube::step::<Self>(SelectiveStep { x, delta, a, b, c, state }, fused)
    }
}
