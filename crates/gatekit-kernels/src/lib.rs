//! Scans, gates, norms and short convolutions as operations of their own: one function, several
//! implementations, chosen by the device of the tensors.
//!
//! * **portable**: backend operations, chunked matrix products for the scans; correct everywhere;
//! * **CPU** (`NdArray`, `Flex`, float32): fused loops over slices.
//!
//! Every operation has an analytic backward pass, registered for `Autodiff`, that recomputes what
//! it needs from the arguments instead of storing it: a scan from one state a chunk.
#![deny(missing_docs)]
// Burn marks its `NdArray` backend as deprecated; this library supports it.
#![allow(deprecated)]

pub mod conv;
pub mod gate;
#[cfg(any(feature = "ndarray", feature = "flex"))]
mod host;
#[cfg(any(feature = "ndarray", feature = "flex"))]
mod loops;
#[cfg(any(feature = "ndarray", feature = "flex"))]
mod memory;
pub mod norm;
mod primitive;
pub mod scan;
#[cfg(any(feature = "ndarray", feature = "flex"))]
mod simd;

use burn::tensor::{DType, Tensor};

/// A single zero that stands for an absent tensor: it is never read and has no gradient.
fn absent<const D: usize>(like: &Tensor<D>) -> Tensor<1> {
    Tensor::zeros([1], (&like.device(), like.dtype()))
}

/// Half precision is the caller's to widen: what is summed is summed in float32 or float64.
fn check_dtype(operation: &str, dtype: DType) {
    assert!(
        matches!(dtype, DType::F32 | DType::F64),
        "{operation} computes in float32 or float64, the inputs are {dtype:?}: cast them first"
    );
}
