//! What an adaptive computation module is made of, in the published field names.

use std::fmt;

use burn::config::Config;
use burn::module::{Initializer, Param};
use burn::nn::LinearConfig;
use burn::tensor::{Device, Tensor};
use gatekit_core::checkpoint::TensorLayout;
use gatekit_core::{ConfigError, ModuleConfig, check_sizes};
use serde::{Deserialize, Serialize};

use super::gate::AcmGate;
use super::layer::Acm;
use super::learners::AcmLearners;

/// Which biases the learners have. In configuration files it is its name in snake case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AcmBias {
    /// Neither.
    None,
    /// `b1`, before the activation.
    HiddenOnly,
    /// `b2`: one of each learner, and `h_0`.
    OutOnly,
    /// `b1` and `b2`.
    Both,
}

impl AcmBias {
    /// Whether there is a bias before the activation.
    pub fn hidden(self) -> bool {
        matches!(self, Self::HiddenOnly | Self::Both)
    }

    /// Whether there are biases of the outputs.
    pub fn out(self) -> bool {
        matches!(self, Self::OutOnly | Self::Both)
    }
}

impl fmt::Display for AcmBias {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::None => "none",
            Self::HiddenOnly => "hidden_only",
            Self::OutOnly => "out_only",
            Self::Both => "both",
        })
    }
}

/// What stands between a learner's two matrices. In configuration files it is its name in lower case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AcmActivation {
    /// The exact GELU, in place of an MLP.
    Gelu,
    /// `max(x, 0)`.
    Relu,
    /// Nothing, in place of a projection: a sum of low-rank maps.
    Identity,
}

/// How the gate's logits become a gate. In configuration files it is its name in lower case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AcmGateKind {
    /// Gumbel-softmax in training, the largest logit in evaluation.
    Gumbel,
    /// The softmax of the logits, without sampling.
    Soft,
}

/// Configuration of [`AcmLearners`].
#[derive(Config, Debug)]
pub struct AcmLearnersConfig {
    /// Width d of input and output.
    pub hidden_dim: usize,
    /// Inner width b of one learner.
    pub block_dim: usize,
    /// Learners N. Default 4.
    #[config(default = 4)]
    pub num_blocks: usize,
    /// Which biases there are. Default `hidden_only`.
    #[config(default = "AcmBias::HiddenOnly")]
    pub bias: AcmBias,
    /// Between the two matrices. Default `gelu`.
    #[config(default = "AcmActivation::Gelu")]
    pub activation: AcmActivation,
    /// Keep the gradient of a partial sum from the learners before its last one. Default false.
    #[config(default = false)]
    pub detach: bool,
}

impl ModuleConfig for AcmLearnersConfig {
    type Module = AcmLearners;

    fn try_init(&self, device: &Device) -> Result<AcmLearners, ConfigError> {
        let (d, blocks, b) = (self.hidden_dim, self.num_blocks, self.block_dim);
        check_sizes(&[("hidden_dim", d), ("num_blocks", blocks), ("block_dim", b)])?;
        let inner = blocks * b;
        check_sizes(&[("num_blocks * block_dim", inner)])?;
        let (of_hidden, of_out) = (1.0 / (b as f64).sqrt(), 1.0 / (d as f64).sqrt());
        let (hidden, out) = (self.bias.hidden(), self.bias.out());
        Ok(AcmLearners {
            w1: uniform([d, inner], 1.0 / (inner as f64).sqrt(), device),
            b1: hidden.then(|| uniform([inner], of_hidden, device)),
            w2: uniform([inner, d], of_out, device),
            b2: out.then(|| uniform([(blocks + 1) * d], of_out, device)),
            num_blocks: blocks,
            activation: self.activation,
            detach: self.detach,
        })
    }
}

/// Configuration of [`AcmGate`].
#[derive(Config, Debug)]
pub struct AcmGateConfig {
    /// Width d of the tokens.
    pub hidden_dim: usize,
    /// Learners N that are chosen from. Default 4.
    #[config(default = 4)]
    pub num_blocks: usize,
    /// How logits become a gate. Default `gumbel`.
    #[config(default = "AcmGateKind::Gumbel")]
    pub gate_kind: AcmGateKind,
    /// Linear maps in the gate, at least 1. Default 3.
    #[config(default = 3)]
    pub gate_depth: usize,
    /// Width between them. Default 16.
    #[config(default = 16)]
    pub gating_hidden_dim: usize,
    /// Temperature of the Gumbel-softmax, above 0. Default 0.8.
    #[config(default = 0.8)]
    pub gs_tau: f64,
    /// One-hot in the forward pass of training, with a straight-through gradient. Default true.
    #[config(default = true)]
    pub gs_hard: bool,
    /// Fewest learners that may be chosen, at most N. Default 0; 1 in the paper's projections.
    #[config(default = 0)]
    pub min_choice: usize,
}

