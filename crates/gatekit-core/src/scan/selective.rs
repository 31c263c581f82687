//! The selective scan: state-space models whose steps, inputs and outputs depend on the token.

use burn::tensor::{DType, Tensor};
use gatekit_kernels::selective;

use super::{
    ScanForm,
    check::{holds, rows, same},
};
use crate::{
    common::widen,
    gate::{GateActivation, output_gate},
    sequence::Boundaries,
};

/// How the continuous system `s' = a s + b u`, held over a step of length `delta`, becomes a recurrence. The decay is
/// `exp(delta a)` in either.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Discretisation {
    /// `x_t = delta_t u_t`: Euler's rule for the input, as Mamba's code has it.
    #[default]
    Euler,
    /// `x_t = (exp(delta_t a) - 1) / a u_t`: exact for an input that stays the same over the step (zero-order hold).
    /// Every channel must have one `a`, the same for all its N numbers, below 0.
    ZeroOrderHold,
}

/// How a selective scan is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SelectiveOptions {
    /// How the input enters. Default [`Discretisation::Euler`].
    pub discretisation: Discretisation,
    /// Which form computes it. Default [`ScanForm::Auto`].
    pub form: ScanForm,
}

/// Result of [`selective_scan`].
#[derive(Debug, Clone)]
pub struct SelectiveOutput {
    /// `[batch, time, channels]`, in the dtype of `u`.
    pub output: Tensor<3>,
    /// `s_T`, `[batch, channels, N]`, or `[segments, ..]` for packed sequences, in float32 (float64 for float64
    /// inputs).
    pub final_state: Tensor<3>,
}

/// The selective scan of Mamba (Gu and Dao 2023, arXiv 2312.00752, algorithm 2), with its skip connection and gate.
///
/// ```text
/// s_t[i,n] = exp(delta_t[i] a[i,n]) s_{t-1}[i,n] + x_t[i] b_t[n]      x_t from u_t by the discretisation
/// y_t[i]   = (sum_n s_t[i,n] c_t[n] + d[i] u_t[i]) silu(z_t[i])
/// ```
///
/// # Shapes
///
/// - `u`, `delta`: `[batch, time, channels]`, steps `delta` finite and at least 0
/// - `a`: `[channels, N]`, at most 0
/// - `b`, `c`: `[batch, time, N]`
/// - `d`: `[channels]`; nothing is added when absent
/// - `z`: `[batch, time, channels]`, the gate's logits; no gate when absent
/// - `initial_state`: `[batch, channels, N]`; zero when absent
/// - with `boundaries` the batch is 1, segments start from their own initial state, and states are
///   `[segments, channels, N]`
///
/// Half-precision inputs are computed in float32, and may be mixed with float32 ones. NaN passes through.
///
/// # Panics
///
/// When shapes disagree (the message names the argument and both shapes) or `time` is 0. Debug builds also refuse a
/// negative `delta`, a positive `a`, and an `a` that does not fit [`Discretisation::ZeroOrderHold`].
pub fn selective_scan(
    u: Tensor<3>,
    delta: Tensor<3>,
    a: Tensor<2>,
    b: Tensor<3>,
    c: Tensor<3>,
    d: Option<Tensor<1>>,
    z: Option<Tensor<3>>,
    initial_state: Option<Tensor<3>>,
    boundaries: Option<&Boundaries>,
    options: &SelectiveOptions,
) -> SelectiveOutput {
    let [batch, time, channels] = u.dims();
    let size = a.dims()[1];
    assert!(time > 0 && batch > 0, "scan: `u` has no time step or an empty batch, shape {:?}", u.dims());
    same("delta", delta.dims(), "u", u.dims());
    same("a", a.dims(), "[channels, N]", [channels, size]);
    same("b", b.dims(), "[batch, time, N]", [batch, time, size]);
    same("c", c.dims(), "[batch, time, N]", [batch, time, size]);
    let states = rows(batch, time, boundaries);
    if let Some(state) = &initial_state {
        same("initial_state", state.dims(), "[batch or segments, channels, N]", [states, channels, size]);
    }
    check_values(&delta, &a, options.discretisation);

    let dtype = u.dtype();
    let x = input(u.clone(), delta.clone(), &a, options.discretisation);
    let (y, final_state) = match options.form {
        ScanForm::Recurrent => recurrent(x, delta, a, b, c, initial_state, boundaries),
        form => {
            let spec = selective::SelectiveSpec {
                has_initial_state: initial_state.is_some(),
                boundaries: boundaries.map(Boundaries::shared),
                fused: form == ScanForm::Auto,
            };
            selective::selective_scan(x, delta, a, b, c, initial_state, spec)
        }
    };
    SelectiveOutput { output: finish(y, u, d, z).cast(dtype), final_state }
}

