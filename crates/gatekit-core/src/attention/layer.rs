//! The layer: projections, norms, positions, softmax attention, gates.

use burn::module::{Module, Param};
use burn::nn::Linear;
use burn::tensor::{Device, Tensor};

use super::cache::KvCache;
use super::config::{GateLayout, SdpaTransform};
use super::gate::{GatePosition, HeadGate, check_scores};
use super::rotary::RotaryEmbedding;
use super::softmax::{AttentionOptions, attend, weights_with_sinks};
use crate::gate::{GateActivation, output_gate};
use crate::norm::RmsNorm;
use crate::sequence::{Boundaries, Packing};

/// Causal softmax attention with grouped heads, with all that is known to gate it.
///
/// ```text
/// q = rope(norm(W_q x))   k = rope(norm(W_k x))   v = W_v x        per head; norms where configured
/// o_i = sum_j softmax_j(q_i . k_j / sqrt e) v_j                    with sinks: one more key without a value
/// y = W_o (o * sigmoid(W_g x))                                     or another of the gate's five positions
/// ```
///
/// Heads are e channels wide; queries and keys get rotary positions, counted from 0 in each
/// sequence. Weights start normal(0, 0.02), biases and sinks 0, norms 1. Vaswani et al. (arXiv
/// 1706.03762); grouped heads: Ainslie et al. (arXiv 2305.13245); gates: Qiu et al. (arXiv
/// 2505.06708).
///
/// Published checkpoints call a gate's projection `gate_proj` and learned scores `gate_score`, without
/// the `gate.` that stands before them here.
#[derive(Module, Debug)]
pub struct CausalAttention {
    /// Query projection, `[hidden_size, num_heads * head_dim]`, with a fused gate `[hidden_size,
    /// num_heads * (head_dim + gate width)]`.
    pub q_proj: Linear,
    /// Key projection, `[hidden_size, num_kv_heads * head_dim]`.
    pub k_proj: Linear,
    /// Value projection, `[hidden_size, num_kv_heads * head_dim]`.
    pub v_proj: Linear,
    /// Output projection, `[num_heads * head_dim, hidden_size]`.
    pub o_proj: Linear,
    /// Norm of each query head.
    pub q_norm: Option<RmsNorm>,
    /// Norm of each key head.
    pub k_norm: Option<RmsNorm>,
    /// Norm of each head's output.
    pub sdpa_norm: Option<RmsNorm>,
    /// Logits of the sinks, `[num_heads]`.
    pub sinks: Option<Param<Tensor<1>>>,
    /// The gate, unless it is fused into `q_proj`.
    pub gate: Option<HeadGate>,
    #[module(skip)]
    pub(super) gate_position: Option<GatePosition>,
    #[module(skip)]
    pub(super) fused_gate: Option<FusedGate>,
    #[module(skip)]
    pub(super) sdpa_transform: SdpaTransform,
    #[module(skip)]
    pub(super) rotary: Option<RotaryEmbedding>,
    pub(super) num_heads: usize,
    pub(super) num_kv_heads: usize,
    pub(super) head_dim: usize,
    pub(super) window_size: Option<usize>,
}

/// A gate whose rows stand in `q_proj`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct FusedGate {
    pub layout: GateLayout,
    /// Rows a head.
    pub width: usize,
    pub activation: GateActivation,
}

/// Where the first token of each sequence stands.
#[derive(Debug, Clone, Copy)]
pub enum Positions<'a> {
    /// All rows begin at this position.
    From(usize),
    /// Packed sequences, each from 0.
    Packed(&'a Boundaries),
}

/// What an attention layer makes of its input before the softmax.
#[derive(Debug, Clone)]
pub struct Projected {
    /// Queries, normed and rotated, `[batch, time, num_heads, head_dim]`.
    pub q: Tensor<4>,
    /// Keys, normed and rotated, `[batch, time, num_kv_heads, head_dim]`.
    pub k: Tensor<4>,
    /// Values, `[batch, time, num_kv_heads, head_dim]`.
    pub v: Tensor<4>,
    /// Logits of a gate behind the softmax, `[batch, time, heads or 1, width]`.
    pub gate_logits: Option<Tensor<4>>,
}

impl CausalAttention {
    /// Whole sequences: `[batch, time, hidden_size]` to `[batch, time, hidden_size]`.
    ///
    /// With `packing` (made from a padding mask `[batch, time]`) the padded tokens are removed, each
    /// row is computed as a sequence of its own, and the result is 0 at padded positions.
    ///
    /// # Panics
    ///
    /// When `x` has no time step, does not have `hidden_size` channels or not the shape of the packing;
    /// in debug builds also when a gate's score is NaN.
    pub fn forward(&self, x: Tensor<3>, packing: Option<&Packing>) -> Tensor<3> {
        let whole = |x: Tensor<3>, boundaries: Option<&Boundaries>| {
            let projected = self.project(x, boundaries.map_or(Positions::From(0), Positions::Packed));
            let o = self.attend(projected.q, projected.k, projected.v, boundaries);
            self.output(o, projected.gate_logits)
        };
        match packing {
            Some(packing) => packing.unpack(whole(packing.pack(x), Some(packing.boundaries()))),
            None => whole(x, None),
        }
    }

