//! Sizes and options of the layer, and how it starts.

use burn::config::Config;
use burn::tensor::Device;
use gatekit_core::gate::GateActivation;
use gatekit_core::norm::GatedRmsNormConfig;
use gatekit_core::scan::ScanOptions;
use gatekit_core::{ConfigError, ModuleConfig, check_sizes, init};

use super::layer::KimiDeltaAttention;
use crate::recurrent::short_convolution;

/// Configuration of [`KimiDeltaAttention`].
#[derive(Config, Debug)]
pub struct KimiDeltaAttentionConfig {
    /// Width `D` of input and output; 2304 in the 48B model.
    pub hidden_size: usize,
    /// Query and key heads `H`; 32 in the 48B model.
    pub num_heads: usize,
    /// Channels of a head's query, key and value; 128 in the 48B model.
    pub head_dim: usize,
    /// Value heads, a multiple of `num_heads`: consecutive ones share a query and key head.
    /// `None`: `num_heads`.
    pub num_v_heads: Option<usize>,
    /// Short causal convolutions on queries, keys and values. SiLU follows either way.
    #[config(default = true)]
    pub use_short_conv: bool,
    /// Width of these convolutions.
    #[config(default = 4)]
    pub short_conv_kernel_size: usize,
    /// Floor of the log decay, below 0 (flash-linear-attention uses -5), which a sigmoid approaches.
    /// `None`: a softplus gate without a floor.
    pub lower_bound: Option<f64>,
    /// Write strengths in (0, 2) instead of (0, 1): the state's transition may have negative
    /// eigenvalues.
    #[config(default = false)]
    pub allow_neg_eigval: bool,
    /// Bias in the second projection of the output gate (flash-linear-attention: true).
    #[config(default = false)]
    pub output_gate_bias: bool,
    /// Added to the mean square in the norm of the output.
    #[config(default = 1e-5)]
    pub rms_norm_eps: f64,
    /// Factor on the queries; `None`: `head_dim^-1/2`.
    pub scale: Option<f64>,
    /// Steps that the scan treats at once. Never changes the result.
    #[config(default = 64)]
    pub chunk_size: usize,
}

impl KimiDeltaAttentionConfig {
    fn check(&self) -> Result<(), ConfigError> {
        check_sizes(&[
            ("hidden_size", self.hidden_size),
            ("num_heads", self.num_heads),
            ("head_dim", self.head_dim),
            ("short_conv_kernel_size", self.short_conv_kernel_size),
            ("num_v_heads", self.num_v_heads.unwrap_or(self.num_heads)),
            ("chunk_size", self.chunk_size),
        ])?;
        if let Some(heads) = self.num_v_heads.filter(|heads| !heads.is_multiple_of(self.num_heads)) {
            let need = format!("a multiple of num_heads = {}, or null", self.num_heads);
            return Err(ConfigError::new("num_v_heads", heads, need));
        }
        if let Some(floor) = self.lower_bound.filter(|floor| !(floor.is_finite() && *floor < 0.0)) {
            return Err(ConfigError::new("lower_bound", floor, "a number below 0, or null"));
        }
        if let Some(scale) = self.scale.filter(|scale| !scale.is_finite()) {
            return Err(ConfigError::new("scale", scale, "a finite number, or null"));
        }
        if !(self.rms_norm_eps.is_finite() && self.rms_norm_eps > 0.0) {
            return Err(ConfigError::new("rms_norm_eps", self.rms_norm_eps, "a positive number"));
        }
        Ok(())
    }

    /// Tiles within a chunk: the largest divisor of it up to 16.
    fn sub_chunk_size(&self) -> usize {
        (1..=16).rev().find(|size| self.chunk_size.is_multiple_of(*size)).unwrap_or(1)
    }
}

impl ModuleConfig for KimiDeltaAttentionConfig {
    type Module = KimiDeltaAttention;

    fn try_init(&self, device: &Device) -> Result<KimiDeltaAttention, ConfigError> {
        self.check()?;
        let (width, dim) = (self.hidden_size, self.head_dim);
        let value_heads = self.num_v_heads.unwrap_or(self.num_heads);
        let (keys, values) = (self.num_heads * dim, value_heads * dim);
        let linear = |from, to| init::linear(from, to, false, device);
        let convolution = |channels| {
            let (used, size) = (self.use_short_conv, self.short_conv_kernel_size);
            short_convolution(used, channels, size, Some(GateActivation::Swish), device)
        };
        Ok(KimiDeltaAttention {
            q_proj: linear(width, keys),
            k_proj: linear(width, keys),
            v_proj: linear(width, values),
            q_conv1d: convolution(keys)?,
            k_conv1d: convolution(keys)?,
            v_conv1d: convolution(values)?,
            A_log: init::a_log(value_heads, 1.0, 16.0, device),
            dt_bias: init::dt_bias(values, 1e-3, 0.1, device),
            f_a_proj: linear(width, dim),
            f_b_proj: linear(dim, values),
            b_proj: linear(width, value_heads),
            g_a_proj: linear(width, dim),
            g_b_proj: init::linear(dim, values, self.output_gate_bias, device),
            o_norm: GatedRmsNormConfig::new(dim)
                .with_eps(self.rms_norm_eps)
                .with_activation(GateActivation::Sigmoid)
                .try_init(device)?,
            o_proj: linear(values, width),
            num_v_heads: value_heads,
            head_dim: dim,
            lower_bound: self.lower_bound,
            allow_neg_eigval: self.allow_neg_eigval,
            scan: ScanOptions {
                scale: self.scale,
                chunk_size: self.chunk_size,
                sub_chunk_size: self.sub_chunk_size(),
                ..ScanOptions::default()
            },
        })
    }
}
