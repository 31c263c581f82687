//! One token of a recurrence with a matrix state.

use burn::tensor::Tensor;
use gatekit_kernels::scan::{DecayKind, StepSpec, WriteKind, matrix_scan_step};

use super::check::same;

/// The log decay of one step.
#[derive(Debug, Clone)]
pub enum StepDecay {
    /// The state keeps everything.
    None,
    /// One log decay per head, `[batch, heads]`.
    PerHead(Tensor<2>),
    /// One log decay per key channel, `[batch, heads, key_dim]`.
    PerKey(Tensor<3>),
}

/// One step of [`linear_recurrence`](super::linear_recurrence): returns `o_t`
/// `[batch, heads, value_dim]` and `S_t`.
///
/// `beta` `[batch, heads]` selects the delta rule, `None` the additive write. `scale` defaults to
/// `K^-1/2`. Costs `O(K V)` a head, whatever the number of tokens before.
///
/// # Shapes
///
/// - `q`, `k`: `[batch, heads, key_dim]`
/// - `v`: `[batch, heads, value_dim]`
/// - `state`: `[batch, heads, key_dim, value_dim]`; the result is in float32 (float64 for `q` in float64)
///
/// # Panics
///
/// When shapes disagree; the message names the argument and both shapes.
pub fn linear_recurrence_step(
    q: Tensor<3>,
    k: Tensor<3>,
    v: Tensor<3>,
    decay: StepDecay,
    beta: Option<Tensor<2>>,
    state: Tensor<4>,
    scale: Option<f64>,
) -> (Tensor<3>, Tensor<4>) {
    step(q, k, v, decay, beta, state, scale, true)
}

/// [`linear_recurrence_step`] with or without the device's fused kernel.
pub(super) fn step(
    q: Tensor<3>,
    k: Tensor<3>,
    v: Tensor<3>,
    decay: StepDecay,
    beta: Option<Tensor<2>>,
    state: Tensor<4>,
    scale: Option<f64>,
    fused: bool,
) -> (Tensor<3>, Tensor<4>) {
    let [batch, heads, key_dim] = q.dims();
    let value_dim = v.dims()[2];
    same("k", k.dims(), "q", q.dims());
    same("v", v.dims(), "[batch, heads, value_dim]", [batch, heads, value_dim]);
    let state_shape = [batch, heads, key_dim, value_dim];
    same("state", state.dims(), "[batch, heads, key_dim, value_dim]", state_shape);

    let (log_gate, decay) = match decay {
        StepDecay::None => (None, DecayKind::None),
        StepDecay::PerHead(gate) => {
            same("log_gate", gate.dims(), "[batch, heads]", [batch, heads]);
            (Some(gate.unsqueeze_dim(2)), DecayKind::PerHead)
        }
        StepDecay::PerKey(gate) => {
            same("log_gate", gate.dims(), "q", [batch, heads, key_dim]);
            (Some(gate), DecayKind::PerKey)
        }
    };
    if let Some(beta) = &beta {
        same("beta", beta.dims(), "[batch, heads]", [batch, heads]);
    }
    let write = if beta.is_some() { WriteKind::Delta } else { WriteKind::Additive };

    let spec = StepSpec { scale: scale.unwrap_or((key_dim as f64).powf(-0.5)), decay, write, fused };
    matrix_scan_step(q, k, v, log_gate, beta, state, spec)
}