    /// The cache before the first token.
    pub fn empty_cache(&self, batch: usize, device: &Device) -> KvCache {
        let empty = Tensor::zeros([batch, 0, self.num_kv_heads, self.head_dim], device);
        KvCache { keys: empty.clone(), values: empty, position: 0 }
    }

    /// Continues sequences by several tokens: `[batch, time, hidden_size]` after what the cache holds.
    ///
    /// Returns the outputs of the new tokens and the new cache. The result equals that of
    /// [`forward`](Self::forward) over all tokens at once.
    ///
    /// # Panics
    ///
    /// When the shapes do not fit.
    pub fn prefill(&self, x: Tensor<3>, cache: KvCache) -> (Tensor<3>, KvCache) {
        let Projected { q, k, v, gate_logits } = self.project(x, Positions::From(cache.position));
        let cache = cache.extended(k, v);
        let o = self.attend(q, cache.keys.clone(), cache.values.clone(), None);
        let y = self.output(o, gate_logits);
        let cache = match self.window_size {
            Some(window) => cache.last(window - 1),
            None => cache,
        };
        (y, cache)
    }

    /// Continues sequences by one token: `[batch, hidden_size]` to `[batch, hidden_size]`.
    ///
    /// # Panics
    ///
    /// When the shapes do not fit.
    pub fn step(&self, x: Tensor<2>, cache: KvCache) -> (Tensor<2>, KvCache) {
        let (y, cache) = self.prefill(x.unsqueeze_dim(1), cache);
        (y.squeeze_dim(1), cache)
    }

    /// Attention weights `[batch, heads, time, time]` of whole sequences, for diagnosis. With sinks the
    /// rows sum to less than 1.
    ///
    /// # Panics
    ///
    /// As [`forward`](Self::forward).
    pub fn weights(&self, x: Tensor<3>) -> Tensor<4> {
        let projected = self.project(x, Positions::From(0));
        let sinks = self.sinks.as_ref().map(Param::val);
        weights_with_sinks(projected.q, projected.k, sinks.as_ref(), &self.options())
    }

    /// The gate's scores `act(z)` for `x` `[batch, time, hidden_size]`, `[batch, time, heads or 1,
    /// width]`; `None` without a gate.
    ///
    /// # Panics
    ///
    /// When `x` does not have `hidden_size` channels.
    pub fn gate_scores(&self, x: Tensor<3>) -> Option<Tensor<4>> {
        match (&self.gate, &self.fused_gate) {
            (Some(gate), _) => Some(gate.scores(x)),
            (None, Some(fused)) => {
                let (_, logits) = self.split_queries(self.q_proj.forward(x), fused);
                Some(fused.activation.apply(logits))
            }
            (None, None) => None,
        }
    }

    /// Channels of a head.
    pub fn head_dim(&self) -> usize {
        self.head_dim
    }

    /// Query heads, and key heads.
    pub fn heads(&self) -> [usize; 2] {
        [self.num_heads, self.num_kv_heads]
    }

    /// Queries, keys and values of `x` `[batch, time, hidden_size]`, heads apart: projected, gated
    /// where the gate stands before the softmax, normed and rotated.
    ///
    /// # Panics
    ///
    /// When `x` has no time step, does not have `hidden_size` channels or not the time of the
    /// boundaries.
    pub fn project(&self, x: Tensor<3>, positions: Positions<'_>) -> Projected {
        let [batch, time, _] = x.dims();
        assert!(time > 0, "attention: `x` has no time step, shape {:?}", x.dims());
        let heads = |y: Tensor<3>, heads: usize| y.reshape([batch, time, heads, self.head_dim]);
        let mut k = heads(self.k_proj.forward(x.clone()), self.num_kv_heads);
        let mut v = heads(self.v_proj.forward(x.clone()), self.num_kv_heads);
        let q = self.q_proj.forward(x.clone());
        let (mut q, mut gate_logits) = match &self.fused_gate {
            Some(fused) => {
                let (q, logits) = self.split_queries(q, fused);
                (q, Some(logits))
            }
            None => (heads(q, self.num_heads), None),
        };
        match (&self.gate, self.gate_position) {
            (Some(gate), Some(GatePosition::Query)) => q = gate.forward(q, x),
            (Some(gate), Some(GatePosition::Key)) => k = gate.forward(k, x),
            (Some(gate), Some(GatePosition::Value)) => v = gate.forward(v, x),
            (Some(gate), _) => gate_logits = Some(gate.logits(x)),
            (None, _) => {}
        }
        let placed = |y: Tensor<4>, norm: &Option<RmsNorm>| {
            let y = match norm {
                Some(norm) => norm.forward(y),
                None => y,
            };
            match (&self.rotary, positions) {
                (None, _) => y,
                (Some(rotary), Positions::From(offset)) => rotary.apply(y, offset),
                (Some(rotary), Positions::Packed(boundaries)) => rotary.apply_packed(y, boundaries),
            }
        };
        Projected { q: placed(q, &self.q_norm), k: placed(k, &self.k_norm), v, gate_logits }
    }

