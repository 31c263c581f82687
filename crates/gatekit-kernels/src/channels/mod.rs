//! Normalisation of channels on tensors: what the operations compute, and where they go from there.

mod autodiff;
mod backend;
#[cfg(any(feature = "ndarray", feature = "flex"))]
mod host;
mod portable;

use burn::{
    backend::{Backend, Dispatch, tensor::FloatTensor},
    tensor::Tensor,
};

use crate::{gate::Activation, precision::check_dtypes};

pub use backend::ChannelBackend;

/// What a normalisation of channels computes, besides its tensors.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ChannelNormSpec {
    /// Added to the variances, above 0.
    pub epsilon: f64,
    /// Whether mean and variance are those of `x` itself, so that they are differentiated with it.
    pub of_x: bool,
    /// What the result goes through; `None`: nothing.
    pub activation: Option<Activation>,
}

/// The tensors of a normalisation of channels.
#[derive(Debug)]
pub(crate) struct ChannelArguments<B: Backend> {
    pub x: FloatTensor<B>,
    pub gamma: FloatTensor<B>,
    pub beta: FloatTensor<B>,
    pub mean: FloatTensor<B>,
    pub variance: FloatTensor<B>,
}

impl<B: Backend> Clone for ChannelArguments<B> {
    fn clone(&self) -> Self {
        Self {
            x: self.x.clone(),
            gamma: self.gamma.clone(),
            beta: self.beta.clone(),
            mean: self.mean.clone(),
            variance: self.variance.clone(),
        }
    }
}

/// Mean and biased variance of every channel, over batch and places, without gradients.
///
/// # Shapes
///
/// - `x`: `[batch, channels, places]`, at least one place; results `[channels]`, in the type of `x`
///
/// # Panics
///
/// When the type is not a float type.
pub fn channel_statistics(x: Tensor<3>) -> (Tensor<1>, Tensor<1>) {
    check_dtypes("channel_statistics", x.dtype(), []);
    let (mean, variance) = <Dispatch as ChannelBackend>::channel_statistics(x.into_dispatch());
    (Tensor::from_dispatch(mean), Tensor::from_dispatch(variance))
}

/// `y = act(gamma (x - mean) / sqrt(variance + epsilon) + beta)`, a channel at a time.
///
/// Differentiable in `x`, `gamma` and `beta`: with `of_x`, where mean and variance are the
/// [statistics](channel_statistics) of `x`, through them as well. The backward pass keeps the arguments and nothing else.
/// Ioffe and Szegedy (arXiv 1502.03167), algorithm 1.
///
/// # Shapes
///
/// - `x`: `[batch, channels, places]`, as is the result, in the same type
/// - `gamma`, `beta`, `mean`, `variance`: `[channels]`
///
/// # Panics
///
/// When shapes or types (see the [crate]) do not fit.
pub fn channel_norm(
    x: Tensor<3>,
    [gamma, beta]: [Tensor<1>; 2],
    [mean, variance]: [Tensor<1>; 2],
    spec: ChannelNormSpec,
) -> Tensor<3> {
    let [_, channels, _] = x.dims();
    for (name, tensor) in [("gamma", &gamma), ("beta", &beta), ("mean", &mean), ("variance", &variance)] {
        assert!(
            tensor.dims() == [channels],
            "channel_norm: `{name}` {:?} does not have the channels of `x` {:?}",
            tensor.dims(),
            x.dims()
        );
    }
    let types = [&gamma, &beta, &mean, &variance].map(|tensor| Some(tensor.dtype()));
    check_dtypes("channel_norm", x.dtype(), types);
    Tensor::from_dispatch(<Dispatch as ChannelBackend>::channel_norm(
        x.into_dispatch(),
        gamma.into_dispatch(),
        beta.into_dispatch(),
        mean.into_dispatch(),
        variance.into_dispatch(),
        spec,
    ))
}