/// More maps than any gate has: a larger number in a configuration is a damaged file.
const MAX_DEPTH: usize = 1000;

impl AcmGateConfig {
    /// Choices C there are: `min_choice ..= num_blocks`.
    pub fn classes(&self) -> usize {
        (self.num_blocks + 1).saturating_sub(self.min_choice)
    }

    /// What the published files call the gate's tensors: `gating_network.fc.` for one map, else `gating_network.net.{i}.`.
    pub fn layout() -> TensorLayout {
        TensorLayout::default()
            .with_prefix("fc.", "gating_network.fc.")
            .with_prefix("net.", "gating_network.net.")
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        check_sizes(&[("hidden_dim", self.hidden_dim), ("num_blocks", self.num_blocks)])?;
        check_sizes(&[("gate_depth", self.gate_depth), ("gating_hidden_dim", self.gating_hidden_dim)])?;
        if self.gate_depth > MAX_DEPTH {
            return Err(ConfigError::new("gate_depth", self.gate_depth, format!("at most {MAX_DEPTH}")));
        }
        if !(self.gs_tau > 0.0 && self.gs_tau.is_finite()) {
            return Err(ConfigError::new("gs_tau", self.gs_tau, "a finite number above 0"));
        }
        if self.min_choice > self.num_blocks {
            let need = format!("at most `num_blocks` = {}", self.num_blocks);
            return Err(ConfigError::new("min_choice", self.min_choice, need));
        }
        Ok(())
    }
}

impl ModuleConfig for AcmGateConfig {
    type Module = AcmGate;

    fn try_init(&self, device: &Device) -> Result<AcmGate, ConfigError> {
        self.check()?;
        let linear = |from, to| LinearConfig::new(from, to).init(device);
        let (inner, classes) = (self.gating_hidden_dim, self.classes());
        let width = |map: usize, outer: usize| if map == 0 { outer } else { inner };
        let deep = (0..self.gate_depth).map(|map| {
            let to = if map + 1 == self.gate_depth { classes } else { inner };
            linear(width(map, self.hidden_dim), to)
        });
        Ok(AcmGate {
            fc: (self.gate_depth == 1).then(|| linear(self.hidden_dim, classes)),
            net: if self.gate_depth == 1 { Vec::new() } else { deep.collect() },
            num_blocks: self.num_blocks,
            min_choice: self.min_choice,
            kind: self.gate_kind,
            tau: self.gs_tau,
            hard: self.gs_hard,
        })
    }
}

/// Configuration of [`Acm`]. The fields are those of [`AcmLearnersConfig`] and [`AcmGateConfig`].
#[derive(Config, Debug)]
pub struct AcmConfig {
    /// Width d of input and output; 768 in the paper's ViT-B.
    pub hidden_dim: usize,
    /// Inner width b of one learner.
    pub block_dim: usize,
    /// Learners N. Default 4.
    #[config(default = 4)]
    pub num_blocks: usize,
    /// Which biases the learners have. Default `hidden_only`.
    #[config(default = "AcmBias::HiddenOnly")]
    pub bias: AcmBias,
    /// Between a learner's matrices. Default `gelu`.
    #[config(default = "AcmActivation::Gelu")]
    pub activation: AcmActivation,
    /// Keep the gradient of a partial sum from the learners before its last one. Default false.
    #[config(default = false)]
    pub detach: bool,
    /// How the gate's logits become a gate. Default `gumbel`.
    #[config(default = "AcmGateKind::Gumbel")]
    pub gate_kind: AcmGateKind,
    /// Linear maps in the gate, at least 1. Default 3.
    #[config(default = 3)]
    pub gate_depth: usize,
    /// Width between them. Default 16.
    #[config(default = 16)]
    pub gating_hidden_dim: usize,
    /// Temperature of the Gumbel-softmax, above 0. Default 0.8.
    #[config(default = 0.8)]
    pub gs_tau: f64,
    /// One-hot gate in the forward pass of training. Default true.
    #[config(default = true)]
    pub gs_hard: bool,
    /// Fewest learners that may be chosen, at most N. Default 0.
    #[config(default = 0)]
    pub min_choice: usize,
    /// Does the task's loss reach the gate in training? Then every learner runs for every token; otherwise the chosen
    /// ones alone. Default true.
    #[config(default = true)]
    pub task_gradient: bool,
    /// Begin with a gate. Without one the module runs all learners or a fixed number until
    /// [`Acm::add_gate`] gives it one. Default true.
    #[config(default = true)]
    pub gated: bool,
}

