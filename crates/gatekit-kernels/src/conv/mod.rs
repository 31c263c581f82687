//! The short causal convolution on tensors: what the operation computes, and where it goes from there.

mod autodiff;
mod backend;
#[cfg(feature = "cubecl")]
mod cube;
#[cfg(any(feature = "ndarray", feature = "flex"))]
mod host;
mod portable;

use std::sync::Arc;

use burn::{
    backend::{Backend, Dispatch, TensorMetadata, tensor::FloatTensor},
    tensor::{DType, Tensor},
};

use crate::{
    absent,
    precision::{check_dtypes, narrow, widen},
};

pub use backend::ConvolutionBackend;

/// What a short convolution computes, besides its tensors.
#[derive(Debug, Clone, PartialEq)]
pub struct ConvolutionSpec {
    /// Whether each channel has a bias.
    pub has_bias: bool,
    /// Whether the inputs before the first step are given; else they are zeros.
    pub has_state: bool,
    /// Cumulative lengths of packed sequences `[0, .., time]`, for batch 1.
    pub boundaries: Option<Arc<[usize]>>,
    /// Whether the result goes through `z sigmoid(z)`.
    pub silu: bool,
}

/// The tensors of a short convolution; what the spec says is absent holds any value.
#[derive(Debug)]
pub(crate) struct ConvolutionArguments<B: Backend> {
    pub x: FloatTensor<B>,
    pub weight: FloatTensor<B>,
    pub bias: FloatTensor<B>,
    pub state: FloatTensor<B>,
}

impl<B: Backend> Clone for ConvolutionArguments<B> {
    fn clone(&self) -> Self {
        Self {
            x: self.x.clone(),
            weight: self.weight.clone(),
            bias: self.bias.clone(),
            state: self.state.clone(),
        }
    }
}

impl<B: Backend> ConvolutionArguments<B> {
    /// The types that the tensors are stored in.
    pub fn dtypes(&self) -> [DType; 4] {
        [self.x.dtype(), self.weight.dtype(), self.bias.dtype(), self.state.dtype()]
    }

    /// In the type that sums are made in.
    pub fn widened(self) -> Self {
        let [x, weight, bias, state] = widen::<B, 4>(self.into_tuple().into());
        Self { x, weight, bias, state }
    }

    /// In the types that the tensors are stored in.
    pub fn narrowed(self, dtypes: [DType; 4]) -> Self {
        let [x, weight, bias, state] = narrow::<B, 4>(self.into_tuple().into(), dtypes);
        Self { x, weight, bias, state }
    }

    /// In the order of the operation's arguments.
    pub fn into_tuple(self) -> (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>, FloatTensor<B>) {
        (self.x, self.weight, self.bias, self.state)
    }
}

/// Causal depthwise convolution `y[t,c] = act(sum_j weight[c,j] x[t-W+1+j,c] + bias[c])`.
///
/// `act` is the SiLU or nothing. Before the first step of a sequence stand the `W - 1` inputs of
/// its state, or zeros. With `boundaries` the one row of `x` holds several sequences, none of which
/// sees another. Differentiable in every tensor; the backward pass keeps the arguments and nothing
/// else.
///
/// # Shapes
///
/// - `x`: `[batch, time, channels]`, as is the result, in the same type; batch 1 with `boundaries`
/// - `weight`: `[channels, W]`, the last tap meets the current input; `bias`: `[channels]`
/// - `state`: `[batch or sequences, W - 1, channels]`
///
/// # Panics
///
/// When shapes or types (see the [crate]) do not fit. The boundaries, strictly increasing, are
/// the caller's to check.
pub fn short_convolution(
    x: Tensor<3>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    state: Option<Tensor<3>>,
    boundaries: Option<Arc<[usize]>>,
    silu: bool,
) -> Tensor<3> {
    let ([batch, _, channels], [filters, taps]) = (x.dims(), weight.dims());
    let optional = [bias.as_ref().map(Tensor::dtype), state.as_ref().map(Tensor::dtype)];
    check_dtypes("short_convolution", x.dtype(), [Some(weight.dtype()), optional[0], optional[1]]);
    assert!(filters == channels && taps > 0, "short_convolution: `weight` {:?} of {channels}", weight.dims());
    assert!(boundaries.is_none() || batch == 1, "short_convolution: packed sequences in {batch} rows");
    if let Some(bias) = &bias {
        assert_eq!(bias.dims(), [channels], "short_convolution: shape of `bias`");
    }
    if let Some(state) = &state {
        let sequences = boundaries.as_ref().map_or(batch, |boundaries| boundaries.len() - 1);
        assert_eq!(state.dims(), [sequences, taps - 1, channels], "short_convolution: shape of `state`");
    }
    // A filter of one tap sees no earlier inputs.
    let state = state.filter(|_| taps > 1);
    let spec = ConvolutionSpec { has_bias: bias.is_some(), has_state: state.is_some(), boundaries, silu };
    let absent = absent(&x).into_dispatch();
    Tensor::from_dispatch(<Dispatch as ConvolutionBackend>::short_convolution(
        x.into_dispatch(),
        weight.into_dispatch(),
        bias.map_or_else(|| absent.clone(), Tensor::into_dispatch),
        state.map_or(absent, Tensor::into_dispatch),
        spec,
    ))
}