/// One step of [`selective_scan`]: returns `y_t` `[batch, channels]` and `s_t`.
///
/// Costs `O(channels N)`, whatever the number of tokens before. Where nothing else holds the memory of `state`, a
/// fused kernel writes `s_t` into it.
///
/// # Shapes
///
/// - `u`, `delta`, `z`: `[batch, channels]`; `a`: `[channels, N]`; `b`, `c`: `[batch, N]`; `d`: `[channels]`
/// - `state`: `[batch, channels, N]`; the result is in float32 (float64 for `u` in float64)
///
/// # Panics
///
/// When shapes disagree; the message names the argument and both shapes.
pub fn selective_scan_step(
    u: Tensor<2>,
    delta: Tensor<2>,
    a: Tensor<2>,
    b: Tensor<2>,
    c: Tensor<2>,
    d: Option<Tensor<1>>,
    z: Option<Tensor<2>>,
    state: Tensor<3>,
    discretisation: Discretisation,
) -> (Tensor<2>, Tensor<3>) {
    let [batch, channels] = u.dims();
    let size = a.dims()[1];
    same("delta", delta.dims(), "u", u.dims());
    same("a", a.dims(), "[channels, N]", [channels, size]);
    same("b", b.dims(), "[batch, N]", [batch, size]);
    same("c", c.dims(), "[batch, N]", [batch, size]);
    same("state", state.dims(), "[batch, channels, N]", [batch, channels, size]);

    let dtype = u.dtype();
    let x = input(u.clone(), delta.clone(), &a, discretisation);
    let (y, state) = selective::selective_scan_step(x, delta, a, b, c, state, true);
    (finish(y, u, d, z).cast(dtype), state)
}

/// What a step adds to the state, before `b`; in float32 or float64.
fn input<const D: usize>(
    u: Tensor<D>,
    delta: Tensor<D>,
    a: &Tensor<2>,
    discretisation: Discretisation,
) -> Tensor<D> {
    let (u, delta) = (widen(u), widen(delta));
    match discretisation {
        Discretisation::Euler => delta * u,
        Discretisation::ZeroOrderHold => {
            let channels = a.dims()[0];
            let rate = widen(a.clone().narrow(1, 0, 1)).neg().reshape([channels]).unsqueeze::<D>();
            // 1 - exp(-w) without the cancellation at small w.
            let t = (delta * rate.clone()).div_scalar(2.0).tanh();
            let kept = t.clone().add_scalar(1.0);
            u * t.mul_scalar(2.0) / (kept * rate)
        }
    }
}

/// The skip connection and the gate.
fn finish<const D: usize>(
    y: Tensor<D>,
    u: Tensor<D>,
    d: Option<Tensor<1>>,
    z: Option<Tensor<D>>,
) -> Tensor<D> {
    let y = match d {
        Some(d) => {
            same("d", d.dims(), "[channels]", [u.dims()[D - 1]]);
            y + widen(d).unsqueeze::<D>() * widen(u)
        }
        None => y,
    };
    match z {
        Some(z) => {
            same("z", z.dims(), "u", y.dims());
            output_gate(y, z, GateActivation::Swish)
        }
        None => y,
    }
}

fn check_values(delta: &Tensor<3>, a: &Tensor<2>, discretisation: Discretisation) {
    // A NaN is not below or above anything: it passes.
    holds("delta", delta, "a value of at least 0", |delta| delta >= 0.0 || delta.is_nan());
    match discretisation {
        Discretisation::Euler => holds("a", a, "a value of at most 0", |a| a <= 0.0 || a.is_nan()),
        Discretisation::ZeroOrderHold => {
            holds("a", a, "a value below 0", |a| a < 0.0 || a.is_nan());
            let size = a.dims()[1];
            let spread = a.clone() - a.clone().narrow(1, 0, 1).expand([a.dims()[0], size]);
            holds("a minus its first column", &spread, "0: one value a channel", |spread| {
                spread == 0.0 || spread.is_nan()
            });
        }
    }
}

/// Step by step in tensor operations.
fn recurrent(
    x: Tensor<3>,
    delta: Tensor<3>,
    a: Tensor<2>,
    b: Tensor<3>,
    c: Tensor<3>,
    initial_state: Option<Tensor<3>>,
    boundaries: Option<&Boundaries>,
) -> (Tensor<3>, Tensor<3>) {
    let [batch, time, channels] = x.dims();
    let size = a.dims()[1];
    let wide = if x.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
    let whole = [0, time];
    let cu_seqlens = boundaries.map_or(&whole[..], Boundaries::cu_seqlens);
    let (mut outputs, mut states) = (Vec::with_capacity(time), Vec::new());
    for (segment, ends) in cu_seqlens.windows(2).enumerate() {
        let mut state = match &initial_state {
            Some(state) if boundaries.is_some() => state.clone().narrow(0, segment, 1),
            Some(state) => state.clone(),
            None => Tensor::zeros([batch, channels, size], (&x.device(), wide)),
        };
        for t in ends[0]..ends[1] {
            let at = |tensor: &Tensor<3>| tensor.clone().narrow(1, t, 1).squeeze_dim::<2>(1);
            let (y, next) =
                selective::selective_scan_step(at(&x), at(&delta), a.clone(), at(&b), at(&c), state, false);
            outputs.push(y);
            state = next;
        }
        states.push(state);
    }
    (Tensor::stack(outputs, 1), Tensor::cat(states, 0))
}

#[cfg(test)]
mod tests;
