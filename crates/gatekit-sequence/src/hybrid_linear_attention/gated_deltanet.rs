//! Gated DeltaNet's layer: the delta rule with a decay per value head.
#![allow(non_snake_case, reason = "`A_log` is the published name of the rates")]

use burn::config::Config;
use burn::module::{Module, Param};
use burn::nn::Linear;
use burn::tensor::{Device, Tensor};
use gatekit_core::conv::ShortConvolution;
use gatekit_core::decay::softplus_decay_per_head;
use gatekit_core::gate::GateActivation;
use gatekit_core::norm::{GatedRmsNorm, GatedRmsNormConfig};
use gatekit_core::scan::{ScanForm, ScanOptions, gated_delta_rule};
use gatekit_core::sequence::Boundaries;
use gatekit_core::{ConfigError, ModuleConfig, init};

use super::delta_net::write_strength;
use super::retention::norm_eps;
use crate::recurrent::{
    Passage, RecurrentMixer, RecurrentState, at_least_one, expanded, heads, short_convolution, side_by_side,
};

/// Rates `A` of the decay are drawn from (0, 16), steps `dt` log-uniformly from these.
const RATES: (f64, f64) = (0.0, 16.0);
const STEPS: (f64, f64) = (1e-3, 0.1);

/// Configuration of [`GatedDeltaNet`]. Field names are those of flash-linear-attention's models.
#[derive(Config, Debug)]
pub struct GatedDeltaNetConfig {
    /// Width `D` of input and output.
    pub hidden_size: usize,
    /// Number of query and key heads `H`. Default 6.
    #[config(default = 6)]
    pub num_heads: usize,
    /// Number of value heads, a multiple of `H`: consecutive ones share a query and key head. `None`
    /// (the default): `H`.
    #[config(default = "None")]
    pub num_v_heads: Option<usize>,
    /// Channels of a query and key head `K`; the paper has `H K = 0.75 D`. Default 256.
    #[config(default = 256)]
    pub head_dim: usize,
    /// Channels of a value head, as a multiple of `K`. Default 2.
    #[config(default = 2.0)]
    pub expand_v: f64,
    /// Whether the output is gated. Default true.
    #[config(default = true)]
    pub use_gate: bool,
    /// Activation of the output gate. Default swish.
    #[config(default = "GateActivation::Swish")]
    pub output_gate_activation: GateActivation,
    /// Doubles `beta`, so that the state's transition can have negative eigenvalues. Default false.
    #[config(default = false)]
    pub allow_neg_eigval: bool,
    /// Short causal convolutions, followed by SiLU, on queries, keys and values. Default true.
    #[config(default = true)]
    pub use_short_conv: bool,
    /// Width of these convolutions. Default 4.
    #[config(default = 4)]
    pub conv_size: usize,
    /// Added to the mean square in the norm of the output. Default 1e-5.
    #[config(default = 1e-5)]
    pub norm_eps: f64,
}

impl GatedDeltaNetConfig {
    /// Query and key heads, value heads, and the channels of one of each.
    pub(crate) fn sizes(&self) -> Result<Heads, ConfigError> {
        at_least_one(&[
            ("hidden_size", self.hidden_size),
            ("num_heads", self.num_heads),
            ("head_dim", self.head_dim),
        ])?;
        let (keys, values) = (self.num_heads, self.num_v_heads.unwrap_or(self.num_heads));
        if values == 0 || !values.is_multiple_of(keys) {
            let need = format!("a multiple of num_heads = {keys}");
            return Err(ConfigError::new("num_v_heads", values, need));
        }
        self.output_gate_activation.check("output_gate_activation")?;
        let value_dim = expanded("expand_v", self.expand_v, self.head_dim, 1)?;
        Ok(Heads { keys, values, key_dim: self.head_dim, value_dim })
    }
}

/// Numbers of heads and their channels.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Heads {
    /// Query and key heads.
    pub keys: usize,
    /// Value heads.
    pub values: usize,
    /// Channels of a query or key head.
    pub key_dim: usize,
    /// Channels of a value head.
    pub value_dim: usize,
}

impl ModuleConfig for GatedDeltaNetConfig {
    type Module = GatedDeltaNet;

    fn try_init(&self, device: &Device) -> Result<GatedDeltaNet, ConfigError> {
        let sizes = self.sizes()?;
        let (width, key, value) =
            (self.hidden_size, sizes.keys * sizes.key_dim, sizes.values * sizes.value_dim);
        let linear = |from, to| init::linear(from, to, false, device);
        let convolution = |channels| {
            let silu = Some(GateActivation::Swish);
            short_convolution(self.use_short_conv, channels, self.conv_size, silu, device)
        };
        let norm = GatedRmsNormConfig::new(sizes.value_dim)
            .with_eps(self.norm_eps)
            .with_activation(self.output_gate_activation);
        Ok(GatedDeltaNet {
            q_proj: linear(width, key),
            k_proj: linear(width, key),
            v_proj: linear(width, value),
            q_conv1d: convolution(key)?,
            k_conv1d: convolution(key)?,
            v_conv1d: convolution(value)?,
            a_proj: linear(width, sizes.values),
            b_proj: linear(width, sizes.values),
            A_log: a_log(sizes.values, device),
            dt_bias: dt_bias(sizes.values, device),
            g_proj: self.use_gate.then(|| linear(width, value)),
            o_norm: norm.try_init(device).map_err(norm_eps)?,
            o_proj: linear(value, width),
            heads: sizes,
            allow_neg_eigval: self.allow_neg_eigval,
            scan: ScanOptions::default(),
        })
    }
}

