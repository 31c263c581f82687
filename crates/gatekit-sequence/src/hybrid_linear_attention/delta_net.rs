//! DeltaNet's layer: the delta rule without decay.

use burn::config::Config;
use burn::module::Module;
use burn::nn::Linear;
use burn::tensor::{DType, Device, Tensor};
use gatekit_core::conv::ShortConvolution;
use gatekit_core::gate::{GateActivation, sigmoid};
use gatekit_core::norm::{GatedRmsNorm, GatedRmsNormConfig};
use gatekit_core::scan::{ScanForm, ScanOptions, delta_rule};
use gatekit_core::sequence::Boundaries;
use gatekit_core::{ConfigError, ModuleConfig, init};

use super::retention::norm_eps;
use crate::recurrent::{
    Passage, RecurrentMixer, RecurrentState, at_least_one, expanded, heads, short_convolution, side_by_side,
};

/// Activation of queries and keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum QkActivation {
    Silu,
    Relu,
    /// `elu(x) + 1`, which is positive.
    Elu,
    Identity,
}

/// What makes queries and keys of one length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum QkNorm {
    /// `x / sqrt(sum x^2 + 1e-6)`.
    L2,
    /// `x / sum x`.
    Sum,
}

/// Configuration of [`DeltaNet`]. Field names are those of flash-linear-attention's models.
#[derive(Config, Debug)]
pub struct DeltaNetConfig {
    /// Width `D` of input and output.
    pub hidden_size: usize,
    /// Number of heads `H`. Default 16.
    #[config(default = 16)]
    pub num_heads: usize,
    /// Queries and keys of all heads together are `expand_k * D` wide. Default 1.
    #[config(default = 1.0)]
    pub expand_k: f64,
    /// Values of all heads together are `expand_v * D` wide. Default 1.
    #[config(default = 1.0)]
    pub expand_v: f64,
    /// Whether how much is written is learned; else everything, `beta = 1`. Default true.
    #[config(default = true)]
    pub use_beta: bool,
    /// Whether the output is gated. Default false.
    #[config(default = false)]
    pub use_gate: bool,
    /// Activation of queries and keys: `silu`, `relu`, `elu` (plus 1) or `identity`. Default `silu`.
    #[config(default = "String::from(\"silu\")")]
    pub qk_activation: String,
    /// How queries and keys are normalised: `l2` or `sum`. Default `l2`.
    #[config(default = "String::from(\"l2\")")]
    pub qk_norm: String,
    /// Doubles `beta`, so that the state's transition can have negative eigenvalues. Default false.
    #[config(default = false)]
    pub allow_neg_eigval: bool,
    /// Short causal convolutions on queries, keys and values. Default true.
    #[config(default = true)]
    pub use_short_conv: bool,
    /// Width of these convolutions. Default 4.
    #[config(default = 4)]
    pub conv_size: usize,
    /// Added to the mean square in the norm of the output. Default 1e-5.
    #[config(default = 1e-5)]
    pub norm_eps: f64,
}

impl DeltaNetConfig {
    fn activation(&self) -> Result<QkActivation, ConfigError> {
        match self.qk_activation.as_str() {
            "silu" => Ok(QkActivation::Silu),
            "relu" => Ok(QkActivation::Relu),
            "elu" => Ok(QkActivation::Elu),
            "identity" => Ok(QkActivation::Identity),
            other => Err(ConfigError::new("qk_activation", other, "silu, relu, elu or identity")),
        }
    }

    fn norm(&self) -> Result<QkNorm, ConfigError> {
        match self.qk_norm.as_str() {
            "l2" => Ok(QkNorm::L2),
            "sum" => Ok(QkNorm::Sum),
            other => Err(ConfigError::new("qk_norm", other, "l2 or sum")),
        }
    }
}

impl ModuleConfig for DeltaNetConfig {
    type Module = DeltaNet;

    fn try_init(&self, device: &Device) -> Result<DeltaNet, ConfigError> {
        let (width, num_heads) = (self.hidden_size, self.num_heads);
        at_least_one(&[("hidden_size", width), ("num_heads", num_heads)])?;
        let key = expanded("expand_k", self.expand_k, width, num_heads)?;
        let value = expanded("expand_v", self.expand_v, width, num_heads)?;
        let (qk_activation, qk_norm) = (self.activation()?, self.norm()?);
        let linear = |from, to| init::linear(from, to, false, device);
        let silu = Some(GateActivation::Swish);
        let of_keys = silu.filter(|_| qk_activation == QkActivation::Silu);
        let convolution = |channels, activation| {
            short_convolution(self.use_short_conv, channels, self.conv_size, activation, device)
        };
        let norm = GatedRmsNormConfig::new(value / num_heads).with_eps(self.norm_eps);
        Ok(DeltaNet {
            q_proj: linear(width, key),
            k_proj: linear(width, key),
            v_proj: linear(width, value),
            q_conv1d: convolution(key, of_keys)?,
            k_conv1d: convolution(key, of_keys)?,
            v_conv1d: convolution(value, silu)?,
            b_proj: self.use_beta.then(|| linear(width, num_heads)),
            g_proj: self.use_gate.then(|| linear(width, value)),
            o_norm: norm.try_init(device).map_err(norm_eps)?,
            o_proj: linear(value, width),
            num_heads,
            qk_activation,
            qk_norm,
            allow_neg_eigval: self.allow_neg_eigval,
            scan: ScanOptions::default(),
        })
    }
}

