//! Root-mean-square normalisation on tensors: what the operation computes, and where it goes from there.

mod autodiff;
mod backend;
#[cfg(feature = "cubecl")]
mod cube;
#[cfg(any(feature = "ndarray", feature = "flex"))]
mod host;
mod portable;

use burn::{
    backend::{Backend, Dispatch, tensor::FloatTensor},
    tensor::Tensor,
};

use crate::{absent, check_dtype, gate::Activation};

pub use backend::NormBackend;

/// What a norm computes, besides its tensors.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NormSpec {
    /// Added to the mean square, above 0.
    pub eps: f64,
    /// How the logits become a gate; `None`: there are no logits.
    pub gate: Option<Activation>,
}

/// The tensors of a norm; absent logits hold any value.
#[derive(Debug)]
pub(crate) struct NormArguments<B: Backend> {
    pub x: FloatTensor<B>,
    pub weight: FloatTensor<B>,
    pub logits: FloatTensor<B>,
}

impl<B: Backend> Clone for NormArguments<B> {
    fn clone(&self) -> Self {
        Self { x: self.x.clone(), weight: self.weight.clone(), logits: self.logits.clone() }
    }
}

/// `y = x / sqrt(mean(x^2) + eps) * weight * act(logits)`, the mean over the last axis.
///
/// Without a gate the last factor is left out. Differentiable in every tensor; the backward pass
/// keeps the arguments and nothing else. Zhang and Sennrich, "Root Mean Square Layer
/// Normalization" (2019), eq. 4.
///
/// # Shapes
///
/// - `x` `[.., dim]`, `weight` `[dim]`, logits of the gate `[.., dim]`; result `[.., dim]`
///
/// # Panics
///
/// When shapes or types do not fit, or the type is neither float32 nor float64.
pub fn rms_norm<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<1>,
    eps: f64,
    gate: Option<(Tensor<D>, Activation)>,
) -> Tensor<D> {
    check_dtype("rms_norm", x.dtype());
    assert_eq!(x.dtype(), weight.dtype(), "rms_norm: types of `x` and `weight`");
    assert_eq!(weight.dims()[0], x.dims()[D - 1], "rms_norm: channels of `weight` and `x`");
    if let Some((logits, _)) = &gate {
        assert_eq!(x.dtype(), logits.dtype(), "rms_norm: types of `x` and the logits");
        assert_eq!(x.dims(), logits.dims(), "rms_norm: shapes of `x` and the logits");
    }
    let spec = NormSpec { eps, gate: gate.as_ref().map(|(_, activation)| *activation) };
    let logits = match gate {
        Some((logits, _)) => logits.into_dispatch(),
        None => absent(&x).into_dispatch(),
    };
    Tensor::from_dispatch(<Dispatch as NormBackend>::rms_norm(
        x.into_dispatch(),
        weight.into_dispatch(),
        logits,
        spec,
    ))
}
