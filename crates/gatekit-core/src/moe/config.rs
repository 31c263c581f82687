//! What a layer is made of, and what the published models call its parts.

use burn::config::Config;
use burn::tensor::Device;
use serde::{Deserialize, Serialize};

use super::{MoeLayer, SharedExpert, SwiGluExperts};
use crate::checkpoint::TensorLayout;
use crate::config::ModuleConfig;
use crate::dispatch::{Capacity, Priority};
use crate::error::ConfigError;
use crate::feed_forward::SwiGluConfig;
use crate::init;
use crate::router::{
    BiasBalancer, CountNormalizer, GroupScore, RouterConfig, RouterInitialisation, RouterNoise, ScoringFunc,
    SecondExpertPolicy, Selection, TopkOrder,
};

/// Under which names a layer's parameters are published, after the block's prefix
/// (`block_sparse_moe.` in Mixtral, `mlp.` otherwise).
///
/// The router is `gate.weight` everywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MoeLayout {
    /// As in memory: `experts.gate_up_proj` `[E, 2H, D]` with the gate's rows first,
    /// `experts.down_proj` `[E, D, H]`.
    Stacked,
    /// `experts.{e}.w1.weight` gate, `.w3.weight` up, `.w2.weight` down.
    Mixtral,
    /// `experts.{e}.gate_proj.weight`, `.up_proj.weight`, `.down_proj.weight`.
    Qwen3Moe,
    /// As Qwen3; `shared_expert.*_proj.weight`, `shared_expert_gate.weight`.
    Qwen2Moe,
    /// As Qwen3; `gate.e_score_correction_bias`, `shared_experts.*_proj.weight`.
    DeepseekV3,
}

/// Configuration of [`MoeLayer`]. The fields of the router are explained at [`RouterConfig`].
#[derive(Config, Debug)]
pub struct MoeLayerConfig {
    /// Channels D of input and output.
    pub hidden_size: usize,
    /// Inner width H of an expert, at least 1.
    pub moe_intermediate_size: usize,
    /// Experts E. Default 8.
    #[config(default = 8)]
    pub num_experts: usize,
    /// Experts a token K. Default 2.
    #[config(default = 2)]
    pub num_experts_per_tok: usize,
    /// How logits become scores. Default softmax.
    #[config(default = "ScoringFunc::Softmax")]
    pub scoring_func: ScoringFunc,
    /// What comes first, the scores (default) or the choice.
    #[config(default = "TopkOrder::ScoreThenTopk")]
    pub topk_order: TopkOrder,
    /// Divide the K weights by their sum. Default true.
    #[config(default = true)]
    pub norm_topk_prob: bool,
    /// Multiplies the weights last. Default 1.
    #[config(default = 1.0)]
    pub routed_scaling_factor: f64,
    /// Groups of consecutive experts. Default 1.
    #[config(default = 1)]
    pub n_group: usize,
    /// Groups that a token may choose from. Default 1.
    #[config(default = 1)]
    pub topk_group: usize,
    /// What a group is worth. Default the sum of its two largest values.
    #[config(default = "GroupScore::Top2Sum")]
    pub group_score: GroupScore,
    /// Whether the score projection has a bias. Default false.
    #[config(default = false)]
    pub router_bias: bool,
    /// Whether the router has a selection bias; `None` (the default): where the layout is DeepSeek's.
    pub selection_bias: Option<bool>,
    /// Noise in training. Default none.
    #[config(default = "RouterNoise::None")]
    pub noise: RouterNoise,
    /// Smallest scale of Gaussian noise, half width of jitter. Default 0.01.
    #[config(default = 0.01)]
    pub noise_epsilon: f64,
    /// What becomes of the second expert in training. Default it is used.
    #[config(default = "SecondExpertPolicy::All")]
    pub second_expert_policy: SecondExpertPolicy,
    /// Where the choice comes from. Default learned scores. With [`Selection::Hash`] every pass
    /// must be given token ids ([`MoeLayer::forward_with`]).
    #[config(default = "Selection::Learned")]
    pub selection: Selection,
    /// Entries of the hash table; needed for [`Selection::Hash`].
    pub vocab_size: Option<usize>,
    /// How the router starts. Default normal(0, 0.02).
    #[config(default = "RouterInitialisation::Normal")]
    pub router_initialisation: RouterInitialisation,
    /// Slots that an expert takes in training, in multiples of its fair share; `None` (the
    /// default): all that come.
    pub capacity_factor: Option<f64>,
    /// Who gets a slot first. Default the order of the batch.
    #[config(default = "Priority::Token")]
    pub priority: Priority,
    /// What counts are divided by in the balancing loss. Default tokens.
    #[config(default = "CountNormalizer::Tokens")]
    pub count_normalizer: CountNormalizer,
    /// Step of the selection bias, at least 0. Default 0.001.
    #[config(default = 0.001)]
    pub bias_update_speed: f64,
    /// Inner width of the shared expert, 0 (the default) for none.
    #[config(default = 0)]
    pub shared_intermediate_size: usize,
    /// Scale the shared expert by `sigmoid(x . g)` (Qwen2-MoE). Default false.
    #[config(default = false)]
    pub shared_expert_gate: bool,
    /// What the parameters are called in checkpoints. Default as in memory.
    #[config(default = "MoeLayout::Stacked")]
    pub layout: MoeLayout,
}

