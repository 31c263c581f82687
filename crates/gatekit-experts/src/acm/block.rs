//! A transformer block whose projections and MLP are adaptive computation modules.

use burn::config::Config;
use burn::module::Module;
use burn::nn::LayerNorm;
use burn::tensor::{Device, Int, Tensor};
use gatekit_core::checkpoint::TensorLayout;
use gatekit_core::router::Phase;
use gatekit_core::{ConfigError, InputError, ModuleConfig};

use super::config::{AcmActivation, AcmBias, AcmConfig, AcmGateKind};
use super::dense::{attend, attention_cost, check_heads, norms};
use super::layer::{Acm, AcmMode, AcmOutput};

/// Names of the five modules of a block, in the order of choices and noise.
pub const BLOCK_ACMS: [&str; 5] = [
    "self_attention.q_proj",
    "self_attention.k_proj",
    "self_attention.v_proj",
    "self_attention.o_proj",
    "mlp",
];

/// Configuration of [`AcmBlock`]. What is not said here is explained at [`AcmConfig`].
#[derive(Config, Debug)]
pub struct AcmBlockConfig {
    /// Width d.
    pub hidden_dim: usize,
    /// Inner width of a learner in the projections.
    pub attention_block_dim: usize,
    /// Inner width of a learner in the MLP.
    pub ffn_block_dim: usize,
    /// Learners N of every module. Default 4.
    #[config(default = 4)]
    pub num_blocks: usize,
    /// Heads of the attention, which divide d. Default 12.
    #[config(default = 12)]
    pub num_heads: usize,
    /// Added to variances in the norms. Default 1e-6.
    #[config(default = 1e-6)]
    pub layer_norm_eps: f64,
    /// Fewest learners in the projections. Default 1.
    #[config(default = 1)]
    pub attention_min_choice: usize,
    /// Fewest learners in the MLP. Default 0.
    #[config(default = 0)]
    pub ffn_min_choice: usize,
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
    /// Begin with gates. Default true.
    #[config(default = true)]
    pub gated: bool,
}

impl AcmBlockConfig {
    /// The configuration of the four projections.
    pub fn projection(&self) -> AcmConfig {
        self.module(self.attention_block_dim, AcmActivation::Identity, self.attention_min_choice)
    }

    /// The configuration of the MLP.
    pub fn mlp(&self) -> AcmConfig {
        self.module(self.ffn_block_dim, AcmActivation::Gelu, self.ffn_min_choice)
    }

    fn module(&self, block_dim: usize, activation: AcmActivation, min_choice: usize) -> AcmConfig {
        AcmConfig {
            hidden_dim: self.hidden_dim,
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
            min_choice,
            task_gradient: self.task_gradient,
            gated: self.gated,
        }
    }

    /// What the published files call the tensors of a block whose names begin with `prefix`.
    pub fn layout(prefix: &str) -> TensorLayout {
        BLOCK_ACMS.into_iter().fold(TensorLayout::default(), |layout, module| {
            layout.with_prefix(&format!("{prefix}{module}.learners."), &format!("{prefix}{module}."))
        })
    }
}

impl ModuleConfig for AcmBlockConfig {
    type Module = AcmBlock;

    fn try_init(&self, device: &Device) -> Result<AcmBlock, ConfigError> {
        check_heads(self.hidden_dim, self.num_heads)?;
        // The two kinds of modules share all fields but these.
        let named = |prefix: &'static str| {
            move |error: ConfigError| match error.field.as_str() {
                "block_dim" | "min_choice" => {
                    ConfigError { field: format!("{prefix}_{}", error.field), ..error }
                }
                _ => error,
            }
        };
        let projection = || self.projection().try_init(device).map_err(named("attention"));
        let [ln_1, ln_2] = norms(self.hidden_dim, self.layer_norm_eps, device)?;
        Ok(AcmBlock {
            ln_1,
            self_attention: AcmAttention {
                q_proj: projection()?,
                k_proj: projection()?,
                v_proj: projection()?,
                o_proj: projection()?,
                num_heads: self.num_heads,
            },
            ln_2,
            mlp: self.mlp().try_init(device).map_err(named("ffn"))?,
        })
    }
}

/// The projections of softmax attention as adaptive computation modules.
#[derive(Module, Debug)]
pub struct AcmAttention {
    /// To the queries.
    pub q_proj: Acm,
    /// To the keys.
    pub k_proj: Acm,
    /// To the values.
    pub v_proj: Acm,
    /// From the heads' outputs.
    pub o_proj: Acm,
    /// Heads.
    pub num_heads: usize,
}

