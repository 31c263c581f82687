//! Linear recurrences: one family with a matrix state, the elementwise recurrence and the selective scan.
//!
//! With query `q_t`, key `k_t` (width `K`), value `v_t` (width `V`) and state `S_t` `[K, V]` per
//! batch row and head:
//!
//! ```text
//! S'  = D_t S_{t-1}                      D_t: identity, exp(g_t) per head, or diag(exp(g_t)) per key channel
//! S_t = S' + k_t v_t^T                   additive write
//! S_t = S' + beta_t k_t (v_t - S'^T k_t)^T    delta rule: what the key held is replaced by the new value
//! o_t = scale * S_t^T q_t
//! ```
//!
//! The decay of step `t` acts on `S_{t-1}`, not on what step `t` writes. Log decays `g` are at
//! most 0. [`linear_recurrence`] computes whole sequences, [`linear_recurrence_step`] one token;
//! the published members of the family ([`gated_linear_attention`], [`retention`], [`hgrn2`],
//! [`delta_rule`], [`gated_delta_rule`], [`kimi_delta_attention`], [`LightningAttention`]) call them.
//! [`elementwise_recurrence`] has a vector state, [`selective_scan`] a vector of N numbers for every channel.
//!
//! Sources: Yang et al. 2024 (arXiv 2312.06635) for gated linear attention and its chunked form,
//! Kimi Team 2025 (arXiv 2510.26692) for the delta rule with a decay per channel.

mod check;
mod elementwise;
mod family;
mod lightning;
mod recurrent;
mod selective;
mod step;

use burn::tensor::Tensor;
use gatekit_kernels::scan::{DecayKind, ScanSpec, WriteKind, matrix_scan};

use crate::sequence::Boundaries;

pub use elementwise::{ElementwiseOutput, elementwise_recurrence, elementwise_recurrence_step};
pub use family::{
    delta_rule, gated_delta_rule, gated_linear_attention, hgrn2, kimi_delta_attention, retention,
};
pub use lightning::LightningAttention;
pub use selective::{Discretisation, SelectiveOptions, SelectiveOutput, selective_scan, selective_scan_step};
pub use step::{StepDecay, linear_recurrence_step};

/// How a scan is computed; never what it computes.
#[derive(Debug, Clone, PartialEq)]
pub struct ScanOptions {
    /// Factor on the queries. `None`: `K^-1/2`.
    pub scale: Option<f64>,
    /// Steps that are computed together as matrix products. Default 64.
    pub chunk_size: usize,
    /// Within a chunk, steps whose decays per key channel are combined elementwise. Default 16.
    pub sub_chunk_size: usize,
    /// Which form computes it. Default [`ScanForm::Auto`].
    pub form: ScanForm,
}

impl Default for ScanOptions {
    fn default() -> Self {
        Self { scale: None, chunk_size: 64, sub_chunk_size: 16, form: ScanForm::Auto }
    }
}

/// The forms of a scan. All compute the same function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ScanForm {
    /// The fused kernel of the tensor's device where there is one, else [`Portable`](Self::Portable).
    #[default]
    Auto,
    /// Chunked matrix products in tensor operations, with an analytic backward pass that keeps one
    /// state a chunk.
    Portable,
    /// Step by step in tensor operations, differentiated by Burn. Slow; the yardstick.
    Recurrent,
}

/// What the state keeps from one step to the next.
#[derive(Debug, Clone)]
pub enum Decay {
    /// Everything.
    None,
    /// One log decay per head, `[batch, time, heads]`, at most 0.
    PerHead(Tensor<3>),
    /// One log decay per key channel, `[batch, time, heads, key_dim]`, at most 0.
    PerKey(Tensor<4>),
}

/// How a step writes into the state.
#[derive(Debug, Clone)]
// Lives for one call; a box would cost every delta scan an allocation.
#[allow(clippy::large_enum_variant)]
pub enum Write {
    /// `+ k v^T`.
    Additive,
    /// `+ beta k (v - S'^T k)^T` with `beta` `[batch, time, heads]` in `[0, 2]`.
    Delta(Tensor<3>),
}

