//! Root-mean-square normalisation on tensors: what the operation computes, and where it goes from there.

mod autodiff;
mod backend;
#[cfg(feature = "cubecl")]
mod cube;
#[cfg(any(feature = "ndarray", feature = "flex"))]
mod host;
mod portable;

use burn::{
    backend::{Backend, Dispatch, TensorMetadata, tensor::FloatTensor},
    tensor::{DType, Tensor},
};

use crate::{
    absent,
    gate::Activation,
    precision::{check_dtypes, narrow, widen},
};

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

impl<B: Backend> NormArguments<B> {
    /// The types that the tensors are stored in.
    pub fn dtypes(&self) -> [DType; 3] {
        [self.x.dtype(), self.weight.dtype(), self.logits.dtype()]
    }

    /// In the type that sums are made in.
    pub fn widened(self) -> Self {
        let [x, weight, logits] = widen::<B, 3>([self.x, self.weight, self.logits]);
        Self { x, weight, logits }
    }

    /// In the types that the tensors are stored in.
    pub fn narrowed(self, dtypes: [DType; 3]) -> Self {
        let [x, weight, logits] = narrow::<B, 3>([self.x, self.weight, self.logits], dtypes);
        Self { x, weight, logits }
    }
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
/// - `x` `[.., dim]`, `weight` `[dim]`, logits of the gate `[.., dim]`; result `[.., dim]` in the type of `x`
///
/// # Panics
///
/// When shapes or types (see the [crate]) do not fit.
pub fn rms_norm<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<1>,
    eps: f64,
    gate: Option<(Tensor<D>, Activation)>,
) -> Tensor<D> {
    let logits_dtype = gate.as_ref().map(|(logits, _)| logits.dtype());
    check_dtypes("rms_norm", x.dtype(), [Some(weight.dtype()), logits_dtype]);
    assert_eq!(weight.dims()[0], x.dims()[D - 1], "rms_norm: channels of `weight` and `x`");
    if let Some((logits, _)) = &gate {
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
