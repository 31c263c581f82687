//! The scans on tensors: what an operation computes, and where it goes from there.

mod autodiff;
mod backend;
#[cfg(any(feature = "ndarray", feature = "flex"))]
mod cpu;
#[cfg(feature = "cubecl")]
mod cube;
#[cfg(feature = "cubecl")]
mod cube_elementwise;
#[cfg(any(feature = "ndarray", feature = "flex"))]
mod host;
#[cfg(any(feature = "ndarray", feature = "flex"))]
mod host_elementwise;
mod portable;
mod spec;

use burn::{backend::Dispatch, tensor::Tensor};

use crate::precision::check_dtypes;

pub use backend::ScanBackend;
pub use spec::{DecayKind, ElementwiseSpec, GradientOf, ScanSpec, StepSpec, WriteKind};
pub(crate) use spec::{ScanArguments, ScanGradients, SixTensors};

/// The linear recurrence with a matrix state over whole sequences.
///
/// ```text
/// S'  = D_t S_{t-1}
/// S_t = S' + k_t v_t^T   or   S' + beta_t k_t (v_t - S'^T k_t)^T
/// o_t = scale * S_t^T q_t
/// ```
///
/// Returns the output `[batch, time, heads, value_dim]`, in the type of `q`, and the final state
/// `[batch or segments, heads, key_dim, value_dim]`, in float32 (float64 for `q` in float64). Differentiable in every tensor; the backward
/// pass keeps the arguments and nothing else.
///
/// # Shapes
///
/// - `q`, `k`: `[batch, time, heads, key_dim]`; `v`: `[batch, time, heads, value_dim]`
/// - `log_decay`: `[batch, time, heads, key_dim]`, `[.., 1]` for a decay per head, as `spec` says
/// - `beta`: `[batch, time, heads]` for the delta rule
/// - `initial_state`: `[batch or segments, heads, key_dim, value_dim]`
///
/// # Panics
///
/// When `spec` asks for a tensor that is absent, or types (see the [crate]) do not fit. Shapes are
/// the caller's to check: `gatekit_core::scan` is the public door.
pub fn matrix_scan(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    log_decay: Option<Tensor<4>>,
    beta: Option<Tensor<3>>,
    initial_state: Option<Tensor<4>>,
    spec: ScanSpec,
) -> (Tensor<4>, Tensor<4>) {
    let others = [
        Some(k.dtype()),
        Some(v.dtype()),
        log_decay.as_ref().map(Tensor::dtype),
        beta.as_ref().map(Tensor::dtype),
        initial_state.as_ref().map(Tensor::dtype),
    ];
    check_dtypes("matrix_scan", q.dtype(), others);
    assert_eq!(log_decay.is_some(), spec.has_decay(), "`log_decay` and `spec.decay` disagree");
    assert_eq!(beta.is_some(), spec.write == WriteKind::Delta, "`beta` and `spec.write` disagree");
    assert_eq!(initial_state.is_some(), spec.has_initial_state, "`initial_state` and `spec` disagree");
    // An absent tensor travels as an untracked zero.
    let absent = Tensor::<1>::zeros([1], (&q.device(), q.dtype())).into_dispatch();
    let (output, state) = <Dispatch as ScanBackend>::matrix_scan(
        q.into_dispatch(),
        k.into_dispatch(),
        v.into_dispatch(),
        log_decay.map_or_else(|| absent.clone(), Tensor::into_dispatch),
        beta.map_or_else(|| absent.clone(), Tensor::into_dispatch),
        initial_state.map_or(absent, Tensor::into_dispatch),
        spec,
    );
    (Tensor::from_dispatch(output), Tensor::from_dispatch(state))
}

/// One step of [`matrix_scan`]: returns `o_t` `[batch, heads, value_dim]` and `S_t`.
///
/// Differentiable in every tensor, but made for inference: where nothing else holds the memory of
/// `state`, a fused kernel writes `S_t` into it.
///
/// # Shapes
///
/// - `q`, `k`: `[batch, heads, key_dim]`; `v`: `[batch, heads, value_dim]`
/// - `log_decay`: `[batch, heads, key_dim]`, `[.., 1]` for a decay per head, as `spec` says
/// - `beta`: `[batch, heads]` for the delta rule
/// - `state`: `[batch, heads, key_dim, value_dim]`
///
/// # Panics
///
/// As [`matrix_scan`].
pub fn matrix_scan_step(
    q: Tensor<3>,
    k: Tensor<3>,
    v: Tensor<3>,
    log_decay: Option<Tensor<3>>,
    beta: Option<Tensor<2>>,
    state: Tensor<4>,
    spec: StepSpec,
) -> (Tensor<3>, Tensor<4>) {
    let others = [
        Some(k.dtype()),
        Some(v.dtype()),
        log_decay.as_ref().map(Tensor::dtype),
        beta.as_ref().map(Tensor::dtype),
        Some(state.dtype()),
    ];
    check_dtypes("matrix_scan_step", q.dtype(), others);
    assert_eq!(log_decay.is_some(), spec.decay != DecayKind::None, "`log_decay` and `spec.decay` disagree");
    assert_eq!(beta.is_some(), spec.write == WriteKind::Delta, "`beta` and `spec.write` disagree");
    let absent = Tensor::<1>::zeros([1], (&q.device(), q.dtype())).into_dispatch();
    let (output, state) = <Dispatch as ScanBackend>::matrix_scan_step(
        q.into_dispatch(),
        k.into_dispatch(),
        v.into_dispatch(),
        log_decay.map_or_else(|| absent.clone(), Tensor::into_dispatch),
        beta.map_or(absent, Tensor::into_dispatch),
        state.into_dispatch(),
        spec,
    );
    (Tensor::from_dispatch(output), Tensor::from_dispatch(state))
}

/// The elementwise recurrence `h_t = exp(g_t) h_{t-1} + x_t` over whole sequences.
///
/// Returns `h` `[batch, time, dim]`, in the type of `x`, and the final states `[batch or segments, dim]`, in float32
/// (float64 for `x` in float64). The backward pass keeps `h`, so that in half precision the gradient of the log decay
/// is made from rounded states.
///
/// # Shapes
///
/// - `x`, `log_decay`: `[batch, time, dim]`
/// - `initial_state`: `[batch or segments, dim]`
///
/// # Panics
///
/// When `spec` asks for a state that is absent, or types (see the [crate]) do not fit.
pub fn elementwise_scan(
    x: Tensor<3>,
    log_decay: Tensor<3>,
    initial_state: Option<Tensor<2>>,
    spec: ElementwiseSpec,
) -> (Tensor<3>, Tensor<2>) {
    let others = [Some(log_decay.dtype()), initial_state.as_ref().map(Tensor::dtype)];
    check_dtypes("elementwise_scan", x.dtype(), others);
    assert_eq!(initial_state.is_some(), spec.has_initial_state, "`initial_state` and `spec` disagree");
    let absent = Tensor::<1>::zeros([1], (&x.device(), x.dtype())).into_dispatch();
    let (output, state) = <Dispatch as ScanBackend>::elementwise_scan(
        x.into_dispatch(),
        log_decay.into_dispatch(),
        initial_state.map_or(absent, Tensor::into_dispatch),
        spec,
    );
    (Tensor::from_dispatch(output), Tensor::from_dispatch(state))
}
