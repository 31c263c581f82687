//! Configuration of the layer.

use burn::config::Config;
use burn::module::Initializer;
use burn::tensor::Device;
use serde::{Deserialize, Serialize};

use super::gate::{GateGranularity, GateMode, GatePosition, HeadGateConfig};
use super::layer::{CausalAttention, FusedGate};
use super::rotary::RotaryEmbedding;
use crate::config::ModuleConfig;
use crate::error::ConfigError;
use crate::gate::GateActivation;
use crate::init;
use crate::norm::RmsNormConfig;

/// Where the rows of a gate stand in a query projection that holds both.
///
/// The two agree only when there are as many query as key heads; taking one for the other raises no
/// error and computes nonsense.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GateLayout {
    /// For every key head the rows of all its query heads, then those of their gates: the
    /// checkpoints of arXiv 2505.06708.
    KvGroup,
    /// For every query head its rows, then those of its gate: Qwen3-Next.
    Head,
}

/// What becomes of each head's output when nothing gates it: a non-linearity between the value and
/// output projections, the controls of arXiv 2505.06708, table 3.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SdpaTransform {
    /// Nothing.
    None,
    /// An RMSNorm over each head's channels, with one weight for all heads.
    RmsNorm,
    /// `z sigmoid(z)`, element by element.
    Silu,
}

/// The gate of a [`CausalAttention`]. See [`HeadGate`](super::HeadGate) for what it computes.
#[derive(Config, Debug, PartialEq)]
pub struct AttentionGateConfig {
    /// What is gated. Default [`GatePosition::Sdpa`].
    #[config(default = "GatePosition::Sdpa")]
    pub position: GatePosition,
    /// One score a channel (the default) or a head.
    #[config(default = "GateGranularity::Elementwise")]
    pub granularity: GateGranularity,
    /// Whether all heads have the same scores. Default false.
    #[config(default = false)]
    pub head_shared: bool,
    /// Multiplies (the default) or adds.
    #[config(default = "GateMode::Multiplicative")]
    pub mode: GateMode,
    /// Activation of the scores. Default sigmoid.
    #[config(default = "GateActivation::Sigmoid")]
    pub activation: GateActivation,
    /// False: learned scores that do not depend on the input. Default true.
    #[config(default = true)]
    pub input_dependent: bool,
    /// The gate's rows stand in `q_proj`, in this order; then the gate is multiplicative, at
    /// [`GatePosition::Sdpa`], and every head has its own scores. `None` (the default): a projection
    /// of its own.
    #[config(default = "None")]
    pub fused: Option<GateLayout>,
}

/// Configuration of [`CausalAttention`].
#[derive(Config, Debug)]
pub struct CausalAttentionConfig {
    /// Channels of input and output; without `head_dim` a multiple of `num_heads`.
    pub hidden_size: usize,
    /// Query heads, at least 1.
    pub num_heads: usize,
    /// Key and value heads, each shared by consecutive query heads; divides `num_heads`. `None` (the
    /// default): as many as query heads.
    #[config(default = "None")]
    pub num_kv_heads: Option<usize>,
    /// Channels of a head. `None` (the default): `hidden_size / num_heads`.
    #[config(default = "None")]
    pub head_dim: Option<usize>,
    /// Sliding window w, at least 1: a token sees itself and the w - 1 before it. `None` (the default): all.
    #[config(default = "None")]
    pub window_size: Option<usize>,
    /// Base of the rotary positions; `None`: no positions. Default 10000.
    #[config(default = "Some(10000.0)")]
    pub rope_theta: Option<f64>,
    /// Share of each head's channels that is rotated, the first ones, above 0 and at most 1; truncated
    /// to whole channels. Default 1.
    #[config(default = 1.0)]
    pub partial_rotary_factor: f64,
    /// Whether the query, key and value projections have biases. Default false.
    #[config(default = false)]
    pub qkv_bias: bool,
    /// Whether the output projection has a bias. Default false.
    #[config(default = false)]
    pub output_bias: bool,
    /// RMSNorm of each head's queries and keys, before the rotation. Default false.
    #[config(default = false)]
    pub qk_norm: bool,
    /// Added to the mean square in the layer's norms, above 0. Default 1e-6.
    #[config(default = 1e-6)]
    pub norm_eps: f64,
    /// The norms of queries and keys store their weights minus 1. Default false.
    #[config(default = false)]
    pub zero_centered_norm: bool,
    /// A learned logit a head in the softmax's denominator. Default false.
    #[config(default = false)]
    pub sinks: bool,
    /// What becomes of each head's output before its gate. Default nothing.
    #[config(default = "SdpaTransform::None")]
    pub sdpa_transform: SdpaTransform,
    /// The layer's gate. Default none.
    #[config(default = "None")]
    pub gate: Option<AttentionGateConfig>,
}

impl AttentionGateConfig {
    fn check(&self) -> Result<(), ConfigError> {
        let own_scores = self.granularity == GateGranularity::Elementwise && !self.head_shared;
        if self.position == GatePosition::Dense && !own_scores {
            let got = format!(
                "{:?}, shared by heads: {}, behind the output projection",
                self.granularity, self.head_shared
            );
            return Err(ConfigError::new(
                "gate.granularity",
                got,
                "elementwise, not shared: there are no heads",
            ));
        }
        let plain = self.position == GatePosition::Sdpa
            && self.mode == GateMode::Multiplicative
            && self.input_dependent
            && !self.head_shared;
        if self.fused.is_some() && !plain {
            return Err(ConfigError::new(
                "gate.fused",
                format!("{self:?}"),
                "a multiplicative gate of the input at position sdpa, not shared by heads",
            ));
        }
        self.activation.check("gate.activation")
    }
}

