//! Kimi Delta Attention as a layer: projections, convolutions, gates, scan, gated norm.
// `A_log` is called so in the published files.
#![allow(non_snake_case)]

use burn::module::{Module, Param};
use burn::nn::Linear;
use burn::tensor::Tensor;
use gatekit_core::checkpoint::TensorLayout;
use gatekit_core::conv::ShortConvolution;
use gatekit_core::decay::{bounded_decay, softplus_decay};
use gatekit_core::gate::sigmoid;
use gatekit_core::norm::GatedRmsNorm;
use gatekit_core::scan::{ScanForm, ScanOptions, kimi_delta_attention};
use gatekit_core::sequence::{Boundaries, Packing};

use crate::recurrent::{Passage, RecurrentMixer, RecurrentState, side_by_side};

/// The delta rule with a decay per key channel.
///
/// ```text
/// q, k = l2(SiLU(conv(W_q x))), l2(SiLU(conv(W_k x)))      v = SiLU(conv(W_v x))
/// z = W_fb (W_fa x) + dt_bias
/// g = -exp(A_log) softplus(z)                              or  lower_bound * sigmoid(exp(A_log) z)
/// beta = sigmoid(W_b x)                                    (times 2 with allow_neg_eigval)
/// S_t = (I - beta_t k_t k_t^T) diag(exp g_t) S_{t-1} + beta_t k_t v_t^T      o_t = K^-1/2 S_t^T q_t
/// y = W_o (RMSNorm_head(o) * sigmoid(W_gb (W_ga x)))
/// ```
///
/// What a key holds is erased before it is written anew, and every channel forgets at its own
/// rate. Kimi Team 2025, arXiv 2510.26692, equation 1 and section 4; `A_log` and `dt_bias` as in
/// the released code. Linear weights start as normal(0, 0.02), `exp(A_log)` uniform in (1, 16),
/// `softplus(dt_bias)` log-uniform in (1e-3, 0.1). `A_log` and `dt_bias` take no weight decay.
#[derive(Module, Debug)]
pub struct KimiDeltaAttention {
    /// Queries, `D -> H K`.
    pub q_proj: Linear,
    /// Keys, `D -> H K`.
    pub k_proj: Linear,
    /// Values, `D -> HV K`.
    pub v_proj: Linear,
    /// Short convolution of the queries.
    pub q_conv1d: Option<ShortConvolution>,
    /// Short convolution of the keys.
    pub k_conv1d: Option<ShortConvolution>,
    /// Short convolution of the values.
    pub v_conv1d: Option<ShortConvolution>,
    /// Logarithm of the decay's rate, one a value head, `[HV]`; published as `[1, 1, HV, 1]`.
    pub A_log: Param<Tensor<1>>,
    /// Bias of the decay's logits, `[HV K]`.
    pub dt_bias: Param<Tensor<1>>,
    /// Decay's logits, first step, `D -> K`.
    pub f_a_proj: Linear,
    /// Decay's logits, second step, `K -> HV K`.
    pub f_b_proj: Linear,
    /// Write strengths' logits, `D -> HV`.
    pub b_proj: Linear,
    /// Output gate's logits, first step, `D -> K`.
    pub g_a_proj: Linear,
    /// Output gate's logits, second step, `K -> HV K`.
    pub g_b_proj: Linear,
    /// Norm of every head's output, with the gate's sigmoid.
    pub o_norm: GatedRmsNorm,
    /// Output, `HV K -> D`.
    pub o_proj: Linear,
    pub(super) num_v_heads: usize,
    pub(super) head_dim: usize,
    pub(super) lower_bound: Option<f64>,
    pub(super) allow_neg_eigval: bool,
    #[module(skip)]
    pub(super) scan: ScanOptions,
}

/// What the gates of a layer let through.
#[derive(Debug, Clone)]
pub struct KimiGateValues {
    /// Decay `exp(g)` in (0, 1), `[batch, time, HV, K]`.
    pub forget: Tensor<4>,
    /// Write strength `beta`, `[batch, time, HV]`.
    pub write: Tensor<3>,
    /// Output gate, `[batch, time, HV, K]`.
    pub output: Tensor<4>,
}

impl KimiDeltaAttention {
    /// What published files call the layer's tensors: `A_log` has four axes there.
    pub fn layout() -> TensorLayout {
        TensorLayout::default().with_shape("A_log", &[1, 1, 0, 1])
    }

