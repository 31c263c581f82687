//! Normalisation of channels on tensors: what the operations compute, and where they go from there.

mod autodiff;
mod backend;
#[cfg(any(feature = "ndarray", feature = "flex"))]
mod host;
#[cfg(any(feature = "ndarray", feature = "flex"))]
mod host_maps;
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

/// `y = scale (base + refined (1 + spatial) + gate guidance) + shift`, what a gated exchange of two streams leaves, in one
/// pass and without gradients.
///
/// # Shapes
///
/// - `base`, `refined`, `gate`, `guidance`: `[batch, channels, places]`, as is the result, all in one type
/// - `spatial`: `[batch, 1, places]`; `scale`, `shift`: `[channels]`
///
/// # Panics
///
/// When shapes or types do not fit.
pub fn merge_maps(
    [base, refined]: [Tensor<3>; 2],
    spatial: Tensor<3>,
    [gate, guidance]: [Tensor<3>; 2],
    [scale, shift]: [Tensor<1>; 2],
) -> Tensor<3> {
    let (dims, dtype) = (base.dims(), base.dtype());
    check_dtypes("merge_maps", dtype, []);
    for (name, map) in [("refined", &refined), ("gate", &gate), ("guidance", &guidance)] {
        let fits = map.dims() == dims && map.dtype() == dtype;
        assert!(fits, "merge_maps: `{name}` {:?} is not like `base` {dims:?}", map.dims());
    }
    let fits = spatial.dims() == [dims[0], 1, dims[2]] && spatial.dtype() == dtype;
    assert!(fits, "merge_maps: `spatial` {:?} is not one map for each of `base` {dims:?}", spatial.dims());
    for (name, row) in [("scale", &scale), ("shift", &shift)] {
        let fits = row.dims() == [dims[1]] && row.dtype() == dtype;
        assert!(fits, "merge_maps: `{name}` {:?} does not have the channels of `base` {dims:?}", row.dims());
    }
    Tensor::from_dispatch(<Dispatch as ChannelBackend>::merge_maps(
        base.into_dispatch(),
        refined.into_dispatch(),
        spatial.into_dispatch(),
        gate.into_dispatch(),
        guidance.into_dispatch(),
        scale.into_dispatch(),
        shift.into_dispatch(),
    ))
}

/// `y[b,c,n] = (1 + spatial[b,0,n]) sum_m weights[b,m,n] x[b,m C + c,n]`: maps of M groups of C channels mixed position by
/// position, in one pass and without gradients.
///
/// # Shapes
///
/// - `x`: `[batch, M C, places]`, `weights`: `[batch, M, places]`, `spatial`: `[batch, 1, places]`, all in one type
/// - result: `[batch, C, places]`
///
/// # Panics
///
/// When shapes or types do not fit.
pub fn mix_maps(x: Tensor<3>, weights: Tensor<3>, spatial: Tensor<3>) -> Tensor<3> {
    let ([batch, channels, places], [_, groups, _]) = (x.dims(), weights.dims());
    check_dtypes("mix_maps", x.dtype(), []);
    assert!(
        groups > 0 && channels.is_multiple_of(groups) && weights.dims() == [batch, groups, places],
        "mix_maps: `weights` {:?} do not fit `x` {:?}",
        weights.dims(),
        x.dims()
    );
    assert!(
        spatial.dims() == [batch, 1, places],
        "mix_maps: `spatial` {:?} does not fit `x` {:?}",
        spatial.dims(),
        x.dims()
    );
    let same = weights.dtype() == x.dtype() && spatial.dtype() == x.dtype();
    assert!(same, "mix_maps: `x` is in {:?}, another tensor is not: cast it first", x.dtype());
    Tensor::from_dispatch(<Dispatch as ChannelBackend>::mix_maps(
        x.into_dispatch(),
        weights.into_dispatch(),
        spatial.into_dispatch(),
    ))
}