    /// The softmax: queries `[batch, time, num_heads, head_dim]`, the last `time` of the positions of
    /// keys and values `[batch, keys, num_kv_heads, head_dim]`, to `[batch, time, num_heads, head_dim]`.
    ///
    /// # Panics
    ///
    /// As [`causal_attention`](super::causal_attention).
    pub fn attend(
        &self,
        q: Tensor<4>,
        k: Tensor<4>,
        v: Tensor<4>,
        boundaries: Option<&Boundaries>,
    ) -> Tensor<4> {
        let sinks = self.sinks.as_ref().map(Param::val);
        attend(q, k, v, sinks.as_ref(), &self.options(), boundaries)
    }

    /// What follows the softmax: `o` `[batch, time, num_heads, head_dim]`, gated, to `[batch, time,
    /// hidden_size]`. The logits are those of [`project`](Self::project).
    ///
    /// # Panics
    ///
    /// When the shapes do not fit; in debug builds also when a logit is NaN.
    pub fn output(&self, o: Tensor<4>, gate_logits: Option<Tensor<4>>) -> Tensor<3> {
        let [batch, time, _, _] = o.dims();
        let o = match (self.sdpa_transform, &self.sdpa_norm) {
            (SdpaTransform::RmsNorm, Some(norm)) => norm.forward(o),
            (SdpaTransform::Silu, _) => GateActivation::Swish.apply(o),
            _ => o,
        };
        let dense = self.gate_position == Some(GatePosition::Dense);
        let o = match &gate_logits {
            Some(logits) if !dense => self.gated(o, logits.clone()),
            _ => o,
        };
        let y = self.o_proj.forward(o.reshape([batch, time, self.num_heads * self.head_dim]));
        match gate_logits {
            Some(logits) if dense => self.gated(y.unsqueeze_dim(2), logits).squeeze_dim(2),
            _ => y,
        }
    }

    fn gated(&self, y: Tensor<4>, logits: Tensor<4>) -> Tensor<4> {
        match (&self.gate, &self.fused_gate) {
            (Some(gate), _) => gate.apply(y, logits),
            (None, Some(fused)) => {
                check_scores(&logits);
                output_gate(y, logits, fused.activation)
            }
            (None, None) => y,
        }
    }

    /// Queries `[batch, time, num_heads, head_dim]` and the gate's logits `[batch, time, num_heads,
    /// width]` out of what a fused projection makes.
    fn split_queries(&self, y: Tensor<3>, gate: &FusedGate) -> (Tensor<4>, Tensor<4>) {
        let [batch, time, _] = y.dims();
        let parts = match gate.layout {
            GateLayout::Head => self.num_heads,
            GateLayout::KvGroup => self.num_kv_heads,
        };
        let heads = self.num_heads / parts;
        let (queries, gates) = (heads * self.head_dim, heads * gate.width);
        let y = y.reshape([batch, time, parts, queries + gates]);
        let part =
            |from, size, width| y.clone().narrow(3, from, size).reshape([batch, time, self.num_heads, width]);
        (part(0, queries, self.head_dim), part(queries, gates, gate.width))
    }

    /// The same layer with a fused gate taken out of `q_proj` into a projection of its own; a layer
    /// without a fused gate as it is.
    pub fn split(mut self) -> Self {
        let Some(fused) = self.fused_gate.take() else { return self };
        let [hidden, rows] = self.q_proj.weight.dims();
        // The rows of the projection are its outputs, so they split as a token's features do.
        let cut = |rows_of: Tensor<3>| {
            let flat = |y: Tensor<4>| {
                let [_, count, heads, width] = y.dims();
                y.reshape([count, heads * width])
            };
            let (queries, gates) = self.split_queries(rows_of, &fused);
            (flat(queries), flat(gates))
        };
        let (queries, gates) = cut(self.q_proj.weight.val().reshape([1, hidden, rows]));
        let biases = self.q_proj.bias.as_ref().map(|bias| {
            let (queries, gates) = cut(bias.val().reshape([1, 1, rows]));
            (queries.squeeze_dim::<1>(0), gates.squeeze_dim::<1>(0))
        });
        let (query_bias, gate_bias) = biases.unzip();
        let linear = |weight: Tensor<2>, bias: Option<Tensor<1>>| Linear {
            weight: Param::from_tensor(weight.detach()),
            bias: bias.map(|bias| Param::from_tensor(bias.detach())),
        };
        self.q_proj = linear(queries, query_bias);
        let shape = [self.num_heads, fused.width];
        self.gate = Some(HeadGate::from_projection(linear(gates, gate_bias), shape, fused.activation));
        self
    }

    pub(super) fn options(&self) -> AttentionOptions {
        AttentionOptions { window: self.window_size, ..AttentionOptions::default() }
    }
}
