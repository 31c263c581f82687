//! The selective scan of state-space models on tensors: what the operation computes, and where it goes from there.

mod autodiff;
mod backend;
#[cfg(any(feature = "ndarray", feature = "flex"))]
mod cpu;
#[cfg(feature = "cubecl")]
mod cube;
#[cfg(any(feature = "ndarray", feature = "flex"))]
mod host;
mod portable;
mod spec;

use burn::{backend::Dispatch, tensor::Tensor};

use crate::{absent, precision::check_dtypes};

pub use backend::SelectiveBackend;
pub use spec::SelectiveSpec;
pub(crate) use spec::{SelectiveArguments, SelectiveStep};

/// The selective scan: a state of `N` numbers for every channel, whose decay depends on the input.
///
/// ```text
/// s_t[i,n] = exp(delta_t[i] a[i,n]) s_{t-1}[i,n] + x_t[i] b_t[n]
/// y_t[i]   = sum_n s_t[i,n] c_t[n]
/// ```
///
/// Returns `y` `[batch, time, channels]` in the dtype of `x`, and the final state
/// `[batch or segments, channels, N]` in float32 (float64 for float64 inputs). `x` is what the discretisation makes
/// of the input `u`: `delta u` for Mamba's Euler rule (Gu and Dao 2023, arXiv 2312.00752, equation 4 with its first
/// order), `(1 - exp(-delta)) u` for the exact rule with `a = -1`. Differentiable in every tensor; the backward pass
/// keeps the arguments and nothing else.
///
/// # Shapes
///
/// - `x`, `delta`: `[batch, time, channels]`, `delta` at least 0
/// - `a`: `[channels, N]`, at most 0
/// - `b`, `c`: `[batch, time, N]`
/// - `initial_state`: `[batch or segments, channels, N]`
///
/// # Panics
///
/// When `spec` asks for a state that is absent, or types (see the [crate]) do not fit. Shapes are the caller's
/// to check: `gatekit_core::scan` is the public door.
pub fn selective_scan(
    x: Tensor<3>,
    delta: Tensor<3>,
    a: Tensor<2>,
    b: Tensor<3>,
    c: Tensor<3>,
    initial_state: Option<Tensor<3>>,
    spec: SelectiveSpec,
) -> (Tensor<3>, Tensor<3>) {
    let others = [
        Some(delta.dtype()),
        Some(a.dtype()),
        Some(b.dtype()),
        Some(c.dtype()),
        initial_state.as_ref().map(Tensor::dtype),
    ];
    check_dtypes("selective_scan", x.dtype(), others);
    assert_eq!(initial_state.is_some(), spec.has_initial_state, "`initial_state` and `spec` disagree");
    let absent = absent(&x).into_dispatch();
    let (y, state) = <Dispatch as SelectiveBackend>::selective_scan(
        x.into_dispatch(),
        delta.into_dispatch(),
        a.into_dispatch(),
        b.into_dispatch(),
        c.into_dispatch(),
        initial_state.map_or(absent, Tensor::into_dispatch),
        spec,
    );
    (Tensor::from_dispatch(y), Tensor::from_dispatch(state))
}

/// One step of [`selective_scan`]: returns `y_t` `[batch, channels]` and `s_t` `[batch, channels, N]`.
///
/// Differentiable in every tensor, but made for inference: where nothing else holds the memory of `state`, a fused
/// kernel writes `s_t` into it. `fused` asks for the device's fused kernel where there is one.
///
/// # Shapes
///
/// - `x`, `delta`: `[batch, channels]`; `a`: `[channels, N]`; `b`, `c`: `[batch, N]`
/// - `state`: `[batch, channels, N]`
///
/// # Panics
///
/// As [`selective_scan`].
pub fn selective_scan_step(
    x: Tensor<2>,
    delta: Tensor<2>,
    a: Tensor<2>,
    b: Tensor<2>,
    c: Tensor<2>,
    state: Tensor<3>,
    fused: bool,
) -> (Tensor<2>, Tensor<3>) {
    let others = [delta.dtype(), a.dtype(), b.dtype(), c.dtype(), state.dtype()].map(Some);
    check_dtypes("selective_scan_step", x.dtype(), others);
    let (y, state) = <Dispatch as SelectiveBackend>::selective_scan_step(
        x.into_dispatch(),
        delta.into_dispatch(),
        a.into_dispatch(),
        b.into_dispatch(),
        c.into_dispatch(),
        state.into_dispatch(),
        fused,
    );
    (Tensor::from_dispatch(y), Tensor::from_dispatch(state))
}
