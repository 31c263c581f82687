//! Scans, gates, norms, short convolutions, sums of rows and grouped products as operations of their own: one function,
//! several implementations, chosen by the device of the tensors.
//! Scans, gates, norms, convolutions and grouped products as operations of their own: one function, several
//! implementations, chosen by the device of the tensors.
//!
//! * **portable**: backend operations, chunked matrix products for the scans; correct everywhere;
//! * **CPU** (`NdArray`, `Flex`): fused loops over slices;
//! * **CubeCL** (`Cube`: wgpu, Vulkan, Metal, CUDA, ROCm): fused kernels that read and write the type a
//!   tensor is stored in; float64 is left to the portable forms.
//!
//! The main input may be in half precision, float32 or float64. Sums are made in float32, for float64
//! in float64; no other tensor may be in a wider type than that. A result has the type of the main
//! input, a scan's state that of the sums, a gradient that of its tensor.
//!
//! Under Burn's kernel fusion (feature `fusion`) an operation is queued like Burn's own and runs the same CubeCL kernel
//! when its turn comes; it is not merged with its neighbours.
//!
//! Every operation has an analytic backward pass, registered for `Autodiff`, that recomputes what
//! it needs from the arguments instead of storing it: a scan from one state a chunk.
#![deny(missing_docs)]
// Burn marks its `NdArray` backend as deprecated; this library supports it.
#![allow(deprecated)]

pub mod channels;
pub mod conv;
pub mod convolution;
#[cfg(feature = "cubecl")]
mod cube;
#[cfg(any(feature = "ndarray", feature = "flex"))]
mod float;
#[cfg(feature = "fusion")]
mod fusion;
pub mod gate;
pub mod grouped;
#[cfg(any(feature = "ndarray", feature = "flex"))]
mod host;
#[cfg(any(feature = "ndarray", feature = "flex"))]
mod loops;
#[cfg(any(feature = "ndarray", feature = "flex"))]
mod memory;
pub mod norm;
#[cfg(any(feature = "ndarray", feature = "flex"))]
mod pieces;
mod precision;
mod prefix;
mod primitive;
pub mod rows;
pub mod scan;
#[cfg(any(feature = "ndarray", feature = "flex"))]
mod scratch;
pub mod selective;
#[cfg(any(feature = "ndarray", feature = "flex"))]
mod simd;

use burn::tensor::Tensor;

/// A single zero that stands for an absent tensor: it is never read and has no gradient.
fn absent<const D: usize>(like: &Tensor<D>) -> Tensor<1> {
    Tensor::zeros([1], (&like.device(), like.dtype()))
}
