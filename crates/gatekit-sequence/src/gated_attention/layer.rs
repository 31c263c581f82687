//! The layer in its general and its fused form: two configurations of the core's attention.

use burn::config::Config;
use burn::tensor::Device;
use gatekit_core::attention::{
    AttentionGateConfig, CausalAttention, CausalAttentionConfig, GateGranularity, GateLayout, GateMode,
    GatePosition, OutputGateKind, SdpaTransform,
};
use gatekit_core::checkpoint::TensorLayout;
use gatekit_core::gate::GateActivation;
use gatekit_core::{ConfigError, InputError, ModuleConfig};

/// Softmax attention with a gate at any position.
pub type GatedAttention = CausalAttention;

/// Softmax attention whose gate stands in the query projection.
pub type FusedGatedAttention = CausalAttention;

/// Configuration of [`GatedAttention`].
///
/// ```text
/// y = W_o (attention(rope(norm(W_q x)), rope(norm(W_k x)), W_v x) * sigmoid(W_g x))
/// ```
///
/// or with the gate, multiplied or added, at another position. Defaults are those of the paper's best
/// layer: position G1, elementwise, a score for every head, multiplicative, sigmoid.
#[derive(Config, Debug)]
pub struct GatedAttentionConfig {
    /// Width `D` of input and output.
    pub hidden_size: usize,
    /// Number of query heads `H`.
    pub num_heads: usize,
    /// Number of key and value heads `G`, each shared by consecutive query heads; `None`: `H`.
    pub num_kv_heads: Option<usize>,
    /// Channels of a head; `None`: `D / H`.
    pub head_dim: Option<usize>,
    /// What is gated.
    #[config(default = "GatePosition::Sdpa")]
    pub gate_position: GatePosition,
    /// One score a channel or a head; behind the output projection (dense) a channel.
    #[config(default = "GateGranularity::Elementwise")]
    pub gate_granularity: GateGranularity,
    /// One score for all heads.
    #[config(default = false)]
    pub gate_head_shared: bool,
    /// Multiplies or adds.
    #[config(default = "GateMode::Multiplicative")]
    pub gate_mode: GateMode,
    /// Activation of the scores; the paper adds with SiLU and multiplies with sigmoid.
    #[config(default = "GateActivation::Sigmoid")]
    pub gate_activation: GateActivation,
    /// False: learned scores that do not depend on the input.
    #[config(default = true)]
    pub gate_input_dependent: bool,
    /// A non-linearity behind the softmax that is no gate.
    #[config(default = "SdpaTransform::None")]
    pub sdpa_transform: SdpaTransform,
    /// RMSNorm of each head's queries and keys.
    #[config(default = true)]
    pub qk_norm: bool,
    /// Added to the mean square in every RMSNorm.
    #[config(default = 1e-6)]
    pub rms_norm_eps: f64,
    /// Base of the rotary positions; `None`: no positions.
    #[config(default = "Some(10000.0)")]
    pub rope_theta: Option<f64>,
}

impl GatedAttentionConfig {
    /// What published files call the layer's tensors: `gate_proj` and `gate_score` beside the
    /// other projections.
    pub fn layout() -> TensorLayout {
        TensorLayout::default().with_prefix("gate.", "")
    }
}

impl ModuleConfig for GatedAttentionConfig {
    type Module = GatedAttention;

    fn try_init(&self, device: &Device) -> Result<GatedAttention, ConfigError> {
        let gate = AttentionGateConfig::new()
            .with_position(self.gate_position)
            .with_granularity(self.gate_granularity)
            .with_head_shared(self.gate_head_shared)
            .with_mode(self.gate_mode)
            .with_activation(self.gate_activation)
            .with_input_dependent(self.gate_input_dependent);
        CausalAttentionConfig::new(self.hidden_size, self.num_heads)
            .with_num_kv_heads(self.num_kv_heads)
            .with_head_dim(self.head_dim)
            .with_qk_norm(self.qk_norm)
            .with_norm_eps(self.rms_norm_eps)
            .with_rope_theta(self.rope_theta)
            .with_sdpa_transform(self.sdpa_transform)
            .with_gate(Some(gate))
            .try_init(device)
            .map_err(|error| renamed(error, &[("gate.", "gate_"), ("norm_eps", "rms_norm_eps")]))
    }
}

