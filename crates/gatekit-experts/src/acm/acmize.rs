//! From a trained model to one of adaptive computation modules.

use burn::config::Config;
use burn::nn::Linear;
use burn::tensor::{Device, Tensor};
use gatekit_core::mlp::Mlp;
use gatekit_core::{ConfigError, ModuleConfig};

use super::block::{AcmAttention, AcmBlock};
use super::config::{AcmActivation, AcmBias, AcmConfig, AcmGateKind, mlp_block_dim, projection_block_dim};
use super::dense::DenseBlock;
use super::layer::Acm;

/// How modules are replaced. Learners are as wide as lets all of them cost what the replaced module does. What is not
/// said here is explained at [`AcmConfig`].
#[derive(Config, Debug)]
pub struct AcmizeConfig {
    /// Learners N of every module. Default 4.
    #[config(default = 4)]
    pub num_blocks: usize,
    /// Which biases the learners have. Default `hidden_only`.
    #[config(default = "AcmBias::HiddenOnly")]
    pub bias: AcmBias,
    /// Keep the gradient of a partial sum from the learners before its last one. Default false.
    #[config(default = false)]
    pub detach: bool,
    /// How the gates' logits become gates. Default `gumbel`.
    #[config(default = "AcmGateKind::Gumbel")]
    pub gate_kind: AcmGateKind,
    /// Linear maps in a gate. Default 3.
    #[config(default = 3)]
    pub gate_depth: usize,
    /// Width between them. Default 16.
    #[config(default = 16)]
    pub gating_hidden_dim: usize,
    /// Temperature of the Gumbel-softmax. Default 0.8.
    #[config(default = 0.8)]
    pub gs_tau: f64,
    /// One-hot gates in the forward pass of training. Default true.
    #[config(default = true)]
    pub gs_hard: bool,
    /// Does the task's loss reach the gates in training? Default true.
    #[config(default = true)]
    pub task_gradient: bool,
    /// Fewest learners in place of a projection. Default 1.
    #[config(default = 1)]
    pub attention_min_choice: usize,
    /// Fewest learners in place of an MLP. Default 0.
    #[config(default = 0)]
    pub ffn_min_choice: usize,
}

impl AcmizeConfig {
    fn module(&self, hidden_dim: usize, block_dim: usize, activation: AcmActivation) -> AcmConfig {
        AcmConfig {
            hidden_dim,
            block_dim,
            num_blocks: self.num_blocks,
            bias: self.bias,
            activation,
            detach: self.detach,
            gate_kind: self.gate_kind,
            gate_depth: self.gate_depth,
            gating_hidden_dim: self.gating_hidden_dim,
            gs_tau: self.gs_tau,
            gs_hard: self.gs_hard,
            min_choice: match activation {
                AcmActivation::Identity => self.attention_min_choice,
                _ => self.ffn_min_choice,
            },
            task_gradient: self.task_gradient,
            gated: true,
        }
    }
}

/// What a replaced module was given and what it answered, for one batch.
#[derive(Debug, Clone)]
pub struct Recorded {
    /// Its input, `[batch, time, d]`.
    pub input: Tensor<3>,
    /// Its output, `[batch, time, d]`.
    pub output: Tensor<3>,
}

/// A trained module, or a model of such, whose projections and MLPs adaptive computation modules can replace.
///
/// A model implements it by its parts: replace them, and record them one after the other in the order in which its
/// counterpart's [`HasAcms::acms`] lists them.
pub trait Acmize {
    /// What it becomes.
    type Acmized: HasAcms;

    /// The same with fresh adaptive computation modules, on `device`; what is not replaced keeps its weights.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] for a configuration that is none, or a module that cannot be replaced.
    fn acmize(&self, config: &AcmizeConfig, device: &Device) -> Result<Self::Acmized, ConfigError>;

    /// Runs on `x` `[batch, time, d]` and notes what every replaced module is given and answers.
    fn record(&self, x: Tensor<3>, records: &mut Vec<Recorded>) -> Tensor<3>;
}

/// A model that adaptive computation modules are part of.
pub trait HasAcms {
    /// The modules, in the order in which they compute.
    fn acms(&self) -> Vec<&Acm>;
}

impl HasAcms for Acm {
    fn acms(&self) -> Vec<&Acm> {
        vec![self]
    }
}

impl HasAcms for AcmBlock {
    fn acms(&self) -> Vec<&Acm> {
        self.modules().to_vec()
    }
}

impl<M: HasAcms> HasAcms for Vec<M> {
    fn acms(&self) -> Vec<&Acm> {
        self.iter().flat_map(HasAcms::acms).collect()
    }
}

/// A projection from d to d channels becomes a sum of low-rank maps.
impl Acmize for Linear {
    type Acmized = Acm;

    fn acmize(&self, config: &AcmizeConfig, device: &Device) -> Result<Acm, ConfigError> {
        let [d, out] = self.weight.dims();
        if d != out {
            return Err(ConfigError::new("d_output", out, format!("the width of the input, {d}")));
        }
        let width = projection_block_dim(d, config.num_blocks);
        config.module(d, width, AcmActivation::Identity).try_init(device)
    }

    fn record(&self, x: Tensor<3>, records: &mut Vec<Recorded>) -> Tensor<3> {
        let output = self.forward(x.clone());
        records.push(Recorded { input: x, output: output.clone() });
        output
    }
}

/// An MLP with a GELU becomes a sum of narrow ones.
impl Acmize for Mlp {
    type Acmized = Acm;

    fn acmize(&self, config: &AcmizeConfig, device: &Device) -> Result<Acm, ConfigError> {
        let [d, inner] = self.up.weight.dims();
        config.module(d, mlp_block_dim(inner, config.num_blocks), AcmActivation::Gelu).try_init(device)
    }

    fn record(&self, x: Tensor<3>, records: &mut Vec<Recorded>) -> Tensor<3> {
        let output = self.forward(x.clone());
        records.push(Recorded { input: x, output: output.clone() });
        output
    }
}

/// The four projections and the MLP are replaced, the norms kept.
impl Acmize for DenseBlock {
    type Acmized = AcmBlock;

    fn acmize(&self, config: &AcmizeConfig, device: &Device) -> Result<AcmBlock, ConfigError> {
        let attention = &self.self_attention;
        Ok(AcmBlock {
            ln_1: self.ln_1.clone(),
            self_attention: AcmAttention {
                q_proj: attention.q_proj.acmize(config, device)?,
                k_proj: attention.k_proj.acmize(config, device)?,
                v_proj: attention.v_proj.acmize(config, device)?,
                o_proj: attention.o_proj.acmize(config, device)?,
                num_heads: attention.num_heads,
            },
            ln_2: self.ln_2.clone(),
            mlp: self.mlp.acmize(config, device)?,
        })
    }

    fn record(&self, x: Tensor<3>, records: &mut Vec<Recorded>) -> Tensor<3> {
        self.forward_watched(x, &mut |_, input, output| {
            records.push(Recorded { input: input.clone(), output: output.clone() });
        })
    }
}

/// Layers on top of one another.
impl<M: Acmize> Acmize for Vec<M> {
    type Acmized = Vec<M::Acmized>;

    fn acmize(&self, config: &AcmizeConfig, device: &Device) -> Result<Self::Acmized, ConfigError> {
        self.iter().map(|layer| layer.acmize(config, device)).collect()
    }

    fn record(&self, x: Tensor<3>, records: &mut Vec<Recorded>) -> Tensor<3> {
        self.iter().fold(x, |x, layer| layer.record(x, records))
    }
}