    /// A whole batch.
    ///
    /// # Shapes
    ///
    /// - `x`: `[batch, time, D]`
    /// - `packing`: from a mask `[batch, time]`; padded tokens are removed, the output is 0 there
    /// - output: `[batch, time, D]`
    ///
    /// # Panics
    ///
    /// When the width of `x` is not `D`, or its batch and time are not those of the packing.
    pub fn forward(&self, x: Tensor<3>, packing: Option<&Packing>) -> Tensor<3> {
        self.forward_with_state(x, packing, None).0
    }

    /// A whole batch, continued from a state; returns the state after every row's last (real)
    /// token, too. Shapes as [`forward`](Self::forward).
    ///
    /// # Panics
    ///
    /// As there, when `x` has no time step, or the state's shapes are not those of the
    /// [empty state](crate::backbone::TokenMixer::empty_state).
    pub fn forward_with_state(
        &self,
        x: Tensor<3>,
        packing: Option<&Packing>,
        initial_state: Option<RecurrentState>,
    ) -> (Tensor<3>, RecurrentState) {
        match packing {
            None => self.scan(x, None, None, initial_state),
            Some(packing) => {
                let boundaries = Some(packing.boundaries());
                let (y, state) = self.scan(packing.pack(x), boundaries, None, initial_state);
                (packing.unpack(y), state)
            }
        }
    }

    /// The gates' values for `x` `[batch, time, D]`, for probes. Costs the gates' projections.
    pub fn gates(&self, x: Tensor<3>) -> KimiGateValues {
        KimiGateValues {
            forget: self.log_decay(x.clone()).exp(),
            write: self.write_strength(x.clone()),
            output: sigmoid(self.output_logits(x)),
        }
    }

    /// Log decay `g`, `[batch, time, HV, K]`, at least float32.
    fn log_decay(&self, x: Tensor<3>) -> Tensor<4> {
        let z = self.heads(self.f_b_proj.forward(self.f_a_proj.forward(x)));
        let (a_log, dt_bias) = (self.A_log.val(), Some(self.dt_bias.val()));
        match self.lower_bound {
            None => softplus_decay(z, a_log, dt_bias),
            Some(floor) => bounded_decay(z, a_log, dt_bias, floor),
        }
    }

    /// Write strength `beta`, `[batch, time, HV]`.
    fn write_strength(&self, x: Tensor<3>) -> Tensor<3> {
        let beta = sigmoid(self.b_proj.forward(x));
        if self.allow_neg_eigval { beta * 2.0 } else { beta }
    }

    fn output_logits(&self, x: Tensor<3>) -> Tensor<4> {
        self.heads(self.g_b_proj.forward(self.g_a_proj.forward(x)))
    }

    /// `[batch, time, heads * K]` to `[batch, time, heads, K]`.
    fn heads(&self, x: Tensor<3>) -> Tensor<4> {
        let [batch, time, width] = x.dims();
        x.reshape([batch, time, width / self.head_dim, self.head_dim])
    }
}

impl RecurrentMixer for KimiDeltaAttention {
    fn scan(
        &self,
        x: Tensor<3>,
        boundaries: Option<&Boundaries>,
        _: Option<Tensor<1>>,
        state: Option<RecurrentState>,
    ) -> (Tensor<3>, RecurrentState) {
        let mut passage = Passage::new(&x, boundaries, state);
        let q = passage.convolve_silu(self.q_conv1d.as_ref(), self.q_proj.forward(x.clone()));
        let k = passage.convolve_silu(self.k_conv1d.as_ref(), self.k_proj.forward(x.clone()));
        let v = passage.convolve_silu(self.v_conv1d.as_ref(), self.v_proj.forward(x.clone()));
        let scanned = kimi_delta_attention(
            self.heads(q),
            self.heads(k),
            self.heads(v),
            self.log_decay(x.clone()),
            self.write_strength(x.clone()),
            passage.memory.take(),
            boundaries,
            true,
            &self.scan,
        );
        let state = passage.end(scanned.final_state, x.dims()[1]);
        let normed = self.o_norm.forward(scanned.output, Some(self.output_logits(x)));
        (self.o_proj.forward(side_by_side(normed)), state)
    }

    fn memory_dims(&self, batch: usize) -> [usize; 4] {
        [batch, self.num_v_heads, self.head_dim, self.head_dim]
    }

    fn convolutions(&self) -> Vec<&ShortConvolution> {
        [&self.q_conv1d, &self.k_conv1d, &self.v_conv1d].into_iter().flatten().collect()
    }

    fn with_scan_form(mut self, form: ScanForm) -> Self {
        self.scan.form = form;
        self
    }
}