/// Configuration of [`FusedGatedAttention`]. Field names are those of the published checkpoints,
/// with `gate` and `gate_layout` for what their code fixes.
#[derive(Config, Debug)]
pub struct FusedGatedAttentionConfig {
    /// Width `D` of input and output.
    pub hidden_size: usize,
    /// Number of query heads `H`.
    pub num_attention_heads: usize,
    /// Number of key and value heads `G`, each shared by consecutive query heads; `None`: `H`.
    pub num_key_value_heads: Option<usize>,
    /// Channels of a head; `None`: `D / H`.
    pub head_dim: Option<usize>,
    /// One sigmoid score a head or a channel of each head's output, or none.
    #[config(default = "OutputGateKind::Elementwise")]
    pub gate: OutputGateKind,
    /// Where the gate's rows stand in `q_proj`.
    #[config(default = "GateLayout::KvGroup")]
    pub gate_layout: GateLayout,
    /// RMSNorm of each head's queries and keys.
    #[config(default = true)]
    pub use_qk_norm: bool,
    /// These norms store their weights minus 1.
    #[config(default = false)]
    pub zero_centered_norm: bool,
    /// Bias on all four projections.
    #[config(default = false)]
    pub qkv_bias: bool,
    /// Share of each head's channels that is rotated.
    #[config(default = 1.0)]
    pub partial_rotary_factor: f64,
    /// Added to the mean square in these norms.
    #[config(default = 1e-6)]
    pub rms_norm_eps: f64,
    /// Base of the rotary positions; `None`: no positions.
    #[config(default = "Some(10000.0)")]
    pub rope_theta: Option<f64>,
}

impl FusedGatedAttentionConfig {
    /// Rows that `q_proj` has, in words: both layouts have equally many.
    pub(super) fn rows_in_words(&self) -> String {
        let heads = self.num_attention_heads;
        let groups = self.num_key_value_heads.unwrap_or(heads).max(1);
        let head_dim = self.head_dim.unwrap_or(self.hidden_size / heads.max(1));
        let Some(granularity) = self.gate.granularity() else {
            return format!("{} rows: {heads} heads x {head_dim}, without a gate", heads * head_dim);
        };
        let (width, shared) = (granularity.width(head_dim), heads / groups);
        format!(
            "{} rows: in layout kv-group {groups} groups x ({shared} queries x {head_dim} + {shared} gates x \
             {width}), in layout head {heads} heads x ({head_dim} of the query + {width} of the gate)",
            heads * (head_dim + width)
        )
    }

    /// Checks the number of rows of a `q_proj.weight` from outside.
    ///
    /// The number does not tell the layouts apart: that must be known from elsewhere.
    ///
    /// # Errors
    ///
    /// [`InputError`] names what both layouts need.
    pub fn check_query_rows(&self, rows: usize) -> Result<(), InputError> {
        let heads = self.num_attention_heads;
        let head_dim = self.head_dim.unwrap_or(self.hidden_size / heads.max(1));
        let width = self.gate.granularity().map_or(0, |granularity| granularity.width(head_dim));
        match rows == heads * (head_dim + width) {
            true => Ok(()),
            false => Err(InputError::new("q_proj.weight", format!("{rows} rows"), self.rows_in_words())),
        }
    }
}

impl ModuleConfig for FusedGatedAttentionConfig {
    type Module = FusedGatedAttention;

    fn try_init(&self, device: &Device) -> Result<FusedGatedAttention, ConfigError> {
        let gate = self.gate.granularity().map(|granularity| {
            AttentionGateConfig::new().with_granularity(granularity).with_fused(Some(self.gate_layout))
        });
        CausalAttentionConfig::new(self.hidden_size, self.num_attention_heads)
            .with_num_kv_heads(self.num_key_value_heads)
            .with_head_dim(self.head_dim)
            .with_qkv_bias(self.qkv_bias)
            .with_output_bias(self.qkv_bias)
            .with_qk_norm(self.use_qk_norm)
            .with_zero_centered_norm(self.zero_centered_norm)
            .with_partial_rotary_factor(self.partial_rotary_factor)
            .with_norm_eps(self.rms_norm_eps)
            .with_rope_theta(self.rope_theta)
            .with_gate(gate)
            .try_init(device)
            .map_err(|error| {
                renamed(
                    error,
                    &[
                        ("num_heads", "num_attention_heads"),
                        ("num_kv_heads", "num_key_value_heads"),
                        ("norm_eps", "rms_norm_eps"),
                    ],
                )
            })
    }
}

/// An error of the core's configuration under this one's field names.
fn renamed(mut error: ConfigError, names: &[(&str, &str)]) -> ConfigError {
    for (core, own) in names {
        if let Some(rest) = error.field.strip_prefix(core) {
            error.field = format!("{own}{rest}");
            break;
        }
    }
    error
}
