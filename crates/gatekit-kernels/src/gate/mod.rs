//! Gates on tensors: what an operation computes, and where it goes from there.

mod activation;
mod autodiff;
mod backend;
#[cfg(feature = "cubecl")]
mod cube;
#[cfg(feature = "cubecl")]
pub(crate) mod functions;
#[cfg(any(feature = "ndarray", feature = "flex"))]
mod host;
mod portable;

use burn::{backend::Dispatch, tensor::Tensor};

use crate::precision::check_dtypes;

pub use activation::Activation;
#[cfg(any(feature = "ndarray", feature = "flex"))]
pub(crate) use activation::{Gate, Gated, GatedLoop, Swish};
pub use backend::GateBackend;

/// `y = x * act(logits)`, element by element.
///
/// `x` and `logits` `[..]` of one shape; the result has the type of `x`. Finite values and gradients at any finite logit.
/// Differentiable in both; the backward pass keeps the arguments and nothing else.
///
/// # Panics
///
/// When the shapes differ or types (see the [crate]) do not fit.
pub fn gated_product<const D: usize>(x: Tensor<D>, logits: Tensor<D>, activation: Activation) -> Tensor<D> {
    check_dtypes("gated_product", x.dtype(), [Some(logits.dtype())]);
    assert_eq!(x.dims(), logits.dims(), "gated_product: shapes of `x` and `logits`");
    Tensor::from_dispatch(<Dispatch as GateBackend>::gated_product(
        x.into_dispatch(),
        logits.into_dispatch(),
        activation,
    ))
}

/// `g = max(logsigmoid(z) / normalizer, floor)`, element by element: a forget gate as a logarithm.
///
/// `logits` `[..]`. Accurate relative to its own size on both sides; without a floor unbounded below.
/// The gradient is `sigmoid(-z) / normalizer`, and zero where the floor is above the gate.
///
/// # Panics
///
/// When the type is not a float type. The normalizer is above 0: the caller's to check.
pub fn log_sigmoid_scaled<const D: usize>(
    logits: Tensor<D>,
    normalizer: f64,
    floor: Option<f64>,
) -> Tensor<D> {
    check_dtypes("log_sigmoid_scaled", logits.dtype(), []);
    Tensor::from_dispatch(<Dispatch as GateBackend>::log_sigmoid_scaled(
        logits.into_dispatch(),
        normalizer,
        floor,
    ))
}
