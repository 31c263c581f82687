//! The gated delta rule with its projections packed by key head.
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

use crate::hybrid_linear_attention::{Heads, a_log, dt_bias, write_strength};
use crate::recurrent::{
    Passage, RecurrentMixer, RecurrentState, at_least_one, heads, short_convolution, side_by_side,
};

/// Configuration of [`PackedGatedDeltaNet`]. Field names are those of the released models.
#[derive(Config, Debug)]
pub struct PackedGatedDeltaNetConfig {
    /// Width `D` of input and output.
    pub hidden_size: usize,
    /// Number of query and key heads `H`; 16 in the released models.
    pub linear_num_key_heads: usize,
    /// Number of value heads, a multiple `r H`; 32 in the released models.
    pub linear_num_value_heads: usize,
    /// Channels of a query and key head `K`. Default 128.
    #[config(default = 128)]
    pub linear_key_head_dim: usize,
    /// Channels of a value head `V`. Default 128.
    #[config(default = 128)]
    pub linear_value_head_dim: usize,
    /// Width of the convolution. Default 4.
    #[config(default = 4)]
    pub linear_conv_kernel_dim: usize,
    /// Added to the mean square in the norm of the output. Default 1e-6.
    #[config(default = 1e-6)]
    pub rms_norm_eps: f64,
}

impl ModuleConfig for PackedGatedDeltaNetConfig {
    type Module = PackedGatedDeltaNet;

    fn try_init(&self, device: &Device) -> Result<PackedGatedDeltaNet, ConfigError> {
        let (keys, values) = (self.linear_num_key_heads, self.linear_num_value_heads);
        let (key_dim, value_dim) = (self.linear_key_head_dim, self.linear_value_head_dim);
        at_least_one(&[
            ("hidden_size", self.hidden_size),
            ("linear_num_key_heads", keys),
            ("linear_num_value_heads", values),
            ("linear_key_head_dim", key_dim),
            ("linear_value_head_dim", value_dim),
        ])?;
        if !values.is_multiple_of(keys) {
            let need = format!("a multiple of linear_num_key_heads = {keys}");
            return Err(ConfigError::new("linear_num_value_heads", values, need));
        }
        let (width, key, value) = (self.hidden_size, keys * key_dim, values * value_dim);
        let silu = Some(GateActivation::Swish);
        let taps = self.linear_conv_kernel_dim;
        let convolution = short_convolution(true, 2 * key + value, taps, silu, device)
            .map_err(|error| ConfigError { field: "linear_conv_kernel_dim".into(), ..error })?;
        let norm = GatedRmsNormConfig::new(value_dim).with_eps(self.rms_norm_eps).try_init(device);
        Ok(PackedGatedDeltaNet {
            in_proj_qkvz: init::linear(width, 2 * (key + value), false, device),
            in_proj_ba: init::linear(width, 2 * values, false, device),
            conv1d: convolution.expect("a convolution was asked for"),
            A_log: a_log(values, device),
            dt_bias: dt_bias(values, device),
            norm: norm.map_err(|error| ConfigError { field: "rms_norm_eps".into(), ..error })?,
            out_proj: init::linear(value, width, false, device),
            heads: Heads { keys, values, key_dim, value_dim },
            scan: ScanOptions::default(),
        })
    }
}

/// [`GatedDeltaNet`](crate::hybrid_linear_attention::GatedDeltaNet) as Qwen3-Next packs it: one
/// projection for queries, keys, values and output gate, one for the two gates, one convolution.
///
/// ```text
/// [q, k, v, z] = W_qkvz x      rows by key head: its q (K), k (K), v and z of its r value heads (r V each)
/// [b, a] = W_ba x              rows by key head: b and a of its r value heads
/// [q; k; v] = silu(conv([q; k; v]))
/// beta = sigmoid(b)    g = -exp(A_log) softplus(a + dt_bias)        per value head
/// o = gated delta rule of l2(q), l2(k), v, g, beta
/// y = W_out (RMSNorm_head(o) * silu(z))
/// ```
///
/// Weights start normal(0, 0.02), the norm at 1, rates `exp(A_log)` uniform in (0, 16),
/// `softplus(dt_bias)` log-uniform in `[1e-3, 0.1]`.
#[derive(Module, Debug)]
pub struct PackedGatedDeltaNet {
    /// Queries, keys, values and output gate, `D -> 2 H (K + r V)`.
    pub in_proj_qkvz: Linear,
    /// Write strength and decay logits, `D -> 2 r H`.
    pub in_proj_ba: Linear,
    /// Short convolution over queries, keys and values.
    pub conv1d: ShortConvolution,
    /// Logarithms of the decays' rates, `[r H]`.
    pub A_log: Param<Tensor<1>>,
    /// Added to the decay logits, `[r H]`.
    pub dt_bias: Param<Tensor<1>>,
    /// Norm of every head's output, and its gate.
    pub norm: GatedRmsNorm,
    /// Output, `r H V -> D`.
    pub out_proj: Linear,
    #[module(skip)]
    heads: Heads,
    #[module(skip)]
    scan: ScanOptions,
}

impl PackedGatedDeltaNet {
    /// Cuts `x`, whose channels stand by key head, into parts of these widths a key head; all heads
    /// of a part side by side.
    fn parts<const N: usize>(&self, x: Tensor<3>, widths: [usize; N]) -> [Tensor<3>; N] {
        let x = heads(x, self.heads.keys);
        let mut start = 0;
        widths.map(|width| {
            start += width;
            side_by_side(x.clone().narrow(3, start - width, width))
        })
    }
}

impl RecurrentMixer for PackedGatedDeltaNet {
    fn scan(
        &self,
        x: Tensor<3>,
        boundaries: Option<&Boundaries>,
        _lower_bound: Option<Tensor<1>>,
        state: Option<RecurrentState>,
    ) -> (Tensor<3>, RecurrentState) {
        let time = x.dims()[1];
        let Heads { keys, values, key_dim, value_dim } = self.heads;
        let shared = values / keys;
        let mut passage = Passage::new(&x, boundaries, state);
        let [q, k, v, z] = self.parts(
            self.in_proj_qkvz.forward(x.clone()),
            [key_dim, key_dim, shared * value_dim, shared * value_dim],
        );
        let [b, a] = self.parts(self.in_proj_ba.forward(x), [shared, shared]);
        let convolved = passage.convolve(Some(&self.conv1d), Tensor::cat(vec![q, k, v], 2));
        let (key, value) = (keys * key_dim, values * value_dim);
        let scanned = gated_delta_rule(
            heads(convolved.clone().narrow(2, 0, key), keys),
            heads(convolved.clone().narrow(2, key, key), keys),
            heads(convolved.narrow(2, 2 * key, value), values),
            softplus_decay_per_head(a, self.A_log.val(), Some(self.dt_bias.val())),
            write_strength(b, false),
            passage.memory.take(),
            boundaries,
            true,
            &self.scan,
        );
        let y = self.norm.forward(scanned.output, Some(heads(z, values)));
        (self.out_proj.forward(side_by_side(y)), passage.end(scanned.final_state, time))
    }

    fn memory_dims(&self, batch: usize) -> [usize; 4] {
        [batch, self.heads.values, self.heads.key_dim, self.heads.value_dim]
    }

    fn convolutions(&self) -> Vec<&ShortConvolution> {
        vec![&self.conv1d]
    }

    fn with_scan_form(mut self, form: ScanForm) -> Self {
        self.scan.form = form;
        self
    }
}