impl CausalAttentionConfig {
    /// Channels of a head and key heads, checked.
    fn sizes(&self) -> Result<[usize; 2], ConfigError> {
        let (hidden, heads) = (self.hidden_size, self.num_heads);
        let kv_heads = self.num_kv_heads.unwrap_or(heads);
        if heads == 0 {
            return Err(ConfigError::new("num_heads", heads, "at least 1"));
        }
        let head_dim = match self.head_dim {
            Some(0) => return Err(ConfigError::new("head_dim", 0, "at least 1")),
            Some(_) if hidden == 0 => return Err(ConfigError::new("hidden_size", 0, "at least 1")),
            Some(head_dim) => head_dim,
            None if hidden == 0 || hidden % heads != 0 => {
                let need = format!("a multiple of num_heads = {heads}, at least one channel a head");
                return Err(ConfigError::new("hidden_size", hidden, need));
            }
            None => hidden / heads,
        };
        if kv_heads == 0 || heads % kv_heads != 0 {
            return Err(ConfigError::new(
                "num_kv_heads",
                kv_heads,
                format!("a divisor of num_heads = {heads}"),
            ));
        }
        Ok([head_dim, kv_heads])
    }

    fn rotary(&self, head_dim: usize) -> Result<Option<RotaryEmbedding>, ConfigError> {
        let factor = self.partial_rotary_factor;
        if !(factor > 0.0 && factor <= 1.0) {
            return Err(ConfigError::new("partial_rotary_factor", factor, "above 0 and at most 1"));
        }
        let Some(theta) = self.rope_theta else { return Ok(None) };
        let rotated = (head_dim as f64 * factor) as usize;
        if factor < 1.0 && (rotated == 0 || rotated % 2 == 1) {
            let got = format!("{factor}, {rotated} of {head_dim} channels");
            return Err(ConfigError::new("partial_rotary_factor", got, "an even number of rotated channels"));
        }
        RotaryEmbedding::new(rotated, theta).map(Some)
    }
}

impl ModuleConfig for CausalAttentionConfig {
    type Module = CausalAttention;

    fn try_init(&self, device: &Device) -> Result<CausalAttention, ConfigError> {
        let [head_dim, kv_heads] = self.sizes()?;
        let (hidden, heads) = (self.hidden_size, self.num_heads);
        if self.window_size == Some(0) {
            return Err(ConfigError::new("window_size", 0, "at least 1, or null for all tokens"));
        }
        let rotary = self.rotary(head_dim)?;
        let norm = |zero_centered| {
            RmsNormConfig::new(head_dim)
                .with_eps(self.norm_eps)
                .with_zero_centered(zero_centered)
                .try_init(device)
                .map_err(|error| ConfigError::new("norm_eps", error.got, error.need))
        };
        let qk_norm = || self.qk_norm.then(|| norm(self.zero_centered_norm)).transpose();
        let (mut fused, mut gate, mut q_rows) = (None, None, heads * head_dim);
        let gated = self.gate.as_ref().filter(|gate| gate.position != GatePosition::None);
        if let Some(config) = gated {
            config.check()?;
            let width = config.granularity.width(head_dim);
            if let Some(layout) = config.fused {
                q_rows += heads * width;
                fused = Some(FusedGate { layout, width, activation: config.activation });
            } else {
                let (gated_heads, gated_dim) = match config.position {
                    GatePosition::Sdpa | GatePosition::Query => (heads, head_dim),
                    GatePosition::Value | GatePosition::Key => (kv_heads, head_dim),
                    GatePosition::Dense | GatePosition::None => (1, hidden),
                };
                let config = HeadGateConfig::new(hidden, gated_heads, gated_dim)
                    .with_granularity(config.granularity)
                    .with_head_shared(config.head_shared)
                    .with_mode(config.mode)
                    .with_activation(config.activation)
                    .with_input_dependent(config.input_dependent);
                gate = Some(config.try_init(device).map_err(|error| error.within("gate"))?);
            }
        }
        Ok(CausalAttention {
            q_proj: init::linear(hidden, q_rows, self.qkv_bias, device),
            k_proj: init::linear(hidden, kv_heads * head_dim, self.qkv_bias, device),
            v_proj: init::linear(hidden, kv_heads * head_dim, self.qkv_bias, device),
            o_proj: init::linear(heads * head_dim, hidden, self.output_bias, device),
            q_norm: qk_norm()?,
            k_norm: qk_norm()?,
            sdpa_norm: (self.sdpa_transform == SdpaTransform::RmsNorm).then(|| norm(false)).transpose()?,
            sinks: self.sinks.then(|| Initializer::Zeros.init([heads], device)),
            gate,
            gate_position: gated.map(|gate| gate.position),
            fused_gate: fused,
            sdpa_transform: self.sdpa_transform,
            rotary,
            num_heads: heads,
            num_kv_heads: kv_heads,
            head_dim,
            window_size: self.window_size,
        })
    }
}
