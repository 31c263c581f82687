//! Grouped products and experts as operations of a backend.

use std::sync::Arc;

use burn::backend::{backend_extension, tensor::FloatTensor};

#[cfg(feature = "cubecl")]
use super::cube;
#[cfg(any(feature = "ndarray", feature = "flex"))]
use super::host;
use super::{ExpertArguments, ExpertSpec, portable, portable_experts};
use crate::{gate::GateBackend, rows::RowsBackend};

/// A backend with grouped products. The bodies are made of the backend's own matrix products, one a group, and of its
/// tensor operations.
#[backend_extension(
    NdArray: cfg(feature = "ndarray"),
    Flex: cfg(feature = "flex"),
    Cube: cfg(feature = "cubecl"),
    Fusion: cfg(feature = "fusion"),
    Autodiff
)]
pub trait GroupedBackend: GateBackend + RowsBackend {
    /// Result of [`grouped_matmul`](super::grouped_matmul).
    #[fusion(meta = crate::fusion::grouped_matmul)]
    fn grouped_matmul(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        offsets: Arc<[usize]>,
    ) -> FloatTensor<Self> {
        portable::forward::<Self>(x, weight, &offsets)
    }

    /// Gradients of `x` and `weight`, given that of the result.
    #[fusion(meta = |x, weight, _gradient, _offsets| (x.clone(), weight.clone()))]
    fn grouped_matmul_backward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        offsets: Arc<[usize]>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        portable::backward::<Self>(x, weight, gradient, &offsets)
    }

    /// Result of [`gated_experts`](super::gated_experts).
    #[fusion(dtype = x, shape = x)]
    fn gated_experts(
        x: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        gate_up: FloatTensor<Self>,
        down: FloatTensor<Self>,
        spec: ExpertSpec,
    ) -> FloatTensor<Self> {
        portable_experts::forward::<Self>(ExpertArguments { x, weights, gate_up, down }, &spec).0
    }

    /// The same, and the inner rows `[slots, 2 inner]` that the backward pass takes, in the type of `x`.
    #[fusion(meta = crate::fusion::gated_experts_kept)]
    fn gated_experts_kept(
        x: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        gate_up: FloatTensor<Self>,
        down: FloatTensor<Self>,
        spec: ExpertSpec,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        portable_experts::forward::<Self>(ExpertArguments { x, weights, gate_up, down }, &spec)
    }

    /// Gradients of `x`, `weights`, `gate_up` and `down`, given the inner rows and the gradient of the result.
    #[fusion(meta = crate::fusion::gated_experts_backward)]
    fn gated_experts_backward(
        x: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        gate_up: FloatTensor<Self>,
        down: FloatTensor<Self>,
        kept: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        spec: ExpertSpec,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let arguments = ExpertArguments { x, weights, gate_up, down };
        portable_experts::backward::<Self>(arguments, kept, gradient, &spec).into_tuple()
    }
}

/// The operations of a backend with fused loops or kernels, from their module.
#[cfg(any(feature = "ndarray", feature = "flex", feature = "cubecl"))]
macro_rules! fused {
    ($backend:ty, $fused:ident) => {
        impl GroupedBackend for $backend {
            fn grouped_matmul(
                x: FloatTensor<Self>,
                weight: FloatTensor<Self>,
                offsets: Arc<[usize]>,
            ) -> FloatTensor<Self> {
                $fused::matmul::<Self>(x, weight, &offsets)
            }

            fn grouped_matmul_backward(
                x: FloatTensor<Self>,
                weight: FloatTensor<Self>,
                gradient: FloatTensor<Self>,
                offsets: Arc<[usize]>,
            ) -> (FloatTensor<Self>, FloatTensor<Self>) {
                $fused::matmul_backward::<Self>(x, weight, gradient, &offsets)
            }

            fn gated_experts(
                x: FloatTensor<Self>,
                weights: FloatTensor<Self>,
                gate_up: FloatTensor<Self>,
                down: FloatTensor<Self>,
                spec: ExpertSpec,
            ) -> FloatTensor<Self> {
                $fused::experts::<Self>(ExpertArguments { x, weights, gate_up, down }, &spec, false).0
            }

            fn gated_experts_kept(
                x: FloatTensor<Self>,
                weights: FloatTensor<Self>,
                gate_up: FloatTensor<Self>,
                down: FloatTensor<Self>,
                spec: ExpertSpec,
            ) -> (FloatTensor<Self>, FloatTensor<Self>) {
                $fused::experts::<Self>(ExpertArguments { x, weights, gate_up, down }, &spec, true)
            }

            fn gated_experts_backward(
                x: FloatTensor<Self>,
                weights: FloatTensor<Self>,
                gate_up: FloatTensor<Self>,
                down: FloatTensor<Self>,
                kept: FloatTensor<Self>,
                gradient: FloatTensor<Self>,
                spec: ExpertSpec,
            ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
                let arguments = ExpertArguments { x, weights, gate_up, down };
                $fused::experts_backward::<Self>(arguments, kept, gradient, &spec).into_tuple()
            }
        }
    };
}

#[cfg(feature = "ndarray")]
fused!(burn_ndarray::NdArray, host);

#[cfg(feature = "flex")]
fused!(burn_flex::Flex, host);

#[cfg(feature = "cubecl")]
fused!(burn_cubecl::CubeBackend, cube);