/// A pre-norm transformer block of adaptive computation modules.
///
/// ```text
/// u = LN_1(x)      q, k, v = ACM(u)      a = softmax attention, scale 1 / sqrt(d / heads), no mask
/// x = x + ACM_o(a)
/// x = x + ACM_mlp(LN_2(x))
/// ```
///
/// Wójcik et al. (arXiv 2312.10193), section 3.
#[derive(Module, Debug)]
pub struct AcmBlock {
    /// Norm before the attention.
    pub ln_1: LayerNorm,
    /// The attention's projections.
    pub self_attention: AcmAttention,
    /// Norm before the MLP.
    pub ln_2: LayerNorm,
    /// The module in place of the MLP.
    pub mlp: Acm,
}

/// What a block computed, and for whom how much of it. Modules stand in the order q, k, v, o, mlp.
#[derive(Debug, Clone)]
pub struct AcmBlockOutput {
    /// The output, `[batch, time, d]`.
    pub y: Tensor<3>,
    /// The gates, each `[batch, time, N + 1]`.
    pub gates: [Tensor<3>; 5],
    /// Learners of every token and module, `[batch, time, 5]`.
    pub choices: Tensor<3, Int>,
}

impl AcmBlock {
    /// In the phase of the device: training with autodiff, where noise is drawn, else evaluation.
    ///
    /// # Errors
    ///
    /// As [`Acm::forward`].
    ///
    /// # Panics
    ///
    /// When `x` `[batch, time, d]` does not have d channels.
    pub fn forward(&self, x: Tensor<3>, mode: AcmMode) -> Result<AcmBlockOutput, InputError> {
        self.run(x, |_, module, x| module.forward(x, mode))
    }

    /// As [`forward`](Self::forward), with given Gumbel noise, each `[batch, time, C]` in the order q, k, v, o, mlp,
    /// and in a given phase.
    ///
    /// # Errors
    ///
    /// As [`Acm::forward_with`].
    ///
    /// # Panics
    ///
    /// As [`forward`](Self::forward).
    pub fn forward_with(
        &self,
        x: Tensor<3>,
        mode: AcmMode,
        noise: Option<[Tensor<3>; 5]>,
        phase: Phase,
    ) -> Result<AcmBlockOutput, InputError> {
        let mut noise = noise.map(|noise| noise.map(Some));
        self.run(x, |index, module, x| {
            let noise = noise.as_mut().and_then(|noise| noise[index].take());
            module.forward_with(x, mode, noise, phase)
        })
    }

    /// With a given number of learners for every token and module, `choices` `[batch, time, 5]`; see
    /// [`Acm::forward_given`].
    ///
    /// # Errors
    ///
    /// As [`Acm::forward_given`].
    ///
    /// # Panics
    ///
    /// As [`forward`](Self::forward).
    pub fn forward_given(&self, x: Tensor<3>, choices: Tensor<3, Int>) -> Result<AcmBlockOutput, InputError> {
        let [batch, time, modules] = choices.dims();
        if modules != BLOCK_ACMS.len() {
            let got = format!("{:?}", choices.dims());
            return Err(InputError::new("choices", got, format!("[{batch}, {time}, {}]", BLOCK_ACMS.len())));
        }
        self.run(x, |index, module, x| {
            module.forward_given(x, choices.clone().narrow(2, index, 1).squeeze_dim(2))
        })
    }

    fn run(
        &self,
        x: Tensor<3>,
        mut apply: impl FnMut(usize, &Acm, Tensor<3>) -> Result<AcmOutput, InputError>,
    ) -> Result<AcmBlockOutput, InputError> {
        let attention = &self.self_attention;
        let u = self.ln_1.forward(x.clone());
        let q = apply(0, &attention.q_proj, u.clone())?;
        let k = apply(1, &attention.k_proj, u.clone())?;
        let v = apply(2, &attention.v_proj, u)?;
        let heads = attend(q.y, k.y, v.y, attention.num_heads);
        let o = apply(3, &attention.o_proj, heads)?;
        let x = x + o.y;
        let mlp = apply(4, &self.mlp, self.ln_2.forward(x.clone()))?;
        Ok(AcmBlockOutput {
            y: x + mlp.y,
            gates: [q.gate, k.gate, v.gate, o.gate, mlp.gate],
            choices: Tensor::stack(vec![q.choice, k.choice, v.choice, o.choice, mlp.choice], 2),
        })
    }

    /// The modules, in the order q, k, v, o, mlp.
    pub fn modules(&self) -> [&Acm; 5] {
        let attention = &self.self_attention;
        [&attention.q_proj, &attention.k_proj, &attention.v_proj, &attention.o_proj, &self.mlp]
    }

    /// FLOPs of what is no module, for `batch` sequences of `time` tokens: the attention itself. Norms are not counted.
    pub fn rest_cost(&self, batch: usize, time: usize) -> f64 {
        attention_cost(batch, time, self.mlp.learners.hidden_dim())
    }
}
