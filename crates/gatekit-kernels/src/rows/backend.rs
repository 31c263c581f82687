//! Rows put together, as an operation of a backend.

use std::sync::Arc;

use burn::backend::{Backend, backend_extension, tensor::FloatTensor};

#[cfg(feature = "cubecl")]
use super::cube;
#[cfg(any(feature = "ndarray", feature = "flex"))]
use super::host;
use super::{RowMap, portable};

/// A backend that puts rows together. The body is made of its selection of rows.
#[backend_extension(
    NdArray: cfg(feature = "ndarray"),
    Flex: cfg(feature = "flex"),
    Cube: cfg(feature = "cubecl"),
    Fusion: cfg(feature = "fusion"),
    Autodiff
)]
pub trait RowsBackend: Backend {
    /// Result of [`combine_rows`](super::combine_rows).
    #[fusion(meta = crate::fusion::combine_rows)]
    fn combine_rows(x: FloatTensor<Self>, map: Arc<RowMap>) -> FloatTensor<Self> {
        portable::combine::<Self>(x, &map)
    }
}

#[cfg(feature = "ndarray")]
impl RowsBackend for burn_ndarray::NdArray {
    fn combine_rows(x: FloatTensor<Self>, map: Arc<RowMap>) -> FloatTensor<Self> {
        host::combine::<Self>(x, &map)
    }
}

#[cfg(feature = "flex")]
impl RowsBackend for burn_flex::Flex {
    fn combine_rows(x: FloatTensor<Self>, map: Arc<RowMap>) -> FloatTensor<Self> {
        host::combine::<Self>(x, &map)
    }
}

#[cfg(feature = "cubecl")]
impl RowsBackend for burn_cubecl::CubeBackend {
    fn combine_rows(x: FloatTensor<Self>, map: Arc<RowMap>) -> FloatTensor<Self> {
        cube::combine::<Self>(x, &map)
    }
}
