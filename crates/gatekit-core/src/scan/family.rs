//! The published members of the family, each in its own terms.

use burn::tensor::Tensor;

use super::{Decay, ScanOptions, ScanOutput, Write, check::same, linear_recurrence};
use crate::{
    decay::{log_sigmoid_stable, lower_bounded_log_gate, lower_bounded_write_gate, retention_log_decay},
    gate::sigmoid,
    norm::l2_normalize,
    sequence::Boundaries,
};

/// Gated linear attention: a learned decay per key channel, additive write.
///
/// `S_t = diag(exp g_t) S_{t-1} + k_t v_t^T`, `o_t = scale * S_t^T q_t`
/// (Yang et al. 2024, arXiv 2312.06635, equation 3).
///
/// Shapes and panics as [`linear_recurrence`]; `log_gate` is `[batch, time, heads, key_dim]`.
pub fn gated_linear_attention(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    log_gate: Tensor<4>,
    initial_state: Option<Tensor<4>>,
    boundaries: Option<&Boundaries>,
    options: &ScanOptions,
) -> ScanOutput {
    linear_recurrence(q, k, v, Decay::PerKey(log_gate), Write::Additive, initial_state, boundaries, options)
}

/// Retention: the fixed log decay `log(1 - 2^(-5-h))` of head `h`, additive write
/// (Sun et al. 2023, arXiv 2307.08621).
///
/// Shapes and panics as [`linear_recurrence`].
pub fn retention(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    initial_state: Option<Tensor<4>>,
    boundaries: Option<&Boundaries>,
    options: &ScanOptions,
) -> ScanOutput {
    let [batch, time, heads, _] = q.dims();
    let decay = retention_log_decay(heads, &q.device()).reshape([1, 1, heads]).expand([batch, time, heads]);
    linear_recurrence(q, k, v, Decay::PerHead(decay), Write::Additive, initial_state, boundaries, options)
}

/// HGRN2: the forget gate is lower-bounded and the key is what the gate forgets, `k = 1 - exp g`
/// (Qin et al. 2024, arXiv 2404.07904).
///
/// `g = log(lb + (1 - lb) sigmoid(f))` and `k = (1 - lb) sigmoid(-f)`, without subtraction.
///
/// # Shapes
///
/// - `q`, `forget_logits`: `[batch, time, heads, key_dim]`
/// - `v`: `[batch, time, heads, value_dim]`
/// - `lower_bound`: `[heads, key_dim]`, in `(0, 1)`; `None`: no bound
///
/// Panics as [`linear_recurrence`].
pub fn hgrn2(
    q: Tensor<4>,
    forget_logits: Tensor<4>,
    v: Tensor<4>,
    lower_bound: Option<Tensor<2>>,
    initial_state: Option<Tensor<4>>,
    boundaries: Option<&Boundaries>,
    options: &ScanOptions,
) -> ScanOutput {
    let (log_gate, k) = match lower_bound {
        None => (log_sigmoid_stable(forget_logits.clone()), sigmoid(forget_logits.neg())),
        Some(bound) => {
            let shape = forget_logits.dims();
            same("lower_bound", bound.dims(), "[heads, key_dim]", [shape[2], shape[3]]);
            let bound = bound.unsqueeze::<4>();
            let log_gate = lower_bounded_log_gate(forget_logits.clone(), bound.clone());
            (log_gate, lower_bounded_write_gate(forget_logits, bound))
        }
    };
    gated_linear_attention(q, k, v, log_gate, initial_state, boundaries, options)
}

/// The delta rule without decay: `S_t = S_{t-1} + beta_t k_t (v_t - S_{t-1}^T k_t)^T`
/// (Schlag et al. 2021, arXiv 2102.11174; Yang et al. 2024, arXiv 2406.06484).
///
/// # Shapes
///
/// - `q`, `k`: `[batch, time, heads, key_dim]`
/// - `v`: `[batch, time, value_heads, value_dim]`, `value_heads` a multiple of `heads`: value head
///   `j` uses the query and key of head `j / (value_heads / heads)`
/// - `beta`: `[batch, time, value_heads]`, in `[0, 2]`
/// - states: `[batch or segments, value_heads, key_dim, value_dim]`
///
/// With `use_qk_l2norm` queries and keys are normalised, `x / sqrt(sum x^2 + 1e-6)`. Keys longer
/// than `sqrt(2 / beta)` make the state grow without bound. Panics as [`linear_recurrence`].
pub fn delta_rule(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    beta: Tensor<3>,
    initial_state: Option<Tensor<4>>,
    boundaries: Option<&Boundaries>,
    use_qk_l2norm: bool,
    options: &ScanOptions,
) -> ScanOutput {
    delta_scan(q, k, v, Decay::None, beta, initial_state, boundaries, use_qk_l2norm, options)
}

/// The gated delta rule: one decay per value head before the delta write
/// (Yang et al. 2024, arXiv 2412.06464).
///
/// `log_gate` is `[batch, time, value_heads]`; all else as [`delta_rule`].
pub fn gated_delta_rule(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    log_gate: Tensor<3>,
    beta: Tensor<3>,
    initial_state: Option<Tensor<4>>,
    boundaries: Option<&Boundaries>,
    use_qk_l2norm: bool,
    options: &ScanOptions,
) -> ScanOutput {
    let decay = Decay::PerHead(log_gate);
    delta_scan(q, k, v, decay, beta, initial_state, boundaries, use_qk_l2norm, options)
}

/// Kimi Delta Attention: one decay per key channel before the delta write
/// (Kimi Team 2025, arXiv 2510.26692, equation 1).
///
/// `log_gate` is `[batch, time, value_heads, key_dim]`; all else as [`delta_rule`].
pub fn kimi_delta_attention(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    log_gate: Tensor<4>,
    beta: Tensor<3>,
    initial_state: Option<Tensor<4>>,
    boundaries: Option<&Boundaries>,
    use_qk_l2norm: bool,
    options: &ScanOptions,
) -> ScanOutput {
    let decay = Decay::PerKey(log_gate);
    delta_scan(q, k, v, decay, beta, initial_state, boundaries, use_qk_l2norm, options)
}

fn delta_scan(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    decay: Decay,
    beta: Tensor<3>,
    initial_state: Option<Tensor<4>>,
    boundaries: Option<&Boundaries>,
    use_qk_l2norm: bool,
    options: &ScanOptions,
) -> ScanOutput {
    let (q, k) = if use_qk_l2norm { (l2_normalize(q), l2_normalize(k)) } else { (q, k) };
    let value_heads = v.dims()[2];
    let (q, k) = (share_heads("q", q, value_heads), share_heads("k", k, value_heads));
    linear_recurrence(q, k, v, decay, Write::Delta(beta), initial_state, boundaries, options)
}

/// Repeats every head for the value heads that share it.
fn share_heads(name: &str, x: Tensor<4>, value_heads: usize) -> Tensor<4> {
    let [batch, time, heads, dim] = x.dims();
    assert!(
        value_heads.is_multiple_of(heads),
        "scan: `{name}` has {heads} heads, `v` has {value_heads}: not a multiple"
    );
    if heads == value_heads {
        return x;
    }
    x.unsqueeze_dim::<5>(3).expand([batch, time, heads, value_heads / heads, dim]).reshape([
        batch,
        time,
        value_heads,
        dim,
    ])
}