impl AcmConfig {
    /// In place of an MLP of inner width `mlp_dim`: N learners of `round(mlp_dim / N)`, so that all of them cost what
    /// the MLP does.
    pub fn mlp(hidden_dim: usize, mlp_dim: usize, num_blocks: usize) -> Self {
        Self::new(hidden_dim, mlp_block_dim(mlp_dim, num_blocks)).with_num_blocks(num_blocks)
    }

    /// In place of a projection with bias from d to d: N linear learners of `round((d^2 + d) / ((2 d + 1) N))`, at
    /// least one of which always runs.
    pub fn projection(hidden_dim: usize, num_blocks: usize) -> Self {
        Self::new(hidden_dim, projection_block_dim(hidden_dim, num_blocks))
            .with_num_blocks(num_blocks)
            .with_activation(AcmActivation::Identity)
            .with_min_choice(1)
    }

    /// The learners' part.
    pub fn learners(&self) -> AcmLearnersConfig {
        AcmLearnersConfig {
            hidden_dim: self.hidden_dim,
            block_dim: self.block_dim,
            num_blocks: self.num_blocks,
            bias: self.bias,
            activation: self.activation,
            detach: self.detach,
        }
    }

    /// The gate's part.
    pub fn gate(&self) -> AcmGateConfig {
        AcmGateConfig {
            hidden_dim: self.hidden_dim,
            num_blocks: self.num_blocks,
            gate_kind: self.gate_kind,
            gate_depth: self.gate_depth,
            gating_hidden_dim: self.gating_hidden_dim,
            gs_tau: self.gs_tau,
            gs_hard: self.gs_hard,
            min_choice: self.min_choice,
        }
    }

    /// What the published files call the tensors of a module whose names begin with `prefix`: the learners' stand in
    /// the module itself.
    pub fn layout(prefix: &str) -> TensorLayout {
        TensorLayout::default().with_prefix(&format!("{prefix}learners."), prefix)
    }
}

impl ModuleConfig for AcmConfig {
    type Module = Acm;

    fn try_init(&self, device: &Device) -> Result<Acm, ConfigError> {
        let learners = self.learners().try_init(device)?;
        // A gate that comes later is refused now.
        self.gate().check()?;
        let gating_network = self.gated.then(|| self.gate().try_init(device)).transpose()?;
        Ok(Acm { learners, gating_network, task_gradient: self.task_gradient })
    }
}

/// `round(mlp_dim / N)`, 0 for no learners.
pub(super) fn mlp_block_dim(mlp_dim: usize, num_blocks: usize) -> usize {
    share(mlp_dim as f64, num_blocks)
}

/// `round((d^2 + d) / ((2 d + 1) N))`: N pairs of `[d, b]` and `[b, d]` with b biases have as many numbers as `[d, d]`
/// with d.
pub(super) fn projection_block_dim(hidden_dim: usize, num_blocks: usize) -> usize {
    let d = hidden_dim as f64;
    share((d * d + d) / (2.0 * d + 1.0), num_blocks)
}

/// A share of `1 / N`, rounded; of a width too small for that many learners at least 1.
fn share(width: f64, num_blocks: usize) -> usize {
    match num_blocks {
        0 => 0,
        _ => ((width / num_blocks as f64).round() as usize).max(usize::from(width >= 1.0)),
    }
}

/// Uniform within `bound` of 0, drawn when first read.
fn uniform<const D: usize>(shape: [usize; D], bound: f64, device: &Device) -> Param<Tensor<D>> {
    Initializer::Uniform { min: -bound, max: bound }.init(shape, device)
}