/// Linear attention that replaces what a key held instead of adding to it: the delta rule.
///
/// ```text
/// q, k = norm(act(conv(W x)))   v = silu(conv(W_v x))   beta = sigmoid(W_b x)     (times 2 if allowed)
/// S_t = S_{t-1} + beta_t k_t (v_t - S_{t-1}^T k_t)^T        o_t = K^-1/2 S_t^T q_t        per head
/// y = W_o RMSNorm_head(o)                                   (times swish(W_g x) with `use_gate`)
/// ```
///
/// Without convolutions the activations remain. Keys normalised by their sum can be longer than
/// `sqrt(2 / beta)`, where the state grows without bound. Schlag et al. 2021, arXiv 2102.11174; Yang
/// et al. 2024, arXiv 2406.06484, eq. 3; negative eigenvalues: Grazzi et al. 2024, arXiv 2411.12537.
/// Weights start normal(0, 0.02), norms at 1.
#[derive(Module, Debug)]
pub struct DeltaNet {
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
    /// Write strength, `D -> H`.
    pub b_proj: Option<Linear>,
    /// Output gate, `D -> expand_v D`.
    pub g_proj: Option<Linear>,
    /// Norm of every head's output, and its gate.
    pub o_norm: GatedRmsNorm,
    /// Output, `expand_v D -> D`.
    pub o_proj: Linear,
    num_heads: usize,
    #[module(skip)]
    qk_activation: QkActivation,
    #[module(skip)]
    qk_norm: QkNorm,
    allow_neg_eigval: bool,
    #[module(skip)]
    scan: ScanOptions,
}

impl DeltaNet {
    /// Queries or keys from their projection.
    fn key(
        &self,
        passage: &mut Passage<'_>,
        convolution: Option<&ShortConvolution>,
        x: Tensor<3>,
    ) -> Tensor<4> {
        let x = match self.qk_activation {
            QkActivation::Silu => passage.convolve_silu(convolution, x),
            QkActivation::Identity => passage.convolve(convolution, x),
            QkActivation::Relu => GateActivation::Relu.apply(passage.convolve(convolution, x)),
            QkActivation::Elu => {
                let x = passage.convolve(convolution, x);
                x.clone().clamp_min(0.0) + x.clamp_max(0.0).exp()
            }
        };
        let x = heads(x, self.num_heads);
        match self.qk_norm {
            QkNorm::L2 => x,
            QkNorm::Sum => {
                let dtype = x.dtype();
                let wide = if dtype == DType::F64 { x } else { x.cast(DType::F32) };
                (wide.clone() / wide.sum_dim(3)).cast(dtype)
            }
        }
    }
}

/// How much is written, `sigmoid(logits)` in (0, 1), or in (0, 2); in at least float32.
pub(crate) fn write_strength(logits: Tensor<3>, allow_neg_eigval: bool) -> Tensor<3> {
    let logits = if logits.dtype() == DType::F64 { logits } else { logits.cast(DType::F32) };
    let beta = sigmoid(logits);
    if allow_neg_eigval { beta.mul_scalar(2.0) } else { beta }
}

impl RecurrentMixer for DeltaNet {
    fn scan(
        &self,
        x: Tensor<3>,
        boundaries: Option<&Boundaries>,
        _lower_bound: Option<Tensor<1>>,
        state: Option<RecurrentState>,
    ) -> (Tensor<3>, RecurrentState) {
        let [batch, time, _] = x.dims();
        let mut passage = Passage::new(&x, boundaries, state);
        let q = self.key(&mut passage, self.q_conv1d.as_ref(), self.q_proj.forward(x.clone()));
        let k = self.key(&mut passage, self.k_conv1d.as_ref(), self.k_proj.forward(x.clone()));
        let v = passage.convolve_silu(self.v_conv1d.as_ref(), self.v_proj.forward(x.clone()));
        let beta = match &self.b_proj {
            Some(projection) => write_strength(projection.forward(x.clone()), self.allow_neg_eigval),
            None => {
                let beta = if self.allow_neg_eigval { 2.0 } else { 1.0 };
                Tensor::full([batch, time, self.num_heads], beta, (&x.device(), q.dtype()))
            }
        };
        let scanned = delta_rule(
            q,
            k,
            heads(v, self.num_heads),
            beta,
            passage.memory.take(),
            boundaries,
            self.qk_norm == QkNorm::L2,
            &self.scan,
        );
        let gate = self.g_proj.as_ref().map(|projection| heads(projection.forward(x), self.num_heads));
        let y = self.o_norm.forward(scanned.output, gate);
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
