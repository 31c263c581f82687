//! The head's configuration.

use std::fmt;

use burn::config::Config;
use burn::nn::LinearConfig;
use burn::tensor::Device;
use gatekit_core::{ConfigError, ModuleConfig, check_sizes};
use serde::{Deserialize, Serialize};

use super::experts::HectoExpert;
use super::gate::Top1GateConfig;
use super::head::HectoHead;

/// What an expert is.
///
/// In configuration files it is its name: `"ffnn"` or `"gru"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum ExpertKind {
    /// A feed-forward net on the sentence vector.
    Ffnn,
    /// A GRU over the tokens.
    Gru,
}

impl ExpertKind {
    /// All kinds.
    pub const ALL: [Self; 2] = [Self::Ffnn, Self::Gru];

    /// Reads a name.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] for an unknown one.
    pub fn parse(name: &str) -> Result<Self, ConfigError> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.name() == name)
            .ok_or_else(|| ConfigError::new("experts", format!("`{name}`"), "one of ffnn, gru"))
    }

    /// Its name in configuration files.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Ffnn => "ffnn",
            Self::Gru => "gru",
        }
    }
}

impl fmt::Display for ExpertKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl From<ExpertKind> for String {
    fn from(kind: ExpertKind) -> Self {
        kind.to_string()
    }
}

impl TryFrom<String> for ExpertKind {
    type Error = ConfigError;

    fn try_from(name: String) -> Result<Self, ConfigError> {
        Self::parse(&name)
    }
}

/// How the gate learns from a choice that has no gradient of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Estimator {
    /// The choice is trained as if it were the probabilities; all experts run in training.
    StraightThrough,
    /// The chosen expert's output times its probability (Switch Transformers).
    Switch,
    /// Not at all: the gate learns from its own losses alone.
    None,
}

/// Configuration of [`HectoHead`]; defaults are those of the released AG News checkpoint.
#[derive(Config, Debug)]
pub struct HectoConfig {
    /// Width of the encoder's states.
    #[config(default = 768)]
    pub encoder_dim: usize,
    /// Width after the projection: what gate and experts read.
    #[config(default = 256)]
    pub input_dim: usize,
    /// Inner width of the feed-forward net, and of the GRU's state.
    #[config(default = 128)]
    pub hidden_dim: usize,
    /// Classes, or 1 for regression.
    #[config(default = 4)]
    pub num_outputs: usize,
    /// The experts, in order; at least one.
    #[config(default = "vec![ExpertKind::Ffnn, ExpertKind::Gru]")]
    pub experts: Vec<ExpertKind>,
    /// Temperature tau of the gate, above 0.
    #[config(default = 1.5)]
    pub temperature: f64,
    /// How the gate learns.
    #[config(default = "Estimator::StraightThrough")]
    pub estimator: Estimator,
}

impl HectoConfig {
    /// The gate's configuration.
    pub fn gate(&self) -> Top1GateConfig {
        Top1GateConfig::new(self.input_dim)
            .with_num_experts(self.experts.len())
            .with_temperature(self.temperature)
            .with_estimator(self.estimator)
    }
}

impl ModuleConfig for HectoConfig {
    type Module = HectoHead;

    fn try_init(&self, device: &Device) -> Result<HectoHead, ConfigError> {
        check_sizes(&[
            ("encoder_dim", self.encoder_dim),
            ("input_dim", self.input_dim),
            ("hidden_dim", self.hidden_dim),
            ("num_outputs", self.num_outputs),
        ])?;
        if self.experts.is_empty() {
            return Err(ConfigError::new("experts", "none", "at least one of ffnn, gru"));
        }
        let expert = |kind: &ExpertKind| HectoExpert::try_new(*kind, self, device);
        Ok(HectoHead {
            proj: LinearConfig::new(self.encoder_dim, self.input_dim).init(device),
            gate: self.gate().try_init(device)?,
            experts: self.experts.iter().map(expert).collect::<Result<_, _>>()?,
        })
    }
}