pub(crate) fn a_log(heads: usize, device: &Device) -> Param<Tensor<1>> {
    init::a_log(heads, RATES.0, RATES.1, device)
}

pub(crate) fn dt_bias(heads: usize, device: &Device) -> Param<Tensor<1>> {
    init::dt_bias(heads, STEPS.0, STEPS.1, device)
}

/// The gated delta rule with queries and keys of unit length.
///
/// ```text
/// q, k = l2(silu(conv(W x)))   v = silu(conv(W_v x))   beta = sigmoid(W_b x)     (times 2 if allowed)
/// g = -exp(A_log) softplus(W_a x + dt_bias)                              per value head
/// S' = exp(g_t) S_{t-1}
/// S_t = S' + beta_t k_t (v_t - S'^T k_t)^T        o_t = K^-1/2 S_t^T q_t
/// y = W_o (RMSNorm_head(o) * act(W_g x))          (the norm alone without `use_gate`)
/// ```
///
/// Value head j uses the query and key of head `j / (num_v_heads / num_heads)`. Without convolutions
/// the SiLUs remain. Yang et al. 2024, arXiv 2412.06464, eq. 10. Weights start normal(0, 0.02), norms
/// at 1, rates `exp(A_log)` uniform in (0, 16), `softplus(dt_bias)` log-uniform in `[1e-3, 0.1]`;
/// `A_log` and `dt_bias` are not to be decayed in training.
#[derive(Module, Debug)]
pub struct GatedDeltaNet {
    /// Queries, `D -> H K`.
    pub q_proj: Linear,
    /// Keys, `D -> H K`.
    pub k_proj: Linear,
    /// Values, `D -> num_v_heads V`.
    pub v_proj: Linear,
    /// Short convolution of the queries.
    pub q_conv1d: Option<ShortConvolution>,
    /// Short convolution of the keys.
    pub k_conv1d: Option<ShortConvolution>,
    /// Short convolution of the values.
    pub v_conv1d: Option<ShortConvolution>,
    /// Decay logits, `D -> num_v_heads`.
    pub a_proj: Linear,
    /// Write strength, `D -> num_v_heads`.
    pub b_proj: Linear,
    /// Logarithms of the decays' rates, `[num_v_heads]`.
    pub A_log: Param<Tensor<1>>,
    /// Added to the decay logits, `[num_v_heads]`.
    pub dt_bias: Param<Tensor<1>>,
    /// Output gate, `D -> num_v_heads V`.
    pub g_proj: Option<Linear>,
    /// Norm of every head's output, and its gate.
    pub o_norm: GatedRmsNorm,
    /// Output, `num_v_heads V -> D`.
    pub o_proj: Linear,
    #[module(skip)]
    heads: Heads,
    allow_neg_eigval: bool,
    #[module(skip)]
    scan: ScanOptions,
}

impl RecurrentMixer for GatedDeltaNet {
    fn scan(
        &self,
        x: Tensor<3>,
        boundaries: Option<&Boundaries>,
        _lower_bound: Option<Tensor<1>>,
        state: Option<RecurrentState>,
    ) -> (Tensor<3>, RecurrentState) {
        let time = x.dims()[1];
        let mut passage = Passage::new(&x, boundaries, state);
        let q = passage.convolve_silu(self.q_conv1d.as_ref(), self.q_proj.forward(x.clone()));
        let k = passage.convolve_silu(self.k_conv1d.as_ref(), self.k_proj.forward(x.clone()));
        let v = passage.convolve_silu(self.v_conv1d.as_ref(), self.v_proj.forward(x.clone()));
        let log_gate = softplus_decay_per_head(
            self.a_proj.forward(x.clone()),
            self.A_log.val(),
            Some(self.dt_bias.val()),
        );
        let scanned = gated_delta_rule(
            heads(q, self.heads.keys),
            heads(k, self.heads.keys),
            heads(v, self.heads.values),
            log_gate,
            write_strength(self.b_proj.forward(x.clone()), self.allow_neg_eigval),
            passage.memory.take(),
            boundaries,
            true,
            &self.scan,
        );
        let gate = self.g_proj.as_ref().map(|projection| heads(projection.forward(x), self.heads.values));
        let y = self.o_norm.forward(scanned.output, gate);
        (self.o_proj.forward(side_by_side(y)), passage.end(scanned.final_state, time))
    }

    fn memory_dims(&self, batch: usize) -> [usize; 4] {
        [batch, self.heads.values, self.heads.key_dim, self.heads.value_dim]
    }

    fn convolutions(&self) -> Vec<&ShortConvolution> {
        [&self.q_conv1d, &self.k_conv1d, &self.v_conv1d].into_iter().flatten().collect()
    }

    fn with_scan_form(mut self, form: ScanForm) -> Self {
        self.scan.form = form;
        self
    }
}
