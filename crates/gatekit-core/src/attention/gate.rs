//! Gates of attention heads: a score for every channel or every head, from the token's features.

use burn::config::Config;
use burn::module::{Initializer, Module, Param};
use burn::nn::Linear;
use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::config::ModuleConfig;
use crate::error::ConfigError;
use crate::gate::{GateActivation, output_gate};
use crate::init;

/// What of an attention layer is gated: positions G1 to G5 of arXiv 2505.06708, figure 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GatePosition {
    /// No gate.
    None,
    /// G1: each head's output, before the output projection.
    Sdpa,
    /// G2: the values.
    Value,
    /// G3: the keys, before their norm and rotation.
    Key,
    /// G4: the queries, before their norm and rotation.
    Query,
    /// G5: the layer's output, after the output projection.
    Dense,
}

/// How many scores a gate has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GateGranularity {
    /// One a channel.
    Elementwise,
    /// One a head.
    Headwise,
}

/// The gate behind the softmax in configurations that know no other position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OutputGateKind {
    /// No gate.
    None,
    /// One score a head.
    Headwise,
    /// One score a channel.
    Elementwise,
}

impl OutputGateKind {
    /// The granularity of the gate, if there is one.
    pub fn granularity(self) -> Option<GateGranularity> {
        match self {
            Self::None => None,
            Self::Headwise => Some(GateGranularity::Headwise),
            Self::Elementwise => Some(GateGranularity::Elementwise),
        }
    }
}

/// How a gate acts on what it gates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GateMode {
    /// `y * act(z)`.
    Multiplicative,
    /// `y + act(z)`.
    Additive,
}

/// Configuration of [`HeadGate`].
#[derive(Config, Debug)]
pub struct HeadGateConfig {
    /// Channels of the input that decides, at least 1.
    pub input_size: usize,
    /// Heads of what is gated, at least 1.
    pub num_heads: usize,
    /// Channels a head of what is gated, at least 1.
    pub head_dim: usize,
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
    /// Whether the projection has a bias. Default false.
    #[config(default = false)]
    pub bias: bool,
}

impl ModuleConfig for HeadGateConfig {
    type Module = HeadGate;

    fn try_init(&self, device: &Device) -> Result<HeadGate, ConfigError> {
        for (field, size) in
            [("input_size", self.input_size), ("num_heads", self.num_heads), ("head_dim", self.head_dim)]
        {
            if size == 0 {
                return Err(ConfigError::new(field, 0, "at least 1"));
            }
        }
        self.activation.check("activation")?;
        let heads = if self.head_shared { 1 } else { self.num_heads };
        let width = self.granularity.width(self.head_dim);
        let gate_proj =
            self.input_dependent.then(|| init::linear(self.input_size, heads * width, self.bias, device));
        let gate_score = (!self.input_dependent).then(|| Initializer::Zeros.init([heads, width], device));
        Ok(HeadGate { gate_proj, gate_score, heads, width, mode: self.mode, activation: self.activation })
    }
}

impl GateGranularity {
    /// Scores a head of `head_dim` channels.
    pub fn width(self, head_dim: usize) -> usize {
        match self {
            Self::Elementwise => head_dim,
            Self::Headwise => 1,
        }
    }
}

/// `y' = y * act(z)` or `y + act(z)` with `z = W_g x`, or `z` learned without an input.
///
/// `y` has heads; there is one score a channel or a head, for every head or for all together. The
/// weight, `[heads * width]` scores head by head, starts normal(0, 0.02), a learned score at 0: a
/// sigmoid gate starts half open. Qiu et al., "Gated Attention for Large Language Models"
/// (arXiv 2505.06708), eq. 5 and table 1.
#[derive(Module, Debug)]
pub struct HeadGate {
    /// Projection of the input to the logits, `[input_size, heads * width]`.
    pub gate_proj: Option<Linear>,
    /// Logits that do not depend on the input, `[heads, width]`.
    pub gate_score: Option<Param<Tensor<2>>>,
    heads: usize,
    width: usize,
    #[module(skip)]
    mode: GateMode,
    #[module(skip)]
    activation: GateActivation,
}

impl HeadGate {
    /// A gate whose logits `[heads * width]` the projection makes, head by head.
    pub(super) fn from_projection(
        gate_proj: Linear,
        [heads, width]: [usize; 2],
        activation: GateActivation,
    ) -> Self {
        let gate_proj = Some(gate_proj);
        Self { gate_proj, gate_score: None, heads, width, mode: GateMode::Multiplicative, activation }
    }

    /// The logits of `x` `[batch, time, input_size]`: `[batch, time, heads or 1, head_dim or 1]`.
    ///
    /// # Panics
    ///
    /// When `x` does not have `input_size` channels.
    pub fn logits(&self, x: Tensor<3>) -> Tensor<4> {
        let [batch, time, _] = x.dims();
        let shape = [batch, time, self.heads, self.width];
        match (&self.gate_proj, &self.gate_score) {
            (Some(projection), _) => projection.forward(x).reshape(shape),
            (None, Some(scores)) => scores.val().reshape([1, 1, self.heads, self.width]).expand(shape),
            (None, None) => unreachable!("a gate has a projection or learned scores"),
        }
    }

    /// The scores `act(z)` of `x`, of the shape of [`logits`](Self::logits).
    ///
    /// # Panics
    ///
    /// As [`logits`](Self::logits).
    pub fn scores(&self, x: Tensor<3>) -> Tensor<4> {
        self.activation.apply(self.logits(x))
    }

    /// Gates `y` `[batch, time, heads, head_dim]` by logits as [`logits`](Self::logits) makes them.
    ///
    /// # Panics
    ///
    /// When the logits do not broadcast onto `y`; in debug builds also when one is NaN.
    pub fn apply(&self, y: Tensor<4>, logits: Tensor<4>) -> Tensor<4> {
        check_scores(&logits);
        match self.mode {
            GateMode::Multiplicative => output_gate(y, logits, self.activation),
            GateMode::Additive => y + self.activation.apply(logits),
        }
    }

    /// Gates `y` `[batch, time, heads, head_dim]` by `x` `[batch, time, input_size]`.
    ///
    /// # Panics
    ///
    /// As [`apply`](Self::apply).
    pub fn forward(&self, y: Tensor<4>, x: Tensor<3>) -> Tensor<4> {
        let logits = self.logits(x);
        self.apply(y, logits)
    }
}

/// Panics in debug builds when a gate's logit is NaN.
pub(super) fn check_scores(logits: &Tensor<4>) {
    if cfg!(debug_assertions) {
        let nan = logits.clone().contains_nan().into_data().iter::<bool>().any(|nan| nan);
        assert!(!nan, "attention gate: a score is NaN");
    }
}
