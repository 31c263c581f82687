//! One token of a recurrence with a matrix state.

use burn::tensor::{DType, Tensor};

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
/// - `state`: `[batch, heads, key_dim, value_dim]`
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
    let [batch, heads, key_dim] = q.dims();
    let value_dim = v.dims()[2];
    same("k", k.dims(), "q", q.dims());
    same("v", v.dims(), "[batch, heads, value_dim]", [batch, heads, value_dim]);
    let state_shape = [batch, heads, key_dim, value_dim];
    same("state", state.dims(), "[batch, heads, key_dim, value_dim]", state_shape);

    let dtype = q.dtype();
    let wide = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
    let scale = scale.unwrap_or((key_dim as f64).powf(-0.5));
    let column = |x: Tensor<3>| x.cast(wide).unsqueeze_dim::<4>(3);
    let row = |x: Tensor<3>| x.cast(wide).unsqueeze_dim::<4>(2);

    let state = state.cast(wide);
    let state = match decay {
        StepDecay::None => state,
        StepDecay::PerHead(gate) => {
            same("log_gate", gate.dims(), "[batch, heads]", [batch, heads]);
            state * gate.cast(wide).exp().reshape([batch, heads, 1, 1])
        }
        StepDecay::PerKey(gate) => {
            same("log_gate", gate.dims(), "q", [batch, heads, key_dim]);
            state * column(gate).exp()
        }
    };
    let write = match beta {
        None => row(v),
        Some(beta) => {
            same("beta", beta.dims(), "[batch, heads]", [batch, heads]);
            let held = row(k.clone()).matmul(state.clone());
            (row(v) - held) * beta.cast(wide).reshape([batch, heads, 1, 1])
        }
    };
    let state = state + column(k) * write;
    let output = row(q).mul_scalar(scale).matmul(state.clone()).squeeze_dim::<3>(2);
    (output.cast(dtype), state)
}
