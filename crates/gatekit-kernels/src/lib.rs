//! Scans as operations of their own: one function, several implementations, chosen by the
//! device of the tensors.
//!
//! * **portable**: chunked matrix products in backend operations; correct everywhere;
//! * **CPU** (`NdArray`, `Flex`): fused loops over slices.
//!
//! Every operation has an analytic backward pass, registered for `Autodiff`, that recomputes from
//! one state a chunk instead of storing a state a step.
#![deny(missing_docs)]
// Burn marks its `NdArray` backend as deprecated; this library supports it.
#![allow(deprecated)]

#[cfg(any(feature = "ndarray", feature = "flex"))]
mod cpu;
mod portable;
mod primitive;
pub mod scan;