impl MoeLayerConfig {
    /// The configuration of the router.
    pub fn router(&self) -> RouterConfig {
        RouterConfig {
            hidden_size: self.hidden_size,
            num_experts: self.num_experts,
            num_experts_per_tok: self.num_experts_per_tok,
            scoring_func: self.scoring_func,
            topk_order: self.topk_order,
            norm_topk_prob: self.norm_topk_prob,
            routed_scaling_factor: self.routed_scaling_factor,
            n_group: self.n_group,
            topk_group: self.topk_group,
            group_score: self.group_score,
            router_bias: self.router_bias,
            selection_bias: self.selection_bias.unwrap_or(self.layout == MoeLayout::DeepseekV3),
            noise: self.noise,
            noise_epsilon: self.noise_epsilon,
            second_expert_policy: self.second_expert_policy,
            selection: self.selection,
            vocab_size: self.vocab_size,
            initialisation: self.router_initialisation,
        }
    }

    /// What moves the selection bias.
    pub fn balancer(&self) -> BiasBalancer {
        BiasBalancer::new(self.bias_update_speed)
    }

    /// Adds to `layout` what the layout of this layer calls the tensors of the [`MoeLayer`] whose
    /// names begin with `prefix` (`model.layers.{}.mlp.`, `{}` for a number). Comes before the
    /// rules that rename the prefix itself:
    ///
    /// ```
    /// use gatekit_core::checkpoint::TensorLayout;
    /// use gatekit_core::moe::{MoeLayerConfig, MoeLayout};
    ///
    /// let config = MoeLayerConfig::new(8, 4).with_num_experts(1).with_layout(MoeLayout::Mixtral);
    /// let layout = config
    ///     .tensor_layout(TensorLayout::default(), "model.layers.{}.mlp.")
    ///     .with_prefix("model.layers.{}.mlp.", "model.layers.{}.block_sparse_moe.");
    /// assert_eq!(
    ///     layout.published_names("model.layers.7.mlp.experts.gate_up_proj", &[1, 8, 8]),
    ///     ["w1", "w3"].map(|part| format!("model.layers.7.block_sparse_moe.experts.0.{part}.weight"))
    /// );
    /// ```
    pub fn tensor_layout(&self, layout: TensorLayout, prefix: &str) -> TensorLayout {
        let experts = match self.layout {
            MoeLayout::Stacked => None,
            MoeLayout::Mixtral => Some(["w1.weight", "w3.weight", "w2.weight"]),
            MoeLayout::Qwen3Moe | MoeLayout::Qwen2Moe | MoeLayout::DeepseekV3 => {
                Some(["gate_proj.weight", "up_proj.weight", "down_proj.weight"])
            }
        };
        let layout = match experts {
            None => layout,
            Some([gate, up, down]) => layout
                .with_experts(&format!("{prefix}experts.gate_up_proj"), &[gate, up])
                .with_experts(&format!("{prefix}experts.down_proj"), &[down]),
        };
        let shared = match (self.layout, self.shared_expert_gate) {
            (MoeLayout::DeepseekV3, _) => "shared_experts.",
            (MoeLayout::Qwen2Moe, _) | (_, true) => "shared_expert.",
            _ => "shared_experts.",
        };
        layout
            .with_prefix(&format!("{prefix}shared_expert.expert."), &format!("{prefix}{shared}"))
            .with_prefix(&format!("{prefix}shared_expert.gate."), &format!("{prefix}shared_expert_gate."))
            .with_prefix(&format!("{prefix}gate.w_noise."), &format!("{prefix}w_noise."))
    }
}

impl ModuleConfig for MoeLayerConfig {
    type Module = MoeLayer;

    fn try_init(&self, device: &Device) -> Result<MoeLayer, ConfigError> {
        let router = self.router();
        router.check()?;
        let (hidden, inner) = (self.hidden_size, self.moe_intermediate_size);
        if inner == 0 {
            return Err(ConfigError::new("moe_intermediate_size", inner, "at least 1"));
        }
        let speed = self.bias_update_speed;
        if !(speed.is_finite() && speed >= 0.0) {
            return Err(ConfigError::new("bias_update_speed", speed, "a finite number, at least 0"));
        }
        let capacity = self.capacity_factor.map(|factor| Capacity::new(factor, self.priority)).transpose()?;
        let shared_expert = match (self.shared_intermediate_size, self.shared_expert_gate) {
            (0, true) => {
                let need = "false: there is no shared expert (shared_intermediate_size is 0)";
                return Err(ConfigError::new("shared_expert_gate", true, need));
            }
            (0, false) => None,
            (size, gated) => Some(SharedExpert {
                expert: SwiGluConfig::new(hidden, size).try_init(device)?,
                gate: gated.then(|| init::linear(hidden, 1, false, device)),
            }),
        };
        Ok(MoeLayer {
            gate: router.try_init(device)?,
            experts: SwiGluExperts::new(self.num_experts, hidden, inner, device),
            shared_expert,
            capacity,
            hidden_size: hidden,
        })
    }
}
