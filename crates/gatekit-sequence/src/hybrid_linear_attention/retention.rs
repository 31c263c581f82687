//! RetNet's layer: rotated queries and keys, a fixed decay per head.

use burn::config::Config;
use burn::module::Module;
use burn::nn::Linear;
use burn::tensor::{Device, Tensor};
use gatekit_core::attention::RotaryEmbedding;
use gatekit_core::conv::ShortConvolution;
use gatekit_core::gate::GateActivation;
use gatekit_core::norm::{GatedRmsNorm, GatedRmsNormConfig};
use gatekit_core::scan::{ScanForm, ScanOptions, retention};
use gatekit_core::sequence::Boundaries;
use gatekit_core::{ConfigError, ModuleConfig, init};

use crate::recurrent::{
    Passage, RecurrentMixer, RecurrentState, at_least_one, expanded, heads, short_convolution, side_by_side,
};

/// Base of the rotary positions.
const ROPE_THETA: f64 = 10_000.0;

/// Configuration of [`Retention`]. Field names are those of flash-linear-attention's models.
#[derive(Config, Debug)]
pub struct RetentionConfig {
    /// Width `D` of input and output.
    pub hidden_size: usize,
    /// Number of heads `H`. Default 8.
    #[config(default = 8)]
    pub num_heads: usize,
    /// Queries and keys of all heads together are `expand_k * D` wide. Default 1.
    #[config(default = 1.0)]
    pub expand_k: f64,
    /// Values of all heads together are `expand_v * D` wide. Default 2.
    #[config(default = 2.0)]
    pub expand_v: f64,
    /// Short causal convolutions, followed by SiLU, on queries, keys and values. Default false.
    #[config(default = false)]
    pub use_short_conv: bool,
    /// Width of these convolutions. Default 4.
    #[config(default = 4)]
    pub conv_size: usize,
    /// Added to the mean square in the norm of the output. Default 1e-5.
    #[config(default = 1e-5)]
    pub norm_eps: f64,
}

impl ModuleConfig for RetentionConfig {
    type Module = Retention;

    fn try_init(&self, device: &Device) -> Result<Retention, ConfigError> {
        let (width, num_heads) = (self.hidden_size, self.num_heads);
        at_least_one(&[("hidden_size", width), ("num_heads", num_heads)])?;
        let key = expanded("expand_k", self.expand_k, width, num_heads)?;
        let value = expanded("expand_v", self.expand_v, width, num_heads)?;
        let linear = |from, to| init::linear(from, to, false, device);
        let convolution = |channels| {
            let silu = Some(GateActivation::Swish);
            short_convolution(self.use_short_conv, channels, self.conv_size, silu, device)
        };
        let norm = GatedRmsNormConfig::new(value / num_heads).with_eps(self.norm_eps);
        Ok(Retention {
            q_proj: linear(width, key),
            k_proj: linear(width, key),
            v_proj: linear(width, value),
            q_conv1d: convolution(key)?,
            k_conv1d: convolution(key)?,
            v_conv1d: convolution(value)?,
            g_proj: linear(width, value),
            g_norm_swish_gate: norm.try_init(device).map_err(norm_eps)?,
            o_proj: linear(value, width),
            rotary: RotaryEmbedding::new(key / num_heads, ROPE_THETA)?,
            num_heads,
            scan: ScanOptions::default(),
        })
    }
}

/// A norm's error as one of the layer's field.
pub(super) fn norm_eps(error: ConfigError) -> ConfigError {
    ConfigError { field: if error.field == "eps" { "norm_eps".to_string() } else { error.field }, ..error }
}

/// Retention: linear attention whose head h forgets at the fixed rate `gamma_h = 1 - 2^(-5 - h)`.
///
/// ```text
/// q = rope(W_q x)   k = rope(W_k x)   v = W_v x        (each SiLU(conv(.)) first, with convolutions)
/// S_t = gamma_h S_{t-1} + k_t v_t^T        o_t = K^-1/2 S_t^T q_t        per head
/// y = W_o (RMSNorm_head(o) * swish(W_g x))
/// ```
///
/// Sun et al. 2023, arXiv 2307.08621, eq. 5 to 8, in flash-linear-attention's form: rotary positions
/// (half-rotation, base 10000) instead of xPos, RMSNorm instead of GroupNorm. Weights start
/// normal(0, 0.02), norms at 1.
#[derive(Module, Debug)]
pub struct Retention {
    /// Queries, `D -> expand_k D`.
    pub q_proj: Linear,
    /// Keys, `D -> expand_k D`.
    pub k_proj: Linear,
    /// Values, `D -> expand_v D`.
    pub v_proj: Linear,
    /// Short convolution of the queries.
    pub q_conv1d: Option<ShortConvolution>,
    /// Short convolution of the keys.
    pub k_conv1d: Option<ShortConvolution>,
    /// Short convolution of the values.
    pub v_conv1d: Option<ShortConvolution>,
    /// Output gate, `D -> expand_v D`.
    pub g_proj: Linear,
    /// Norm of every head's output and its gate.
    pub g_norm_swish_gate: GatedRmsNorm,
    /// Output, `expand_v D -> D`.
    pub o_proj: Linear,
    #[module(skip)]
    rotary: RotaryEmbedding,
    num_heads: usize,
    #[module(skip)]
    scan: ScanOptions,
}

impl Retention {
    fn rotated(&self, x: Tensor<3>, boundaries: Option<&Boundaries>, position: usize) -> Tensor<4> {
        let x = heads(x, self.num_heads);
        match boundaries {
            Some(boundaries) => self.rotary.apply_packed(x, boundaries),
            None => self.rotary.apply(x, position),
        }
    }
}

impl RecurrentMixer for Retention {
    fn scan(
        &self,
        x: Tensor<3>,
        boundaries: Option<&Boundaries>,
        _lower_bound: Option<Tensor<1>>,
        state: Option<RecurrentState>,
    ) -> (Tensor<3>, RecurrentState) {
        let time = x.dims()[1];
        let mut passage = Passage::new(&x, boundaries, state);
        let q = passage.convolve(self.q_conv1d.as_ref(), self.q_proj.forward(x.clone()));
        let k = passage.convolve(self.k_conv1d.as_ref(), self.k_proj.forward(x.clone()));
        let v = passage.convolve(self.v_conv1d.as_ref(), self.v_proj.forward(x.clone()));
        let (q, k) =
            (self.rotated(q, boundaries, passage.position), self.rotated(k, boundaries, passage.position));
        let v = heads(v, self.num_heads);
        let scanned = retention(q, k, v, passage.memory.take(), boundaries, &self.scan);
        let gate = heads(self.g_proj.forward(x), self.num_heads);
        let y = self.g_norm_swish_gate.forward(scanned.output, Some(gate));
        (self.o_proj.forward(side_by_side(y)), passage.end(scanned.final_state, time))
    }

    fn memory_dims(&self, batch: usize) -> [usize; 4] {
        let width = |projection: &Linear| projection.weight.lazy_shape()[1] / self.num_heads;
        [batch, self.num_heads, width(&self.k_proj), width(&self.v_proj)]
    }

    fn convolutions(&self) -> Vec<&ShortConvolution> {
        [&self.q_conv1d, &self.k_conv1d, &self.v_conv1d].into_iter().flatten().collect()
    }

    fn with_scan_form(mut self, form: ScanForm) -> Self {
        self.scan.form = form;
        self
    }
}
