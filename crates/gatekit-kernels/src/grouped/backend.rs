//! The grouped product as an operation of a backend.

use std::sync::Arc;

use burn::backend::{Backend, backend_extension, tensor::FloatTensor};

#[cfg(feature = "cubecl")]
use super::cube;
use super::portable;

/// A backend with grouped products. The bodies are made of the backend's own matrix products, one a group.
#[backend_extension(
    NdArray: cfg(feature = "ndarray"),
    Flex: cfg(feature = "flex"),
    Cube: cfg(feature = "cubecl"),
    Fusion: cfg(feature = "fusion"),
    Autodiff
)]
pub trait GroupedBackend: Backend {
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
}

#[cfg(feature = "ndarray")]
impl GroupedBackend for burn_ndarray::NdArray {}

#[cfg(feature = "flex")]
impl GroupedBackend for burn_flex::Flex {}

#[cfg(feature = "cubecl")]
impl GroupedBackend for burn_cubecl::CubeBackend {
    fn grouped_matmul(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        offsets: Arc<[usize]>,
    ) -> FloatTensor<Self> {
        cube::forward(x, weight, &offsets)
    }

    fn grouped_matmul_backward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        offsets: Arc<[usize]>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        cube::backward(x, weight, gradient, &offsets)
    }
}