/// Result of a scan with a matrix state.
#[derive(Debug, Clone)]
pub struct ScanOutput {
    /// `[batch, time, heads, value_dim]`, in the dtype of `q`.
    pub output: Tensor<4>,
    /// `[batch, heads, key_dim, value_dim]`, or `[segments, ..]` for packed sequences, in float32
    /// (float64 for float64 inputs).
    pub final_state: Tensor<4>,
}

/// The whole family: see the [module](self) for the equations.
///
/// # Shapes
///
/// - `q`, `k`: `[batch, time, heads, key_dim]`
/// - `v`: `[batch, time, heads, value_dim]`
/// - `initial_state`: `[batch, heads, key_dim, value_dim]`; zero when absent
/// - with `boundaries` the batch is 1, segments start from their own initial state, and states
///   are `[segments, heads, key_dim, value_dim]`
///
/// Half-precision inputs are computed in float32, and may be mixed with float32 ones. A log decay may be minus infinity (a gate of 0); below
/// -30 (`exp(-30)` is invisible in float32) it gets no gradient.
///
/// # Panics
///
/// When shapes disagree (the message names the argument and both shapes), `time` is 0, or
/// `chunk_size` is not a positive multiple of `sub_chunk_size`. Debug builds also refuse NaN or
/// positive log decays and `beta` outside `[0, 2]`.
pub fn linear_recurrence(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    decay: Decay,
    write: Write,
    initial_state: Option<Tensor<4>>,
    boundaries: Option<&Boundaries>,
    options: &ScanOptions,
) -> ScanOutput {
    check::scan(&q, &k, &v, &decay, &write, initial_state.as_ref(), boundaries, options);

    let [.., key_dim] = q.dims();
    let scale = options.scale.unwrap_or((key_dim as f64).powf(-0.5));
    if options.form == ScanForm::Recurrent {
        return recurrent::scan(q, k, v, decay, write, initial_state, boundaries, scale);
    }
    // One step from a state, as in decoding: the whole apparatus of chunks would stand still.
    if options.form == ScanForm::Auto
        && boundaries.is_none()
        && q.dims()[1] == 1
        && let Some(state) = initial_state
    {
        return single(q, k, v, decay, write, state, scale);
    }
    let (decay_kind, log_decay) = match decay {
        Decay::None => (DecayKind::None, None),
        Decay::PerHead(gate) => (DecayKind::PerHead, Some(gate.unsqueeze_dim::<4>(3))),
        Decay::PerKey(gate) => (DecayKind::PerKey, Some(gate)),
    };
    let (write_kind, beta) = match write {
        Write::Additive => (WriteKind::Additive, None),
        Write::Delta(beta) => (WriteKind::Delta, Some(beta)),
    };
    let spec = ScanSpec {
        scale,
        decay: decay_kind,
        write: write_kind,
        has_initial_state: initial_state.is_some(),
        boundaries: boundaries.map(Boundaries::shared),
        chunk_size: options.chunk_size,
        sub_chunk_size: options.sub_chunk_size,
        fused: options.form == ScanForm::Auto,
    };
    let (output, final_state) = matrix_scan(q, k, v, log_decay, beta, initial_state, spec);
    ScanOutput { output, final_state }
}

/// A scan over one step.
fn single(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    decay: Decay,
    write: Write,
    state: Tensor<4>,
    scale: f64,
) -> ScanOutput {
    let step = |x: Tensor<4>| x.squeeze_dim::<3>(1);
    let decay = match decay {
        Decay::None => StepDecay::None,
        Decay::PerHead(gate) => StepDecay::PerHead(gate.squeeze_dim(1)),
        Decay::PerKey(gate) => StepDecay::PerKey(step(gate)),
    };
    let beta = match write {
        Write::Additive => None,
        Write::Delta(beta) => Some(beta.squeeze_dim(1)),
    };
    let (output, final_state) =
        linear_recurrence_step(step(q), step(k), step(v), decay, beta, state, Some(scale));
    ScanOutput { output: output.unsqueeze_dim(1), final_state }
}
